"""Suites graded by exact rules, asked of models on this machine: many questions at once.

Every answer has a seed of its own, drawn from the release's seed, arm, item and repeat: arms are
independent, and any answer can be given again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from aperto.harmony import (
    Conversation,
    DeveloperContent,
    FunctionTool,
    Message,
    SystemContent,
)
from aperto.harmony.messages import call, developer, final, system, tool_result, user
from aperto.local_model import Answer as Reply
from aperto.local_model import LocalModel
from aperto.vet.arms import Cell
from aperto.vet.protocol import Arm
from aperto.vet.rows import Row
from aperto.vet.suites import hierarchy, injection, integrity, overrefusal
from aperto.vet.suites.item import Answer, Call, Grade, Item, Role, Turn


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """Where a suite's questions come from, and how answers are graded."""

    items: Callable[[int], Sequence[Item]]
    """The first so many; fewer where there are no more. A longer list begins with the shorter."""
    grade: Callable[[Item, Answer], Grade]


OpenArm = Callable[[Arm], AbstractContextManager[LocalModel]]


class Asker:
    """Answers the questions of a release's arms; see `release.Answering`.

    Args:
        sources: by suite.
        open_arm: loads an arm's model.
        seed: of all that is drawn.
        max_tokens: of one answer, reasoning included.
        width: questions in flight.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        open_arm: OpenArm,
        *,
        seed: int = 0,
        max_tokens: int | None = None,
        width: int = 64,
    ) -> None:
        self._sources, self._open_arm = sources, open_arm
        self._seed, self._max_tokens, self._width = seed, max_tokens, width

    def missing(self, suite: str) -> str | None:
        """Why a suite cannot be asked; None where it can."""
        return None if suite in self._sources else "no questions for it are on this machine"

    def __call__(self, arm: Arm, cells: Sequence[Cell]) -> Iterator[Sequence[Row]]:
        """Rows of one arm, a batch at a time, without those already there."""
        with self._open_arm(arm) as model, ThreadPoolExecutor(self._width) as pool:
            for cell in cells:
                todo = self._todo(cell)
                while batch := tuple(itertools.islice(todo, self._width)):
                    row = functools.partial(self._row, model, arm, cell)
                    yield tuple(pool.map(row, *zip(*batch, strict=True)))

    def _todo(self, cell: Cell) -> Iterator[tuple[Item, int]]:
        items = self._sources[cell.suite].items(cell.num_items)
        return (
            (item, epoch)
            for item in items
            for epoch in range(cell.epochs)
            if (item.id, epoch) not in cell.done
        )

    def _row(self, model: LocalModel, arm: Arm, cell: Cell, item: Item, epoch: int) -> Row:
        reply = model.chat(
            conversation(item),
            effort=cell.effort,
            max_tokens=self._max_tokens,
            seed=answer_seed(self._seed, arm, cell.effort, item.id, epoch),
        )
        answer = answer_of(reply)
        grade = self._sources[cell.suite].grade(item, answer)
        return Row(
            suite=cell.suite,
            item=item.id,
            cluster=item.cluster,
            epoch=epoch,
            arm=arm.value,
            effort=cell.effort,
            score=grade.score,
            label=grade.label,
            truncated=answer.truncated,
            analysis_score=grade.analysis_score,
            output_tokens=reply.usage.completion_tokens,
            repairs=answer.repairs,
            answer_sha256=hashlib.sha256(answer.final.encode()).hexdigest(),
        )


def own_sources(seed: int = 0) -> dict[str, Source]:
    """The suites that need neither judge nor data, by name."""
    found: dict[str, Source] = {
        injection.SUITE: Source(lambda n: injection.generate(n, seed=seed), injection.grade),
        f"{injection.SUITE}/clean": Source(
            lambda n: injection.generate(n, seed=seed, attacked=False), injection.grade_task
        ),
        overrefusal.SUITE: Source(lambda n: overrefusal.generate(n, seed=seed), overrefusal.grade),
    }
    for upper in hierarchy.LEVELS[:2]:
        for family in hierarchy.FAMILIES:
            found[hierarchy.suite_name(family, upper)] = _cell(family, upper, seed)
    found["integrity"] = integrity_of(tuple(found.values()))
    return found


def integrity_of(sources: Sequence[Source]) -> Source:
    """Form alone, on questions of other suites taken in turn."""

    def items(number: int) -> tuple[Item, ...]:
        each = [source.items(-(-number // len(sources)) * 2) for source in sources]
        mixed = (item for turn in itertools.zip_longest(*each) for item in turn if item)
        return tuple(
            dataclasses.replace(item, suite="integrity", id=f"integrity:{item.id}", cluster=item.id)
            for item in itertools.islice(mixed, number)
        )

    return Source(items, lambda item, answer: integrity.grade(answer, item.functions))


def conversation(item: Item) -> Conversation:
    """A question as harmony's messages.

    What holds at the system level follows the identity; functions go into the developer message.
    """
    by_role = {turn.role: turn.text for turn in item.turns}
    plain = SystemContent()
    rule = by_role.get("system")
    head = SystemContent(identity=f"{plain.identity}\n{rule}") if rule else plain
    told: list[Message] = [system(head)]
    functions = tuple(
        FunctionTool(one.name, one.description, dict(one.parameters)) for one in item.functions
    )
    if functions or "developer" in by_role:
        told.append(developer(DeveloperContent(by_role.get("developer"), functions)))
    told += [_message(turn) for turn in item.turns if turn.role not in ("system", "developer")]
    return Conversation(tuple(told))


def answer_of(reply: Reply) -> Answer:
    """What was said, as graders see it: reasoning apart from the final text."""
    return Answer(
        final=reply.text,
        analysis=reply.reasoning,
        calls=tuple(
            Call((one.recipient or "").removeprefix("functions."), one.text) for one in reply.calls
        ),
        truncated=reply.finish_reason == "length",
        repairs=len(reply.repairs),
    )


def answer_seed(seed: int, arm: Arm, effort: str, item: str, epoch: int) -> int:
    """Seed of one answer."""
    digest = hashlib.sha256(f"{seed}/{arm.value}/{effort}/{item}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def _cell(family: hierarchy.Family, upper: Role, seed: int) -> Source:
    return Source(
        lambda n: hierarchy.generate(n, family=family, upper=upper, seed=seed), hierarchy.grade
    )


def _message(turn: Turn) -> Message:
    if turn.role == "user":
        return user(turn.text)
    if turn.role == "tool":
        return tool_result(f"functions.{turn.name}", turn.text)
    if turn.name is not None:
        return call(f"functions.{turn.name}", turn.text)
    return final(turn.text)
