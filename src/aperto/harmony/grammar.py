"""The one grammar of a turn: channels, recipients, arguments and the answer in one automaton.

What `turn_grammar` writes is read by llguidance. Special tokens stand in it by name, so that no
text can take their place; where the grammar holds, no header can be sampled that needs mending.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

from aperto.errors import ConfigError, EngineError
from aperto.formats.vocabulary import PATTERN
from aperto.harmony.loosen import WHITESPACE, held_schema
from aperto.harmony.rules import (
    FUNCTIONS_PREFIX,
    AnswerFormat,
    CallRule,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    TurnRules,
)
from aperto.tokenizer import Tokenizer

_MAX_COMPILED = 64
_SLOW_MASK_S = 0.0005
_SLOW_MODEL_S = 0.005
_HEAD = '<|start|> "assistant"'
_JSON_TYPES = '(" json" | " code" | " " <|constrain|> "json")?'
_TEXT_TYPES = '(" code" | " text")?'
# What may stand in a Lark grammar without being a special token.
_QUOTED = re.compile(
    r'"(?:\\.|[^"\\\n])*"|//[^\n]*|#[^\n]*|/(?![/*])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n])+/'
)


@dataclasses.dataclass(frozen=True, slots=True)
class TurnGrammar:
    """A grammar and what it leaves open."""

    text: str
    """The grammar in llguidance's JSON form."""
    warnings: tuple[str, ...]
    """One line a part of a schema or form that is not enforced."""


def turn_grammar(rules: TurnRules) -> TurnGrammar:
    """Write the grammar of what follows ``<|start|>assistant``, to the end of the turn.

    Raises ConfigError for an answer's regular expression or Lark grammar that cannot be read; a
    call's is given up with a warning.
    """
    return _Writer(rules).grammar()


class _Writer:
    """Collects the rules of one turn and the grammars they refer to."""

    def __init__(self, rules: TurnRules) -> None:
        self._rules = rules
        self._parts: list[dict[str, Any]] = []
        self._warnings: list[str] = []

    def grammar(self) -> TurnGrammar:
        lines = list(self._lines())
        grammars = [{"lark_grammar": "\n".join(lines) + "\n"}, *self._parts]
        return TurnGrammar(json.dumps({"grammars": grammars}), tuple(self._warnings))

    def _lines(self) -> Iterator[str]:
        rules = self._rules
        calls = rules.callable
        if rules.tool_choice == "required":
            yield from self._required()
        else:
            ways = [f"analysis {_HEAD} start"] if rules.reasoning else []
            ways += [f"preamble {_HEAD} start", "calls"] if calls else []
            yield f"start: {' | '.join([*ways, 'answer'])}"
            yield f"answer: {self._answer(rules.answer)} <|return|>"
        yield 'analysis: <|channel|> "analysis" <|message|> TEXT <|end|>'
        if calls:
            yield 'preamble: <|channel|> "commentary" <|message|> SOME_TEXT <|end|>'
            further = f" | call <|end|> {_HEAD} calls" if rules.parallel_calls else ""
            yield f"calls: call <|call|>{further}"
            yield f"call: {' | '.join(f'call_{i}' for i in range(len(calls)))}"
            for idx, call in enumerate(calls):
                yield f"call_{idx}: {self._call(idx, call)}"
        yield "TEXT: /(?s:.*)/"
        yield "SOME_TEXT: /(?s:.+)/"

    def _required(self) -> Iterator[str]:
        # At most one thought and one preamble: a model that will not call could go on for ever.
        first = f"(analysis {_HEAD})? " if self._rules.reasoning else ""
        yield f"start: {first}(preamble {_HEAD})? calls"

    def _call(self, idx: int, call: CallRule) -> str:
        target = f'" to={call.recipient}"'
        is_function = call.recipient.startswith(FUNCTIONS_PREFIX)
        with_analysis = self._rules.reasoning and not is_function
        channel = '("commentary" | "analysis")' if with_analysis else '"commentary"'
        header = f"({target} <|channel|> {channel} | <|channel|> {channel} {target})"
        if call.parameters is None:
            return f"{header} {_TEXT_TYPES} <|message|> {self._call_text(idx, call)}"
        name = f"arguments_{idx}"
        self._schema(name, call.parameters, call.strict, f"{call.recipient}.parameters", True)
        return f"{header} {_JSON_TYPES} <|message|> @{name}"

    def _call_text(self, idx: int, call: CallRule) -> str:
        if call.text is None:
            return "SOME_TEXT"
        try:
            part = _text_grammar(call.text, f"{call.recipient}.text")
        except ConfigError as error:
            # A tool that cannot be held to its form is still of use.
            self._warnings.append(f"{error}; any text is allowed")
            return "SOME_TEXT"
        self._parts.append({"name": f"text_{idx}", **part})
        return f"@text_{idx}"

    def _answer(self, answer: AnswerFormat | None) -> str:
        header = '<|channel|> "final"'
        if answer is None:
            return f"{header} <|message|> SOME_TEXT"
        if isinstance(answer, JsonSchema | JsonObject):
            header += ' (" " <|constrain|> "json")?'
        if isinstance(answer, JsonSchema):
            self._schema("answer_text", answer.schema, answer.strict, "answer", False)
        elif isinstance(answer, JsonObject):
            self._schema("answer_text", {"type": "object"}, False, "answer", True)
        else:
            self._parts.append({"name": "answer_text", **_text_grammar(answer, "answer")})
        return f"{header} <|message|> @answer_text"

    def _schema(
        self, name: str, schema: Mapping[str, Any], strict: bool, where: str, is_object: bool
    ) -> None:
        held = held_schema(schema, strict, is_object)
        self._warnings += [where + loss for loss in held.losses]
        root = held.schema
        if isinstance(root, dict):
            root = {**root, "x-guidance": {"whitespace_pattern": WHITESPACE}}
        self._parts.append({"name": name, "json_schema": root})


def _text_grammar(form: Regex | Lark, where: str) -> dict[str, Any]:
    """The grammar of a text. Raises ConfigError where it cannot be read."""
    if isinstance(form, Regex):
        what, text = "regular expression", LLMatcher.grammar_from_regex(form.pattern)
        text = json.loads(text)["grammars"][0]["lark_grammar"]
    else:
        what, text = "Lark grammar", form.grammar
        if "<" in _QUOTED.sub("", text):
            raise ConfigError(
                f"{where}: the Lark grammar names special tokens in <...>; expected text only: "
                "the turn's headers are added around it"
            )
    wrong = LLMatcher.validate_grammar(json.dumps({"grammars": [{"lark_grammar": text}]}))
    if wrong:
        raise ConfigError(f"{where}: the {what} cannot be used: {wrong.strip()}")
    return {"lark_grammar": text}


class GrammarCompiler:
    """Makes constraints of grammars, for one vocabulary; thread-safe.

    Args:
        tokenizer: the checkpoint's tokenizer.
        vocab_size: rows of the model's head, where it has more than the tokenizer has ids.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int | None = None) -> None:
        self._vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        self._compiled: collections.OrderedDict[str, Future[LLMatcher]] = collections.OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1), "aperto-mask")
        # A second of work for o200k: done while the first prompt is prepared.
        self._tokenizer = self._pool.submit(_matcher_tokenizer, tokenizer, self._vocab_size)

    def constraint(self, grammar: TurnGrammar) -> GrammarConstraint:
        """A fresh constraint for one request. Raises ConfigError on a grammar too large to use."""
        matcher = self._matcher(grammar.text).deep_copy()
        return GrammarConstraint(matcher, self._vocab_size, self._pool.submit)

    def _matcher(self, text: str) -> LLMatcher:
        """The compiled grammar; whoever asks first compiles it, the others wait for that one."""
        with self._lock:
            slot = self._compiled.get(text)
            is_mine = slot is None
            if slot is None:
                slot = self._compiled[text] = Future()
                if len(self._compiled) > _MAX_COMPILED:
                    self._compiled.popitem(last=False)
            else:
                self._compiled.move_to_end(text)
        if is_mine:
            slot.set_result(LLMatcher(self._tokenizer.result(), text, log_level=0))
        matcher = slot.result()
        if matcher.is_error():
            raise ConfigError(f"the grammar of the turn cannot be used: {matcher.get_error()}")
        return matcher


class GrammarConstraint:
    """A grammar's state along one answer; an `aperto.engine.Constraint`.

    Masks are computed on another thread while the model computes. Most take some ten microseconds,
    less than the handing over: where the model is as fast as that, they are computed in place.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        vocab_size: int,
        submit: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        self._matcher = matcher
        self._submit = submit
        self._is_done = False
        self._mask = np.zeros(-(-vocab_size // 32), dtype=np.uint32)  # [ceil(vocab / 32)]
        self._mask_s = self._model_s = 0.0
        self._accepted_at = time.perf_counter()
        self._pending: Future[None] | None = submit(self._compute)

    def mask(self) -> NDArray[np.uint32]:
        """Allowed next tokens: [ceil(vocab / 32)]; valid until the next `accept`."""
        self._model_s = time.perf_counter() - self._accepted_at
        pending, self._pending = self._pending, None
        if pending is not None and pending.cancel():
            self._compute()  # no thread was free
        elif pending is not None:
            pending.result()
        return self._mask

    def accept(self, token_id: int) -> None:
        """Advance over a token. Raises EngineError where the grammar does not allow it."""
        if self._pending is not None:
            self.mask()
        if not self._matcher.consume_token(token_id):
            raise EngineError(
                f"the grammar does not allow token {token_id}: {self._matcher.get_error()}"
            )
        # The matcher may be another thread's from here on.
        self._is_done = self._matcher.is_accepting()
        if self._is_done:
            return
        if self._mask_s > _SLOW_MASK_S or self._model_s > _SLOW_MODEL_S:
            self._pending = self._submit(self._compute)
        else:
            self._compute()
        self._accepted_at = time.perf_counter()

    @property
    def is_done(self) -> bool:
        """Whether the turn is complete."""
        return self._is_done

    def _compute(self) -> None:
        begin = time.perf_counter()
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._mask_s = time.perf_counter() - begin
        if self._matcher.is_error():
            raise EngineError(f"the grammar failed: {self._matcher.get_error()}")


def _matcher_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    # The turn ends in <|return|> or <|call|>, which the grammar names; no other end is allowed.
    end = tokenizer.special.get("<|endoftext|>", tokenizer.special_id("<|return|>"))
    return LLTokenizer.from_tiktoken(  # type: ignore[attr-defined, no-any-return]
        encoder=tokenizer.ranks,
        special_tokens=tokenizer.special,
        pattern=PATTERN,
        eos_token=end,
        n_vocab=vocab_size,
        slices=None,
    )
