"""Reasoning that led to tool calls, kept for clients that do not send it back."""

from __future__ import annotations

import threading
from collections import OrderedDict

_MAX_CHARS = 1 << 20


class Recall:
    """Reasoning by the id of a tool call; the least recently used is forgotten first.

    Args:
        max_entries: calls to remember.
    """

    def __init__(self, max_entries: int = 4096) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def remember(self, call_id: str, reasoning: str) -> None:
        """Keep the reasoning before a call, unless it is longer than a megabyte."""
        if not reasoning or len(reasoning) > _MAX_CHARS:
            return
        with self._lock:
            self._entries[call_id] = reasoning
            self._entries.move_to_end(call_id)
            while len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def recall(self, call_id: str) -> str | None:
        """The reasoning before a call, if it is still known."""
        with self._lock:
            if call_id in self._entries:
                self._entries.move_to_end(call_id)
            return self._entries.get(call_id)

    def __len__(self) -> int:
        return len(self._entries)
