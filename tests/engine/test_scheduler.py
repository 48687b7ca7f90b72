"""Admission, chunks, sharing and yielding, one rule at a time."""

from __future__ import annotations

import dataclasses

import pytest
from tests.engine.drive import check_pages, drain, make_worker, run_until_idle, solo
from tests.fakes import FakeModel, sample

from aperto.config import EngineConfig
from aperto.engine import Request, SamplingParams
from aperto.engine.engine import default_context_tokens, plan_pages
from aperto.errors import ConfigError

GREEDY = SamplingParams(temperature=0.0)


def request(prompt, max_tokens=4, **options):
    return Request(prompt=prompt, max_tokens=max_tokens, sampling=GREEDY, **options)


def step(worker):
    worker.read_inbox(wait=False)
    worker.step()
    check_pages(worker)


def test_a_long_prompt_does_not_hold_up_an_answer():
    model = FakeModel()
    config = EngineConfig(max_batch_tokens=32, mixed_prefill_tokens=8, context_tokens=256)
    worker = make_worker(model, config)
    answering = worker.submit(request([1, 2, 3], max_tokens=20))
    step(worker)
    worker.submit(request(list(range(60)), max_tokens=1))
    for _ in range(5):
        drawn = answering.channel.completion_tokens
        step(worker)
        assert answering.channel.completion_tokens == drawn + 1
        assert model.batch_sizes[-1] == 1 + 8


def test_a_short_prompt_does_not_wait_for_a_long_one():
    worker = make_worker(FakeModel(), EngineConfig(max_batch_tokens=32, context_tokens=256))
    worker.submit(request([i % 60 for i in range(200)], max_tokens=1))
    short = worker.submit(request([5] * 10, max_tokens=1))
    step(worker)
    assert short.channel.completion_tokens == 1


def test_budget_that_short_prompts_leave_goes_to_long_ones():
    model = FakeModel()
    worker = make_worker(model, EngineConfig(max_batch_tokens=32, context_tokens=256))
    worker.submit(request([1] * 4))
    worker.submit(request([2] * 100))
    step(worker)
    assert model.batch_sizes == [32]


def test_equal_prefixes_are_computed_once_and_held_together():
    model = FakeModel(windows=(8, 0), page_tokens=4)
    worker = make_worker(model, EngineConfig(context_tokens=64))
    stem = list(range(30))
    first = worker.submit(request([*stem, 40], max_tokens=8))
    step(worker)
    second = worker.submit(request([*stem, 41], max_tokens=8))
    computed = model.num_computed
    step(worker)
    assert second.channel.cached_tokens == 28
    assert model.num_computed - computed == 1 + (31 - 28)
    full = worker.pages.pools[1]
    assert sum(refs == 2 for refs in full.refs) == 7
    run_until_idle(worker)
    for sequence, last in ((first, 40), (second, 41)):
        assert drain(sequence) == drain(solo(request([*stem, last], max_tokens=8), model, 64))


@pytest.mark.parametrize("windows", [(0,), (8, 0), (8,)])
def test_equal_pages_after_other_prefixes_are_not_shared(windows):
    model = FakeModel(windows=windows, page_tokens=4)
    worker = make_worker(model, EngineConfig(context_tokens=64))
    tail = [7, 7, 7, 7] * 3
    prompts = [[7, 7, 7, 7, *tail, 1], [1, 2, 3, 4, *tail, 1], [*tail, 1], [1, 2, 3, 4] * 2 + tail]
    for prompt in prompts:
        sequence = worker.submit(request(prompt))
        run_until_idle(worker)
        assert drain(sequence) == drain(solo(request(prompt), model, 64))


def test_a_windowed_prefix_needs_only_the_pages_in_the_window():
    model = FakeModel(windows=(8, 0), page_tokens=4)
    worker = make_worker(model, EngineConfig(context_tokens=64, max_batch_tokens=16))
    prompt = list(range(33))
    worker.submit(request(prompt, max_tokens=1))
    run_until_idle(worker)
    windowed = worker.pages.pools[0]
    last = {worker.pages.prefix_nodes[i].pages[0] for i in (6, 7)}  # positions 24..31
    taken = []
    while set(windowed.cached_pages) - last:  # evict all that lies behind the window
        page, node = windowed.take()
        if page in last:
            raise AssertionError("the window's pages went before older ones")
        if node is not None:
            node.pages[0] = -1
        taken.append(page)
    for page in taken:
        windowed.release(page)
    again = worker.submit(request(prompt, max_tokens=4))
    worker.read_inbox(wait=False)
    worker.step()
    assert again.channel.cached_tokens == 32
    run_until_idle(worker)
    assert drain(again) == drain(solo(request(prompt, max_tokens=4), model, 64))


def test_a_windowed_group_holds_only_its_window_during_generation():
    model = FakeModel(windows=(8, 0), page_tokens=4)
    worker = make_worker(model, EngineConfig(context_tokens=256))
    sequence = worker.submit(request([1], max_tokens=100))
    for _ in range(90):
        step(worker)
        assert sequence.end_pages[0] - sequence.first_pages[0] <= 3
    assert worker.stats().pages_held[1] == -(-sequence.num_computed // 4)


def test_the_youngest_yields_and_is_computed_again():
    model = FakeModel(windows=(0,), page_tokens=4)
    config = EngineConfig(context_tokens=40, share_prefixes=False)
    worker = make_worker(model, config, (10,))
    requests = [request([i, i + 1], max_tokens=30) for i in (1, 11)]
    sequences = [worker.submit(r) for r in requests]
    step(worker)
    assert len(worker.scheduler.running) == 2
    for _ in range(20):
        step(worker)
    assert worker.scheduler.running == [sequences[0]]
    assert list(worker.scheduler.waiting) == [sequences[1]]
    run_until_idle(worker)
    for sequence, r in zip(sequences, requests, strict=True):
        assert drain(sequence) == drain(solo(r, model, 40))


def test_who_lacked_a_page_and_left_does_not_keep_others_waiting():
    model = FakeModel(windows=(0,), page_tokens=4)
    config = EngineConfig(context_tokens=12, max_sequences=2, share_prefixes=False)
    worker = make_worker(model, config, (3,))
    worker.submit(request([1], max_tokens=5))
    lacking = worker.submit(request([2], max_tokens=10))
    waiting = worker.submit(request([3], max_tokens=1))
    for _ in range(5):
        step(worker)
    assert worker.scheduler.running == [lacking]
    assert lacking.channel.completion_tokens == 4  # its fifth found no page
    worker.cancel(lacking)
    run_until_idle(worker)
    assert waiting.channel.finish_reason == "length"


def test_evicted_pages_are_the_least_recently_used():
    model = FakeModel(windows=(0,), page_tokens=4)
    worker = make_worker(model, EngineConfig(context_tokens=40), (10,))
    old, recent = [1] * 13, [2] * 13
    for prompt in (old, recent, [3] * 25):
        worker.submit(request(prompt, max_tokens=1))
        run_until_idle(worker)
    kept = worker.submit(request(recent, max_tokens=1))
    run_until_idle(worker)
    lost = worker.submit(request(old, max_tokens=1))
    run_until_idle(worker)
    assert kept.channel.cached_tokens == 12
    assert lost.channel.cached_tokens < 12


def test_echo_reports_the_prompts_own_logprobs():
    model = FakeModel(page_tokens=4)
    worker = make_worker(model, EngineConfig(context_tokens=256))
    prompt = [i % 60 for i in range(150)]
    plain = worker.submit(request(prompt, max_tokens=0))
    run_until_idle(worker)
    sequence = worker.submit(request(prompt, max_tokens=0, echo_logprobs=True, num_top_logprobs=3))
    run_until_idle(worker)
    assert drain(plain) == drain(sequence) == []
    assert sequence.channel.finish_reason == "length"
    echoed = sequence.channel.prompt_logprobs
    assert echoed[0] is None
    assert [t.id for t in echoed[1:]] == prompt[1:]
    for cut in (1, 17, 149):
        teacher = worker.submit(
            Request(prompt=prompt[:cut], max_tokens=1, sampling=GREEDY, num_top_logprobs=20)
        )
        run_until_idle(worker)
        (token,) = drain(teacher)
        assert echoed[cut].top_logprobs == token.top_logprobs[:3]
        assert dict(token.top_logprobs).get(echoed[cut].id, echoed[cut].logprob) == (
            echoed[cut].logprob
        )


def test_draws_are_keyed_by_seed_and_position():
    positions = []

    def recording(logits, rows):
        positions.extend((row.seed, row.position) for row in rows)
        return sample(logits, rows)

    worker = make_worker(FakeModel(), EngineConfig(context_tokens=64))
    worker.sampler = recording
    params = SamplingParams(seed=-1)
    worker.submit(Request(prompt=[1, 2, 3], max_tokens=3, sampling=params))
    run_until_idle(worker)
    assert positions == [(2**64 - 1, 3), (2**64 - 1, 4), (2**64 - 1, 5)]


def test_pages_are_planned_from_context_and_window():
    model = FakeModel(windows=(8, 0), page_tokens=4, max_context=100_000)
    config = EngineConfig(context_tokens=4096, max_sequences=2, max_batch_tokens=64)
    # 64 new positions behind 2 windows, 2 pages for the ends of each, 1 each for admission.
    working = (64 + 2 * (8 - 3)) // 4 + 2 * 2 + 2
    assert plan_pages(model, config) == (working, 1024)
    longer = dataclasses.replace(config, context_tokens=65536)
    assert plan_pages(model, longer) == (working, 16384)
    assert plan_pages(model, EngineConfig(context_tokens=4096, cache_tokens=100)) == (25, 25)


def chat_turn(worker, prompt, max_tokens, **options):
    sequence = worker.submit(request(prompt, max_tokens=max_tokens, **options))
    run_until_idle(worker)
    return sequence


def long_chat(share_prefixes=True):
    """A windowed pool of 32 pages, where the text of an answer takes 60."""
    model = FakeModel(windows=(8, 0), page_tokens=4, max_context=1024)
    config = EngineConfig(
        context_tokens=1024,
        cache_tokens=4096,
        max_sequences=2,
        max_batch_tokens=64,
        share_prefixes=share_prefixes,
    )
    return make_worker(model, config), model


def test_a_turn_whose_reasoning_was_dropped_goes_on_from_the_cut():
    worker, model = long_chat()
    prompt = [i % 50 for i in range(41)]
    first = chat_turn(worker, prompt, 240)
    assert worker.pages.pools[0].num_pages < 240 // 4
    follow_up = [*prompt, 60, 61, 62]
    second = chat_turn(worker, follow_up, 4)
    assert second.channel.cached_tokens == 40
    assert first.channel.completion_tokens == 240
    assert drain(second) == drain(solo(request(follow_up), model, 1024))


@pytest.mark.parametrize("num_tokens", [40, 41])
def test_a_repeated_prompt_is_found_after_a_long_answer(num_tokens):
    worker, _ = long_chat()
    prompt = [i % 50 for i in range(num_tokens)]
    chat_turn(worker, prompt, 240)
    assert chat_turn(worker, prompt, 1).channel.cached_tokens == (num_tokens - 1) // 4 * 4


def test_where_two_texts_branch_off_the_window_is_kept_for_a_third():
    worker, _ = long_chat()
    stem = [i % 50 for i in range(80)]
    for last in (51, 52):
        chat_turn(worker, stem + [last] * 200, 1)
    assert chat_turn(worker, stem + [53] * 200, 1).channel.cached_tokens == 80


def test_a_turn_after_tool_rounds_goes_on_from_the_cut_before_its_reasoning():
    worker, model = long_chat()
    question = [i % 50 for i in range(41)]
    text = list(question)
    for round_ in range(6):  # reasoning, a call and its result, all dropped when the turn is over
        text += [round_] * 100
        chat_turn(worker, text, 20, cut_points=(20, 41, len(text)))
    chat_turn(worker, [51] * 150, 1)
    follow_up = [*question, 60, 61, 62]
    after = chat_turn(worker, follow_up, 4)
    assert after.channel.cached_tokens == 40
    assert drain(after) == drain(solo(request(follow_up), model, 1024))


def test_default_context_grows_with_what_its_keys_and_values_cost():
    model = FakeModel(windows=(8, 0), page_tokens=4, max_context=100_000)
    assert default_context_tokens(model) == 100_000
    model.page_bytes = lambda group: 4 * 20_000  # 20 kB a token: 13,421 of them in 256 MiB
    assert default_context_tokens(model) == 8192
    model.page_bytes = lambda group: 4 * 10_000
    assert default_context_tokens(model) == 16384
    model.page_bytes = lambda group: 4 * 10**6
    assert default_context_tokens(model) == 8192


@pytest.mark.parametrize(
    "options",
    [{"max_sequences": 0}, {"max_waiting": -1}, {"max_batch_tokens": 4}, {"context_tokens": 1.5}],
)
def test_engine_config_refuses(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        EngineConfig(**options)
