"""The public names, and the way from a checkpoint folder to an answer on the real core."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.tiny import write_tiny

import aperto
from aperto import machine
from aperto.config import EngineConfig
from aperto.engine import Request, SamplingParams
from aperto.engine.engine import plan_pages
from aperto.engine.memory import CacheShape
from aperto.errors import ConfigError, ContextLengthError, MemoryLimitError, ModelNotFoundError

HEAVY = ("numpy", "tiktoken", "pydantic", "llguidance", "torch", "rich", "aperto._native")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny"
    return write_tiny(path, windows=(8, 0, 40, 0), tokenizer=True, max_context=4096)


@pytest.fixture(scope="module")
def model(folder):
    with aperto.load(folder, threads=1) as model:
        yield model


def test_public_names_are_sorted_and_exist():
    assert aperto.__all__ == sorted(aperto.__all__)
    for name in aperto.__all__:
        assert getattr(aperto, name).__name__ == name
    assert dir(aperto) == aperto.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aperto.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    program = f"import aperto, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


def test_a_model_answers_whatever_it_makes_of_it(model):
    answer = model.chat("Hello", max_tokens=40, seed=1)
    assert answer.usage.completion_tokens <= 40
    assert model.chat("Hello", max_tokens=40, seed=1).messages == answer.messages


def test_tokens_and_logprobs_depend_on_the_request_alone(folder, model):
    """On the real core: crowded or alone, chunked or whole, cached or not, evicted or not."""
    stem = [i * 7 % 300 for i in range(150)]
    requests = [
        Request(
            prompt=[*stem[: 20 * i], i, 3],
            max_tokens=30,
            sampling=SamplingParams(seed=i, temperature=1.0, frequency_penalty=0.1 * i),
            num_top_logprobs=3,
        )
        for i in range(8)
    ]
    alone = [list(model.engine.submit(request)) for request in requests]
    crowded = EngineConfig(
        context_tokens=256,
        cache_tokens=384,
        max_sequences=5,
        max_batch_tokens=24,
        mixed_prefill_tokens=7,
    )
    with aperto.load(folder, threads=2, config=crowded) as other:
        for _ in range(2):  # the second time from the prefix cache
            streams = [other.engine.submit(request) for request in requests]
            assert [list(stream) for stream in streams] == alone
        assert any(stream.usage.cached_tokens for stream in streams)


def test_echoed_logprobs_are_those_of_drawing(model):
    request = Request(
        prompt=[5, 6, 7], max_tokens=20, sampling=SamplingParams(seed=1), num_top_logprobs=2
    )
    drawn = list(model.engine.submit(request))
    text = [5, 6, 7, *(token.id for token in drawn)]
    stream = model.engine.submit(
        Request(prompt=text, max_tokens=0, echo_logprobs=True, num_top_logprobs=2)
    )
    assert list(stream) == []
    assert list(stream.prompt_logprobs[3:]) == drawn


def test_the_cache_is_planned_as_the_core_allocates_it(model):
    core = model.engine._worker._model
    shape = CacheShape(core.config, "q8")
    groups = range(len(core.window_groups))
    assert shape.page_tokens == core.page_tokens
    assert [shape.page_bytes(g) for g in groups] == [core.page_bytes(g) for g in groups]
    assert plan_pages(shape, EngineConfig()) == plan_pages(core, EngineConfig())


def test_what_cannot_be_loaded_is_refused(folder, monkeypatch):
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        aperto.load("no-such-model")
    with pytest.raises(ConfigError, match="context_tokens is 0"):
        aperto.load(folder, context=0)
    with (
        aperto.load(folder, context=100, threads=1) as small,
        pytest.raises(ContextLengthError, match="holds 100"),
    ):
        small.complete([1] * 99, max_tokens=2)
    monkeypatch.setattr(machine, "available_bytes", lambda: 1 << 16)
    with pytest.raises(MemoryLimitError, match=r"GiB for its weights .* 0\.00 GiB are available"):
        aperto.load(folder)
