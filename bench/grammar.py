"""What the grammar of a turn costs: time to compile it, and time of each token's mask.

    python bench/grammar.py [--model PATH] [--step-ms 30]

Replays turns over the whole o200k vocabulary (or that of --model), token by token, once at full
speed and once with a pause of --step-ms between tokens, as long as a forward pass takes. What a
step still waits for in the second case is what the grammar adds to an answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

from aperto.formats import open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.harmony import CallRule, JsonSchema, TurnRules
from aperto.harmony.grammar import GrammarCompiler, TurnGrammar, turn_grammar
from aperto.tokenizer import Tokenizer

THOUGHT = "The user asks for the weather in two towns; I look up both, one after the other. " * 4
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"enum": ["C", "F"]},
    },
    "required": ["city", "days"],
}
REPORT = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 60},
        "towns": {"type": "array", "items": CITY},
        "note": {"type": "string"},
    },
    "required": ["title", "towns", "note"],
    "additionalProperties": False,
}
ARGUMENTS = json.dumps({"city": "Reykjavík", "days": 3, "unit": "C"}, ensure_ascii=False)
ANSWER = json.dumps(
    {
        "title": "Weather in the north",
        "towns": [{"city": name, "days": 3} for name in ("Oslo", "Tromsø", "Bergen")],
        "note": "Rain in the morning, clear in the afternoon; take a coat. " * 3,
    },
    ensure_ascii=False,
)


def turns(num_tools: int) -> dict[str, tuple[TurnRules, str]]:
    """Rules and a turn that keeps to them, special tokens spelled out."""
    calls = tuple(
        CallRule(recipient=f"functions.tool_{idx}", parameters=CITY) for idx in range(num_tools)
    )
    thought = f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
    call = (
        f"<|start|>assistant<|channel|>commentary to=functions.tool_{num_tools - 1} "
        f"<|constrain|>json<|message|>{ARGUMENTS}<|call|>"
    )
    final = f"<|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>"
    return {
        f"reasoning and a call, {num_tools} tools": (TurnRules(calls=calls), thought + call),
        "reasoning and an answer of a schema": (
            TurnRules(calls=calls, answer=JsonSchema(REPORT)),
            thought + final,
        ),
    }


def ids_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a text whose special tokens are spelled out."""
    ids: list[int] = []
    while text:
        place, name = min(
            ((text.find(n), n) for n in tokenizer.special if n in text), default=(len(text), "")
        )
        ids += tokenizer.encode(text[:place])
        if name:
            ids.append(tokenizer.special_id(name))
        text = text[place + len(name) :]
    return ids


def replay(
    compiler: GrammarCompiler, grammar: TurnGrammar, ids: Sequence[int], step_s: float
) -> list[float]:
    """Seconds each token waited for its mask and its grammar, with a model of step_s a token."""
    constraint = compiler.constraint(grammar)
    waits = []
    for token_id in ids:
        time.sleep(step_s)
        begin = time.perf_counter()
        mask = constraint.mask()
        assert mask[token_id // 32] >> (token_id % 32) & 1, f"token {token_id} is not allowed"
        constraint.accept(token_id)
        waits.append(time.perf_counter() - begin)
    return waits


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="name or path; default: the bundled o200k vocabulary")
    parser.add_argument("--step-ms", type=float, default=30.0, help="a forward pass")
    arguments = parser.parse_args()
    if arguments.model:
        source = open_checkpoint(resolve_model(arguments.model)).tokenizer_source()
        tokenizer = Tokenizer.from_checkpoint(source)
    else:
        tokenizer = Tokenizer.bundled()
    begin = time.perf_counter()
    compiler = GrammarCompiler(tokenizer)
    warm = compiler.constraint(turn_grammar(TurnRules()))
    warm.mask()
    print(f"vocabulary prepared once: {time.perf_counter() - begin:.2f} s\n")
    print("| turn | tokens | compiled, ms | at once, µs: median | p99 | wait, µs: median | p99 |")
    print("|---|---|---|---|---|---|---|")
    for name, (rules, text) in turns(20).items():
        grammar = turn_grammar(rules)
        begin = time.perf_counter()
        compiler.constraint(grammar)
        compiled_s = time.perf_counter() - begin
        ids = ids_of(text, tokenizer)
        cells = [name, str(len(ids)), f"{compiled_s * 1e3:.1f}"]
        for step_s in (0.0, arguments.step_ms / 1e3):
            waits = replay(compiler, grammar, ids, step_s)
            p99 = statistics.quantiles(waits, n=100)[98]
            cells += [f"{statistics.median(waits) * 1e6:.0f}", f"{p99 * 1e6:.0f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
