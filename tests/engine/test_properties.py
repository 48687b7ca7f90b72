"""Whatever arrives in whatever order, each request gets what it would get alone."""

from __future__ import annotations

import dataclasses

from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.engine.drive import check_pages, drain, make_worker, run_until_idle, solo
from tests.fakes import FakeModel

from aperto.config import EngineConfig
from aperto.engine import Request, SamplingParams

CONTEXT = 64
VOCAB = 13


@dataclasses.dataclass
class Arrival:
    step: int
    request: Request
    cancel_after: int | None


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    stems = draw(st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=40), min_size=1, max_size=2))
    result = []
    for _ in range(draw(st.integers(1, 7))):
        stem = draw(st.sampled_from(stems))
        prompt = stem[: draw(st.integers(0, len(stem)))]
        prompt = prompt + draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8))
        sampling = SamplingParams(
            temperature=draw(st.sampled_from([0.0, 1.0])),
            repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
            frequency_penalty=draw(st.sampled_from([0.0, 0.5])),
            seed=draw(st.integers(0, 3)),
        )
        request = Request(
            prompt=prompt,
            max_tokens=draw(st.integers(0, CONTEXT - len(prompt))),
            sampling=sampling,
            stop_ids=draw(st.sampled_from([(), (), (3,)])),
            num_top_logprobs=draw(st.integers(0, 2)),
            echo_logprobs=draw(st.sampled_from([False, False, True])),
        )
        cancel_after = draw(st.none() | st.none() | st.integers(0, 20))
        result.append(Arrival(draw(st.integers(0, 30)), request, cancel_after))
    return result


@st.composite
def setups(draw: st.DrawFn) -> tuple[FakeModel, EngineConfig, tuple[int, ...]]:
    windows = draw(st.sampled_from([(8, 0), (0,), (8,), (1, 0), (5, 0, 13), (3, 4)]))
    page_tokens = draw(st.sampled_from([1, 2, 4, 8]))
    model = FakeModel(windows, page_tokens, VOCAB, CONTEXT)
    sequences = draw(st.integers(1, 4))
    config = EngineConfig(
        context_tokens=CONTEXT,
        max_sequences=sequences,
        max_batch_tokens=draw(st.integers(sequences, 40)),
        mixed_prefill_tokens=draw(st.integers(1, 20)),
        share_prefixes=draw(st.booleans()),
    )
    # From just enough for one sequence of the whole context to plenty.
    least = [
        -(-CONTEXT // page_tokens) if w == 0 else max(0, w - 2) // page_tokens + 2 for w in windows
    ]
    num_pages = tuple(n + draw(st.integers(0, 2 * CONTEXT // page_tokens)) for n in least)
    return model, config, num_pages


@settings(max_examples=300, deadline=None)
@given(setup=setups(), script=arrivals())
def test_every_request_gets_what_it_would_get_alone(setup, script):
    model, config, num_pages = setup
    worker = make_worker(model, config, num_pages)
    sequences = {}
    for step in range(60):
        for idx, arrival in enumerate(script):
            if arrival.step == step:
                sequences[idx] = worker.submit(arrival.request)
            if arrival.cancel_after is not None and arrival.step + arrival.cancel_after == step:
                worker.cancel(sequences[idx])
        worker.read_inbox(wait=False)
        worker.step()
        check_pages(worker)
    run_until_idle(worker)
    check_pages(worker)
    assert not worker.scheduler.running and not worker.scheduler.waiting
    assert all(held == 0 for held in worker.stats().pages_held)

    for idx, sequence in sequences.items():
        arrival = script[idx]
        alone = solo(arrival.request, model, CONTEXT)
        expected = drain(alone)
        tokens = drain(sequence)
        if sequence.channel.finish_reason == "cancelled":
            assert arrival.cancel_after is not None
            assert tokens == expected[: len(tokens)]
            continue
        assert tokens == expected
        assert sequence.channel.finish_reason == alone.channel.finish_reason
        assert sequence.channel.prompt_logprobs == alone.channel.prompt_logprobs
        assert sequence.channel.error is None


@settings(max_examples=100, deadline=None)
@given(
    window=st.integers(1, 20),
    page_tokens=st.sampled_from([1, 2, 4, 8]),
    sequences=st.integers(1, 4),
    more_batch_tokens=st.integers(0, 24),
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    share=st.booleans(),
)
# Without the page that admission leaves each sequence, the last one waits here.
@example(3, 4, 3, 2, [10, 31, 15, 6, 43, 44, 21, 7], False)
def test_planned_windowed_pages_suffice_for_all_sequences(
    window, page_tokens, sequences, more_batch_tokens, lengths, share
):
    model = FakeModel((window, 0), page_tokens, VOCAB, CONTEXT)
    config = EngineConfig(
        context_tokens=CONTEXT,
        cache_tokens=CONTEXT * 8,  # whole-context pages are never what is lacking
        max_sequences=sequences,
        max_batch_tokens=sequences + more_batch_tokens,
        mixed_prefill_tokens=sequences + more_batch_tokens,
        share_prefixes=share,
    )
    worker = make_worker(model, config)
    for length in lengths:
        worker.submit(Request(prompt=[length] * length, max_tokens=CONTEXT - length))
    scheduler = worker.scheduler
    schedule = scheduler.schedule

    def checked():
        unfinished = len(scheduler.running) + len(scheduler.waiting)
        batch = schedule()
        assert len(scheduler.running) == min(sequences, unfinished)
        return batch

    scheduler.schedule = checked
    run_until_idle(worker)


@settings(max_examples=60, deadline=None)
@given(setup=setups(), prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60))
def test_a_repeated_prompt_is_cached_truthfully(setup, prompt):
    model, config, num_pages = setup
    worker = make_worker(model, config, num_pages)
    request = Request(prompt=prompt, max_tokens=2, sampling=SamplingParams(seed=1))
    first = worker.submit(request)
    run_until_idle(worker)
    computed = model.num_computed
    second = worker.submit(request)
    run_until_idle(worker)
    assert drain(first) == drain(second)
    # The second token's keys and values are never needed: 1 of the 2 answer tokens is computed.
    assert model.num_computed - computed == len(prompt) + 1 - second.channel.cached_tokens
    if not config.share_prefixes:
        assert second.channel.cached_tokens == 0
    if config.share_prefixes and model.window_groups == (0,):
        # Nothing was evicted in between: all full pages before the last token are found.
        reusable = (len(prompt) - 1) // model.page_tokens * model.page_tokens
        assert second.channel.cached_tokens == reusable
