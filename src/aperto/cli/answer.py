"""One answer of the model, as the terminal and --json report it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aperto.chat import Done


@dataclasses.dataclass(slots=True)
class Answer:
    """What came back for one question, filled while it streams."""

    text: str = ""
    """The answer proper."""
    reasoning: str = ""
    """The reasoning before it."""
    calls: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """Calls of functions: recipient, arguments, and the result of those that a tool answered."""
    finish_reason: str = ""
    """Why it ended: stop, call, length, or cancelled by Ctrl-C."""
    prompt_tokens: int = 0
    """Tokens of the whole prompt."""
    cached_tokens: int = 0
    """Tokens of the prompt that were still in the cache."""
    completion_tokens: int = 0
    """Tokens that were drawn, reasoning included."""
    seed: int = 0
    """Seed that repeats this answer."""
    first_token_s: float = 0.0
    """Seconds from the question to the first token."""
    total_s: float = 0.0
    """Seconds from the question to the end."""
    tokens_per_s: float = 0.0
    """Decoding speed after the first token."""
    repairs: list[str] = dataclasses.field(default_factory=list)
    """Slips in the format of the model's output that were repaired."""

    def finish(self, done: Done) -> None:
        """Take over what is known at the end."""
        self.finish_reason = done.finish_reason
        self.seed = done.seed
        self.prompt_tokens = done.usage.prompt_tokens
        self.cached_tokens = done.usage.cached_tokens
        self.completion_tokens = done.usage.completion_tokens
        self.tokens_per_s = done.timings.tokens_per_s

    def add_result(self, recipient: str, arguments: str, text: str) -> None:
        """Note what a tool said to a call."""
        for call in self.calls:
            same = (call["recipient"], call["arguments"]) == (recipient, arguments)
            if same and "result" not in call:
                call["result"] = text
                return

    def summary(self) -> str:
        """The closing line: tokens, speed, wait and seed."""
        if self.finish_reason == "cancelled":
            return f"stopped · seed {self.seed}"
        parts = [f"{self.completion_tokens} tokens"]
        if self.tokens_per_s:
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        parts.append(f"first after {self.first_token_s:.2f} s")
        parts.append(f"seed {self.seed}")
        if self.finish_reason == "length":
            parts.append("cut at the limit")
        return " · ".join(parts)

    def to_dict(self, *, model: str, effort: str) -> dict[str, Any]:
        """The object that --json prints."""
        return {
            "model": model,
            "answer": self.text,
            "reasoning": self.reasoning,
            "calls": self.calls,
            "finish_reason": self.finish_reason,
            "effort": effort,
            "seed": self.seed,
            "usage": {
                "prompt_tokens": self.prompt_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
            },
            "timings": {
                "first_token_s": round(self.first_token_s, 4),
                "total_s": round(self.total_s, 4),
                "tokens_per_s": round(self.tokens_per_s, 2),
            },
            "repairs": self.repairs,
        }
