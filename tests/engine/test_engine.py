"""The engine's thread: streams, cancellation, refusals and failures."""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tests.engine.drive import drain, solo
from tests.fakes import FakeModel, sample

from aperto.config import EngineConfig
from aperto.engine import Engine, Request, SamplingParams
from aperto.errors import (
    ConfigError,
    ContextLengthError,
    EngineClosedError,
    EngineError,
    QueueFullError,
)

GREEDY = SamplingParams(temperature=0.0)
CONTEXT = 128


def make_engine(model=None, **options):
    config = EngineConfig(**{"context_tokens": CONTEXT, "max_batch_tokens": 32, **options})
    return Engine(model or FakeModel(), config, sampler=sample)


def request(prompt=(1, 2, 3), max_tokens=5, **options):
    return Request(**{"prompt": prompt, "max_tokens": max_tokens, "sampling": GREEDY, **options})


def wait_until(condition, what):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.001)


def is_empty(engine):
    stats = engine.stats()
    return stats.num_running == stats.num_waiting == 0 and not any(stats.pages_held)


def test_a_stream_yields_tokens_and_tells_how_it_went():
    with make_engine() as engine:
        stream = engine.submit(request(num_top_logprobs=2))
        tokens = list(stream)
        assert tokens == drain(solo(request(num_top_logprobs=2), FakeModel(), CONTEXT))
        assert stream.finish_reason == "length"
        assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (3, 5)
        assert stream.usage.cached_tokens == 0
        assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 for t in tokens)
        assert stream.timings.decode_tokens == 4
        assert stream.timings.tokens_per_s > 0
        assert list(stream) == []  # exhausted, not stuck


def test_async_iteration_gives_the_same():
    async def collect(engine, seed):
        async with engine.submit(request(sampling=SamplingParams(seed=seed))) as stream:
            return [token async for token in stream]

    async def collect_all(engine):
        return await asyncio.gather(*(collect(engine, seed) for seed in range(8)))

    with make_engine() as engine:
        for seed, tokens in enumerate(asyncio.run(collect_all(engine))):
            alone = solo(request(sampling=SamplingParams(seed=seed)), FakeModel(), CONTEXT)
            assert tokens == drain(alone)


def test_a_stop_token_is_delivered_and_ends_the_answer():
    with make_engine() as engine:
        plain = list(engine.submit(request()))
        stream = engine.submit(request(stop_ids={plain[2].id}))
        assert list(stream) == plain[:3]
        assert stream.finish_reason == "stop"


def test_a_drawn_seed_is_reported_and_repeats_the_answer():
    with make_engine() as engine:
        first = engine.submit(request(max_tokens=20, sampling=SamplingParams()))
        tokens = list(first)
        again = engine.submit(request(max_tokens=20, sampling=SamplingParams(seed=first.seed)))
        assert list(again) == tokens


@pytest.mark.parametrize("how", ["close", "with", "drop", "async"])
def test_cancelling_frees_the_pages(how):
    model = FakeModel()
    model.gate = threading.Semaphore(0)
    with make_engine(model) as engine:
        stream = engine.submit(request(max_tokens=100))
        model.gate.release(3)
        next(stream)
        if how == "close":
            stream.close()
            assert stream.finish_reason == "cancelled"
            assert list(stream) == []
        elif how == "with":
            with stream:
                pass
        elif how == "drop":
            del stream
            gc.collect()
        else:

            async def leave():
                async with stream:
                    await anext(stream)

            asyncio.run(leave())
        model.gate.release(1000)
        wait_until(lambda: is_empty(engine), "the pages are free")
        assert model.num_computed < 50


def test_cancelling_a_waiting_request_and_twice_and_late():
    model = FakeModel()
    model.gate = threading.Semaphore(0)
    with make_engine(model, max_sequences=1) as engine:
        running, waiting = engine.submit(request()), engine.submit(request())
        waiting.close()
        waiting.close()
        model.gate.release(1000)
        assert len(list(running)) == 5
        running.close()
        assert running.finish_reason == "length"
        wait_until(lambda: is_empty(engine), "all is gone")


def test_what_can_never_fit_is_refused_with_the_numbers():
    with make_engine() as engine:
        with pytest.raises(ContextLengthError, match=r"100 tokens.* 29 .*129 together.* 128;"):
            engine.submit(request(prompt=[1] * 100, max_tokens=29))
        assert len(list(engine.submit(request(prompt=[1] * 100, max_tokens=28)))) == 28
    with (
        make_engine(cache_tokens=64) as engine,
        pytest.raises(ContextLengthError, match="holds 64;"),
    ):
        engine.submit(request(prompt=[1] * 60, max_tokens=5))


def test_a_full_queue_pushes_back_and_recovers():
    model = FakeModel()
    model.gate = threading.Semaphore(0)
    with make_engine(model, max_sequences=1, max_waiting=2) as engine:
        streams = [engine.submit(request())]
        wait_until(lambda: engine.stats().num_running == 1, "the first request runs")
        streams += [engine.submit(request()) for _ in range(2)]
        with pytest.raises(QueueFullError, match=r"2 requests wait already.*max_waiting"):
            engine.submit(request())
        model.gate.release(1000)
        for stream in streams:
            assert len(list(stream)) == 5
        assert len(list(engine.submit(request()))) == 5


def test_ids_outside_the_vocabulary_are_refused():
    with make_engine() as engine:
        with pytest.raises(ConfigError, match=r"prompt has token id 64; .* 0\.\.63"):
            engine.submit(request(prompt=[1, 64]))
        with pytest.raises(ConfigError, match="prompt has token id -1"):
            engine.submit(request(prompt=[-1]))
        with pytest.raises(ConfigError, match="logit_bias has token id 99"):
            engine.submit(request(sampling=SamplingParams(logit_bias={99: 1.0})))


class EvenTokens:
    """Allows even ids, ends after `length` of them, and may fail on the way."""

    def __init__(self, length=4, fail_in=None):
        self.length = length
        self.fail_in = fail_in
        self.accepted = []

    def mask(self):
        if self.fail_in == "mask" and len(self.accepted) == 2:
            raise RuntimeError("no mask today")
        if self.fail_in == "empty" and len(self.accepted) == 2:
            return np.zeros(2, dtype=np.uint32)
        return None if self.fail_in == "accept" else np.full(2, 0x55555555, dtype=np.uint32)

    def accept(self, token_id):
        if self.fail_in == "accept" and len(self.accepted) == 2:
            raise ValueError(f"did not expect {token_id}")
        self.accepted.append(token_id)

    @property
    def is_done(self):
        return len(self.accepted) == self.length


def test_a_constraint_masks_and_ends_the_answer():
    with make_engine() as engine:
        constraint = EvenTokens()
        stream = engine.submit(request(max_tokens=50, constraint=constraint))
        ids = [token.id for token in stream]
        assert ids == constraint.accepted
        assert len(ids) == 4
        assert all(i % 2 == 0 for i in ids)
        assert stream.finish_reason == "stop"


@pytest.mark.parametrize(
    ("fail_in", "message"),
    [
        ("mask", "constraint failed to make a mask: no mask today"),
        ("empty", "sampling failed: the mask allows no token"),
        ("accept", "constraint refused token"),
    ],
)
def test_a_failing_request_takes_no_other_down(fail_in, message):
    with make_engine() as engine:
        others = [engine.submit(request([i], max_tokens=30)) for i in range(3)]
        failing = engine.submit(request(constraint=EvenTokens(fail_in=fail_in)))
        assert next(failing) and next(failing)
        with pytest.raises(EngineError, match=message):
            next(failing)
        assert failing.finish_reason == "error"
        assert isinstance(failing.error, EngineError)
        assert list(failing) == []
        for i, stream in enumerate(others):
            alone = solo(request([i], max_tokens=30), FakeModel(), CONTEXT)
            assert list(stream) == drain(alone)
        wait_until(lambda: is_empty(engine), "the pages are free")


def test_a_failing_forward_pass_ends_its_batch_and_not_the_engine():
    model = FakeModel()
    model.fail_on = 33
    with make_engine(model) as engine:
        stream = engine.submit(request([33]))
        with pytest.raises(EngineError, match="forward pass failed: token 33"):
            list(stream)
        model.fail_on = None
        assert len(list(engine.submit(request([33])))) == 5
        wait_until(lambda: is_empty(engine), "the pages are free")


def test_closing_ends_every_stream_and_refuses_new_requests():
    model = FakeModel()
    model.gate = threading.Semaphore(3)
    engine = make_engine(model, max_sequences=1)
    running, waiting = engine.submit(request()), engine.submit(request())
    next(running)
    threading.Timer(0.05, model.gate.release, (1000,)).start()
    engine.close()
    engine.close()
    for stream in (running, waiting):
        with pytest.raises(EngineClosedError, match="closed before"):
            list(stream)
        assert stream.finish_reason == "error"
    with pytest.raises(EngineClosedError, match="open a new one"):
        engine.submit(request())


def test_an_internal_error_ends_the_streams_instead_of_hanging(caplog):
    def broken(logits, rows):
        raise SystemExit("not an ordinary failure")

    engine = Engine(FakeModel(), EngineConfig(context_tokens=CONTEXT), sampler=broken)
    with pytest.raises(EngineError, match="internal error"):
        list(engine.submit(request()))
    with pytest.raises(EngineClosedError):
        engine.submit(request())
    assert "internal error" in caplog.text


def test_a_dropped_engine_stops_its_thread_but_not_under_a_stream():
    engine = make_engine()
    stream = engine.submit(request(max_tokens=50))
    del engine
    gc.collect()
    assert len(list(stream)) == 50
    del stream
    gc.collect()
    wait_until(
        lambda: not any(t.name == "aperto-engine" for t in threading.enumerate()),
        "the thread is gone",
    )


def test_a_program_that_forgets_to_close_still_exits():
    program = (
        "from tests.fakes import FakeModel, sample\n"
        "from aperto.engine import Engine, Request\n"
        "engine = Engine(FakeModel(), sampler=sample)\n"
        "stream = engine.submit(Request(prompt=[1], max_tokens=200))\n"
        "print(len(next(stream)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_many_threads_submit_cancel_and_read():
    requests = [
        request([i % 5, 7, 8], max_tokens=12, sampling=SamplingParams(seed=i)) for i in range(24)
    ]
    expected = [drain(solo(r, FakeModel(), CONTEXT)) for r in requests]
    wrong = []

    def serve(engine, worker_idx):
        rng = random.Random(worker_idx)
        for idx in rng.sample(range(len(requests)), len(requests)):
            stream = engine.submit(requests[idx])
            if rng.random() < 0.3:
                got = [next(stream) for _ in range(rng.randrange(5))]
                stream.close()
            else:
                got = list(stream)
                if len(got) != len(expected[idx]):
                    wrong.append((idx, got))
            if got != expected[idx][: len(got)]:
                wrong.append((idx, got))

    with make_engine(max_sequences=4, cache_tokens=160) as engine:
        threads = [threading.Thread(target=serve, args=(engine, i)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        wait_until(lambda: is_empty(engine), "all pages are free")
