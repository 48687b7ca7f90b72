"""Suites as Inspect tasks: items become samples, and only the final text is graded.

Reasoning is kept in the metadata of a score and never reaches a grader's text.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import anyio.to_thread
from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentReasoning,
    GenerateConfig,
    ModelOutput,
)
from inspect_ai.scorer import Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import ToolCall, ToolDef, ToolParams

from aperto import registry
from aperto.errors import UsageError
from aperto.vet.sources import Data, locate
from aperto.vet.suites.item import Answer, Call, Function, Item, Turn
from aperto.vet.tasks.catalogue import SUITES
from aperto.vet.tasks.suite import Suite, judged

_CUT = ("max_tokens", "model_length")


def task_of(
    suite: Suite,
    *,
    data_dir: Path | None = None,
    limit: int | None = None,
    epochs: int | None = None,
    effort: str = "medium",
    seed: int = 0,
) -> Task:
    """A suite as a task.

    Args:
        suite: of the catalogue.
        data_dir: the user's folder of data.
        limit: number of questions, drawn by `seed`; None takes all.
        epochs: answers to each question; None takes the suite's.
        effort: decides how long an answer may be, nothing else.
        seed: of the draw.

    Raises DataUnavailableError where its data is not on this machine.
    """
    data = locate(suite.source, data_dir) if suite.source else None
    loaded = suite.load(data)
    if data is not None:
        registry.register(suite.name, questions(loaded), note=data.source.title)
    items = drawn(loaded, limit, seed)
    return Task(
        dataset=MemoryDataset([sample(item) for item in items], name=suite.name),
        solver=answer_once(),
        scorer=graded(suite.name),
        config=GenerateConfig(
            temperature=suite.temperature,
            top_p=suite.top_p,
            max_tokens=suite.max_tokens.get(effort, max(suite.max_tokens.values())),
        ),
        epochs=Epochs(epochs or suite.epochs, "mean"),
        name=suite.name,
        metadata=_provenance(suite, data, seed, len(items)),
    )


def questions(items: tuple[Item, ...]) -> tuple[str, ...]:
    """What only these items ask: whole user turns, and paragraphs that no other item shares."""
    texts = [turn.text for item in items for turn in item.turns if turn.role == "user"]
    parts = [part for text in texts for part in {*text.split("\n\n")} if len(part.split()) >= 5]
    once = [part for part, number in Counter(parts).items() if number == 1]
    return (*texts, *(once if len(texts) > 1 else ()))


def drawn(items: tuple[Item, ...], limit: int | None, seed: int) -> tuple[Item, ...]:
    """Some of the items, the same ones for the same seed, in their order."""
    if limit is None or limit >= len(items):
        return items
    chosen = sorted(random.Random(f"{seed}/{len(items)}").sample(range(len(items)), limit))
    return tuple(items[index] for index in chosen)


def sample(item: Item) -> Sample:
    """One question; what its grader needs lies in the metadata, which no model is shown."""
    return Sample(
        id=item.id,
        input=[_message(turn, index, item) for index, turn in enumerate(item.turns)],
        metadata={
            "suite": item.suite,
            "cluster": item.cluster,
            "expected": dict(item.expected),
            "functions": [dataclasses.asdict(one) for one in item.functions],
        },
    )


@solver
def answer_once() -> Solver:
    """Ask once, with the item's functions at hand; calls are graded, not run."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.tools = [_tool(one) for one in _item(state).functions]
        return await generate(state, tool_calls="none")

    return solve


@scorer(metrics=[accuracy(), stderr()])
def graded(suite: str) -> Scorer:
    """A suite's own grade of the final text and calls.

    Needs nothing but the log, so that stored answers can be graded again.
    """
    grade_of = functools.partial(judged, SUITES[suite])

    async def score(state: TaskState, target: Target) -> Score:
        answer = answer_of(state.output)
        grade = await anyio.to_thread.run_sync(grade_of, _item(state), answer)
        return Score(
            value=grade.score,
            answer=grade.label,
            metadata={
                "label": grade.label,
                "analysis_score": grade.analysis_score,
                "truncated": answer.truncated,
                "repairs": answer.repairs,
                "answer_sha256": hashlib.sha256(answer.final.encode()).hexdigest(),
            },
        )

    return score


def answer_of(output: ModelOutput) -> Answer:
    """What a model said, its reasoning apart from its final text."""
    if not output.choices:
        return Answer("")
    message = output.choices[0].message
    parts = message.content if isinstance(message.content, list) else []
    thought = [part.reasoning for part in parts if isinstance(part, ContentReasoning)]
    calls = tuple(Call(one.function, _arguments(one)) for one in message.tool_calls or ())
    return Answer(
        final=message.text,
        analysis="\n".join(thought),
        calls=calls,
        truncated=output.stop_reason in _CUT,
        repairs=int((output.metadata or {}).get("repairs", 0) or 0),
    )


def _item(state: TaskState) -> Item:
    """The item of a sample, but for its turns."""
    about = state.metadata
    functions = tuple(Function(**one) for one in about["functions"])
    item_id = str(state.sample_id)
    return Item(about["suite"], item_id, about["cluster"], (), about["expected"], functions)


def _arguments(call: ToolCall) -> str:
    """Arguments as JSON; as they were written where they are none."""
    return "" if call.parse_error else json.dumps(call.arguments)


def _message(turn: Turn, index: int, item: Item) -> ChatMessage:
    level = {"level": turn.role}
    if turn.role in ("system", "developer"):
        return ChatMessageSystem(content=turn.text, metadata=level)
    if turn.role == "user":
        return ChatMessageUser(content=turn.text)
    if turn.role == "tool":
        return ChatMessageTool(
            content=turn.text, function=turn.name, tool_call_id=f"{item.id}/{index - 1}"
        )
    if turn.name is None:
        return ChatMessageAssistant(content=turn.text)
    arguments = Call(turn.name, turn.text).parsed()
    if arguments is None:
        raise UsageError(f"item {item.id!r}: {turn.text!r} are no arguments of {turn.name!r}")
    call = ToolCall(id=f"{item.id}/{index}", function=turn.name, arguments=arguments)
    return ChatMessageAssistant(content="", tool_calls=[call])


def _tool(function: Function) -> Any:
    async def never() -> str:
        raise AssertionError("calls of a graded answer are not run")

    definition = ToolDef(
        tool=never,
        name=function.name,
        description=function.description,
        parameters=ToolParams.model_validate({"type": "object"} | dict(function.parameters)),
    )
    return definition.as_tool()


def _provenance(suite: Suite, data: Data | None, seed: int, number: int) -> dict[str, Any]:
    """What a run must state for its number to mean something."""
    found = {"suite": suite.name, "prompt_id": suite.prompt_id, "seed": seed, "items": number}
    if data is None:
        return found
    return found | {
        "source": data.source.title,
        "pin": data.source.pin,
        "licence": data.source.licence,
        "sha256": dict(data.sha256),
    }
