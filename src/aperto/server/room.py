"""How long an answer may get: what the context has room for, and what reasoning must leave."""

from __future__ import annotations

import dataclasses

from aperto.chat import ChatOptions
from aperto.harmony import Conversation
from aperto.server.pool import Lease

_ANSWER_SHARE = 4
_MOST_ANSWER_TOKENS = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Fitted:
    """Options that fit the context."""

    options: ChatOptions
    """How to answer, with max_tokens cut to the room there is."""
    prompt_tokens: int | None = None
    """Tokens of the prompt; None where they were not counted, as nothing was to be fitted."""
    warning: str | None = None
    """What was lowered, where something was."""


def kept_for_answer(max_tokens: int | None) -> int:
    """Tokens that reasoning must leave to the answer."""
    return min((max_tokens or 0) // _ANSWER_SHARE, _MOST_ANSWER_TOKENS)


def fitted(
    lease: Lease, conversation: Conversation, options: ChatOptions, field: str = "max_tokens"
) -> Fitted:
    """The options with max_tokens cut to what a leased model's context has room for.

    A prompt that leaves no room is not cut: submitting it raises ContextLengthError. `field` is
    the client's name for the limit.
    """
    wanted = options.max_tokens
    if wanted is None:
        return Fitted(options)
    prompt = len(lease.model.conversations.prompt_ids(conversation, options))
    limit = lease.engine.limit_tokens
    room = limit - prompt
    if not 0 < room < wanted:
        return Fitted(options, prompt)
    warning = (
        f"{field}: {wanted} was lowered to {room}, the room that {prompt} tokens of prompt leave "
        f"in a context of {limit}"
    )
    kept = min(options.answer_tokens, room // _ANSWER_SHARE)
    return Fitted(
        dataclasses.replace(options, max_tokens=room, answer_tokens=kept), prompt, warning
    )
