"""Conversations cut so that all the assistant says is learnt after the prompt it would see.

When the model runs, the reasoning of a turn is dropped from the prompt as soon as the turn has
ended. So a turn with reasoning is an example of its own, that ends with it; turns without any are
learnt in the next example, in which they stand as the model sees them. Several calls made at once
are an example of their own too, since later prompts show them as calls one after the other. Each
message is learnt once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from aperto.harmony.messages import ANALYSIS, FINAL, Conversation, Message, Role


def said_as_seen(conversation: Conversation) -> list[Conversation]:
    """The conversation up to each place where later prompts would show it otherwise.

    Assistant messages that an earlier part has taught have weight 0, and parts without any weight
    are left out.
    """
    messages = conversation.messages
    parts, start = [], 0
    for end in _ends(messages):
        known = [_without_weight(message) for message in messages[:start]]
        part = Conversation((*known, *messages[start:end]))
        if any(_is_learnt(message) for message in part):
            parts.append(part)
        start = end
    return parts


def _ends(messages: Sequence[Message]) -> list[int]:
    """Where parts end, as lengths; the last is the whole conversation."""
    ends = []
    reasons = False
    for index, message in enumerate(messages[:-1]):
        if message.role is Role.USER:
            reasons = False
        reasons |= message.channel == ANALYSIS and _is_learnt(message)
        if (message.channel == FINAL and reasons) or _ends_calls(messages, index):
            ends.append(index + 1)
    return [*ends, len(messages)]


def _ends_calls(messages: Sequence[Message], index: int) -> bool:
    """Whether a message is the last of several calls made at once."""
    here = _is_call(messages[index]) and not _is_call(messages[index + 1])
    return here and index > 0 and _is_call(messages[index - 1])


def _is_call(message: Message) -> bool:
    return message.role is Role.ASSISTANT and message.recipient is not None


def _is_learnt(message: Message) -> bool:
    return message.role is Role.ASSISTANT and message.weight > 0


def _without_weight(message: Message) -> Message:
    return dataclasses.replace(message, weight=0.0) if _is_learnt(message) else message
