"""A conversation in the terminal: what was said, how the model is asked, one answer at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from aperto.chat import ChatEvent, ChatOptions, Done, ToolEnd
from aperto.cli.answer import Answer
from aperto.cli.screen import Screen
from aperto.config import Effort
from aperto.engine import SamplingParams
from aperto.errors import UsageError
from aperto.harmony import Conversation, Message, MessageEnd, MessageStart, Repair, Role, TextDelta
from aperto.harmony import messages as harmony

if TYPE_CHECKING:
    from aperto.tools import Tool

log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Asking:
    """How the model is asked; commands of the chat change it."""

    effort: Effort = "medium"
    """Reasoning effort."""
    system: str = ""
    """Instructions before the conversation (harmony's developer message)."""
    seed: int | None = None
    """Seed of every answer; None draws a new one for each."""
    temperature: float = 1.0
    """Sampling temperature."""
    top_p: float = 1.0
    """Share of probability that is kept."""
    max_tokens: int | None = None
    """Most tokens of an answer; None means up to the end of the context."""


class Talker(Protocol):
    """What answers conversations: `aperto.chat.Chat`, or a stand-in."""

    def stream(
        self, conversation: Conversation, options: ChatOptions | None = None
    ) -> Iterator[ChatEvent]:
        """Start an answer; closing the iterator stops it."""


class Session:
    """What was said so far, and the model that answers."""

    def __init__(self, talker: Talker, asking: Asking, tools: tuple[Tool, ...] = ()) -> None:
        self.tools = tools
        """What the model may call."""
        self.talker = talker
        """What answers."""
        self.asking = asking
        """How it is asked."""
        self.turns: list[Message] = []
        """Everything said, without the system and developer messages that `asking` makes."""
        self._is_call = False

    def conversation(self) -> Conversation:
        """The whole conversation as the model gets it."""
        effort = harmony.Effort(self.asking.effort)
        head = [harmony.system(harmony.SystemContent(effort=effort))]
        if self.asking.system:
            head.append(harmony.developer(self.asking.system))
        return Conversation((*head, *self.turns))

    def ask(self, text: str, screen: Screen) -> Answer:
        """Put a question and show the answer as it comes.

        Ctrl-C ends the answer; what was said until then stays in the conversation. A question that
        the model cannot take is dropped from it again, and its error raised.
        """
        said = len(self.turns)
        self.turns.append(harmony.user(text))
        try:
            return self._answer(screen)
        except Exception:
            del self.turns[said:]
            raise

    def retry(self, screen: Screen) -> Answer:
        """Answer the last question again. Raises UsageError where there was none."""
        last = max((i for i, m in enumerate(self.turns) if m.role is Role.USER), default=None)
        if last is None:
            raise UsageError("there is no question yet to answer again")
        before = self.turns[last + 1 :]
        del self.turns[last + 1 :]
        try:
            return self._answer(screen)
        except Exception:
            self.turns[last + 1 :] = before
            raise

    def _answer(self, screen: Screen) -> Answer:
        seed = secrets.randbelow(2**32) if self.asking.seed is None else self.asking.seed
        answer, started = Answer(seed=seed), time.perf_counter()
        screen.wait()
        try:
            with contextlib.closing(self._events(seed)) as events:
                for event in events:
                    answer.first_token_s = answer.first_token_s or time.perf_counter() - started
                    self._take(event, answer, screen)
        except KeyboardInterrupt:
            answer.finish_reason = "cancelled"
            self._keep_what_was_cut(answer)
        except BaseException:
            screen.abort()
            raise
        answer.total_s = time.perf_counter() - started
        screen.end(answer)
        return answer

    def _events(self, seed: int) -> Generator[ChatEvent]:
        """The events of an answer; closing it stops the model."""
        asking = self.asking
        options = ChatOptions(
            max_tokens=asking.max_tokens,
            sampling=SamplingParams(temperature=asking.temperature, top_p=asking.top_p, seed=seed),
            tools=self.tools,
        )
        yield from self.talker.stream(self.conversation(), options)

    def _take(self, event: ChatEvent, answer: Answer, screen: Screen) -> None:
        match event:
            case MessageStart():
                self._is_call = event.recipient is not None
            case TextDelta() if not self._is_call:  # a call is shown when it is whole
                self._take_text(event, answer, screen)
            case MessageEnd():
                self._take_message(event.message, answer, screen)
            case ToolEnd():
                self._take_results(event, answer, screen)
            case Repair():
                answer.repairs.append(f"{event.kind}: {event.detail}")
                log.info("mended the model's output: %s: %r", event.kind, event.detail)
            case Done():
                answer.finish(event)

    def _take_message(self, message: Message, answer: Answer, screen: Screen) -> None:
        self.turns.append(message)
        if message.recipient:
            answer.calls.append({"recipient": message.recipient, "arguments": message.text})
            screen.call(message.recipient, message.text)

    def _take_results(self, event: ToolEnd, answer: Answer, screen: Screen) -> None:
        self.turns += event.results
        text = "\n".join(message.text for message in event.results)
        answer.add_result(event.call.recipient or "", event.call.text, text)
        screen.result(text)

    def _take_text(self, delta: TextDelta, answer: Answer, screen: Screen) -> None:
        if delta.channel == harmony.ANALYSIS:
            answer.reasoning += delta.text
            screen.reasoning(delta.text)
        else:
            answer.text += delta.text
            screen.answer(delta.text)

    def _keep_what_was_cut(self, answer: Answer) -> None:
        """After Ctrl-C the last message was never closed: keep the text that was shown."""
        if self.turns[-1].channel != harmony.FINAL:
            self.turns.append(harmony.final(answer.text))

    def save(self, path: Path) -> None:
        """Write the conversation as JSON. Raises UsageError where the file cannot be written."""
        text = json.dumps(self.conversation().to_dict(), indent=2, ensure_ascii=False)
        try:
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error

    def load(self, path: Path) -> None:
        """Take up a saved conversation. Raises UsageError for a file that holds none."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise UsageError(f"{path} is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise UsageError(f"{path} holds no conversation; expected what /save writes")
        self._take_up(Conversation.from_dict(raw))

    def _take_up(self, conversation: Conversation) -> None:
        system = ""
        for message in conversation:
            if isinstance(message.content, harmony.DeveloperContent):
                system = message.content.instructions or ""
            elif isinstance(message.content, harmony.SystemContent) and message.content.effort:
                self.asking.effort = message.content.effort.value
        self.asking.system = system
        self.turns = [m for m in conversation if m.role not in (Role.SYSTEM, Role.DEVELOPER)]
