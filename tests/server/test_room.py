from __future__ import annotations

from types import SimpleNamespace

import pytest

from aperto.chat import ChatOptions
from aperto.harmony import Conversation
from aperto.server.room import fitted, kept_for_answer

PROMPT_TOKENS, LIMIT_TOKENS = 60, 100


@pytest.fixture
def lease():
    chat = SimpleNamespace(prompt_ids=lambda conversation, options: [0] * PROMPT_TOKENS)
    engine = SimpleNamespace(limit_tokens=LIMIT_TOKENS)
    return SimpleNamespace(model=SimpleNamespace(conversations=chat), engine=engine)


def test_what_is_too_much_is_lowered_with_the_numbers(lease):
    options = ChatOptions(max_tokens=4000, answer_tokens=1000)
    found = fitted(lease, Conversation(()), options, "max_output_tokens")
    assert (found.options.max_tokens, found.options.answer_tokens) == (40, 10)
    assert found.prompt_tokens == PROMPT_TOKENS
    for word in ("max_output_tokens: 4000", "lowered to 40", "60 tokens", "context of 100"):
        assert word in found.warning


@pytest.mark.parametrize("most", [None, 1, 40])
def test_what_fits_stays(lease, most):
    options = ChatOptions(max_tokens=most)
    found = fitted(lease, Conversation(()), options)
    assert (found.options, found.warning) == (options, None)


def test_a_prompt_without_room_is_left_for_the_engine_to_refuse(lease):
    lease.engine.limit_tokens = PROMPT_TOKENS
    options = ChatOptions(max_tokens=5)
    assert fitted(lease, Conversation(()), options).options == options


@pytest.mark.parametrize(
    ("most", "kept"), [(None, 0), (3, 0), (400, 100), (4096, 1024), (100000, 1024)]
)
def test_a_quarter_is_kept_for_the_answer_up_to_a_limit(most, kept):
    assert kept_for_answer(most) == kept
