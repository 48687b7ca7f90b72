from __future__ import annotations

import pytest

pytest.importorskip("inspect_ai")

from aperto.vet.suites.item import Item, Turn
from aperto.vet.tasks.bridge import questions


def test_a_shared_template_is_not_registered_and_own_words_are() -> None:
    tail = "Think it through, then answer with a letter."
    asked = [f"How many loaves fit into oven number {n}?" for n in range(3)]
    items = tuple(
        Item("bread", f"b/{n}", f"b/{n}", (Turn("user", f"{text}\n\n{tail}"),), {})
        for n, text in enumerate(asked)
    )
    found = questions(items)
    assert tail not in found
    assert set(found) == {*asked, *(f"{text}\n\n{tail}" for text in asked)}
