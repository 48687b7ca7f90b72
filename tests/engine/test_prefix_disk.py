"""Prefixes on disk: found after a restart, never believed when damaged, and never seen in a bit."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.drive import check_pages, drain, make_worker, settle, solo
from tests.fakes import FakeModel, sample

import aperto
from aperto.config import EngineConfig
from aperto.engine import Engine, Request, SamplingParams, prefix_store
from aperto.engine.prefix_store import (
    PageLayout,
    PrefixOwner,
    PrefixStore,
    list_prompts,
    remove_prompts,
)
from aperto.errors import ConfigError, UsageError

CONTEXT = 160
OWNER = PrefixOwner("/models/tiny", "q8", "fingerprint")


@pytest.fixture(scope="module", autouse=True)
def short_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_store, "BLOCK_PAGES", 3)
        yield


@contextlib.contextmanager
def life(folder, model=None, owner=OWNER, num_pages=None, **options):
    """A worker from start to stop, as in one process."""
    options = {"context_tokens": CONTEXT, "prefix_least_tokens": 8, "max_sequences": 4, **options}
    model = model or FakeModel()
    worker = make_worker(model, EngineConfig(prefix_dir=folder, **options), num_pages, owner)
    try:
        yield worker, model
    finally:
        if worker.disk is not None:
            worker.disk.close()


def ask(worker, prompt, cuts=(), max_tokens=3, seed=0):
    request = Request(
        prompt=prompt,
        max_tokens=max_tokens,
        sampling=SamplingParams(seed=seed),
        cut_points=(*cuts, len(prompt)),
    )
    return request, worker.submit(request)


def answer(worker, prompt, cuts=()):
    """Cached tokens of a request, whose answer is what it would be alone."""
    request, sequence = ask(worker, prompt, cuts)
    settle(worker)
    check_pages(worker)
    assert drain(sequence) == drain(solo(request, FakeModel(), CONTEXT))
    return sequence.channel.cached_tokens


STEM = [i % 50 for i in range(70)]


def saved(folder):
    return sorted(p for p in folder.glob("*/*") if p.suffix in (".block", ".end"))


def test_a_prefix_is_computed_once_whatever_restarts(tmp_path):
    with life(tmp_path) as (worker, model):
        assert answer(worker, [*STEM, 51, 52], cuts=[70]) == 0
        assert worker.stats().tokens_saved == 68
    with life(tmp_path) as (worker, model):
        assert answer(worker, [*STEM, 53], cuts=[70]) == 68
        assert model.num_computed == 71 + 3 - 1 - 68
        assert worker.stats().tokens_fetched == 68
        assert answer(worker, [*STEM, 54], cuts=[70]) == 68  # now from memory
        assert worker.stats().tokens_fetched == 68
    assert [p.suffix for p in saved(tmp_path)].count(".block") == 17 // 3
    assert [p.suffix for p in saved(tmp_path)].count(".end") == 1


@pytest.mark.parametrize("windows", [(0,), (8,), (8, 0), (1, 0), (5, 0, 13)])
def test_groups_of_any_window_come_back(tmp_path, windows):
    for expected in (0, 68):
        model = FakeModel(windows)
        with life(tmp_path, model) as (worker, _):
            request, sequence = ask(worker, [*STEM, 51], cuts=[70])
            settle(worker)
            assert sequence.channel.cached_tokens == expected
            assert drain(sequence) == drain(solo(request, model, CONTEXT))


def test_what_is_not_shared_or_short_is_not_saved(tmp_path):
    with life(tmp_path, prefix_least_tokens=72) as (worker, _):
        answer(worker, [*STEM, 51, 52], cuts=[70])
    with life(tmp_path) as (worker, _):
        answer(worker, [*STEM, 51, 52])  # no cut point but the end of the prompt
    assert saved(tmp_path) == []
    with life(tmp_path, share_prefixes=False) as (worker, _):
        assert worker.disk is None


@pytest.mark.parametrize(
    "owner",
    [
        PrefixOwner("/models/tiny", "exact", "fingerprint"),
        PrefixOwner("/models/tiny", "q8", "another"),
    ],
)
def test_other_models_find_nothing(tmp_path, owner):
    with life(tmp_path) as (worker, _):
        answer(worker, [*STEM, 51], cuts=[70])
    with life(tmp_path, owner=owner) as (worker, _):
        assert answer(worker, [*STEM, 51], cuts=[70]) == 0


def test_keys_depend_on_all_tokens_and_the_variant(tmp_path):
    store = PrefixStore(tmp_path, 1 << 20, OWNER, PageLayout((8, 0), 4, (32, 32)))
    keys = store.keys([b"a", b"b", b"b"])
    assert len({*keys, *store.keys([b"x", b"b", b"b"]), *store.keys([b"a"], "adapter")}) == 7
    assert store.keys([b"a", b"b"]) == keys[:2]


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rename(path):
    """A piece of another prefix under this one's name."""
    other = next(p for p in path.parent.glob(f"*{path.suffix}") if p != path)
    shutil.copy(other, path)


@pytest.mark.parametrize("damage", [truncate, flip, rename, Path.unlink])
@pytest.mark.parametrize("suffix", [".block", ".end"])
def test_damaged_files_are_removed_and_a_shorter_prefix_taken(tmp_path, caplog, damage, suffix):
    long = [*STEM, 60, *STEM]
    with life(tmp_path) as (worker, _):
        answer(worker, [*long, 51], cuts=[40, 141])
    shared = set(saved(tmp_path))
    with life(tmp_path) as (worker, _):  # which files belong to the longer prefix alone
        keys = worker.disk.store.keys(page_keys(long))
        names = {p.name for p in worker.disk.store.pieces(keys, 10)}
    path = next(p for p in sorted(shared) if p.name not in names and p.suffix == suffix)
    damage(path)
    with life(tmp_path) as (worker, _):
        assert answer(worker, [*long, 51], cuts=[40, 141]) == 40
    if damage is not Path.unlink:
        assert "is damaged" in caplog.text
    with life(tmp_path) as (worker, _):
        assert answer(worker, [*long, 51], cuts=[40, 141]) == 140  # saved anew


def page_keys(tokens):
    ids = np.asarray(tokens, dtype=np.int32)
    return [ids[i : i + 4].tobytes() for i in range(0, len(ids) // 4 * 4, 4)]


def test_what_was_not_used_for_longest_goes_first(tmp_path):
    texts = [[last] * 40 for last in range(10)]
    with life(tmp_path) as (worker, _):
        answer(worker, [*texts[0], 51], cuts=[40])
    one = sum(p.stat().st_size for p in saved(tmp_path))
    limit = 4 * one
    with life(tmp_path, prefix_disk_bytes=limit) as (worker, _):
        for text in texts[1:]:
            answer(worker, [*text, 51], cuts=[40])
            answer(worker, [*texts[0], 52], cuts=[40])
            assert sum(p.stat().st_size for p in saved(tmp_path)) <= limit
    found = []
    with life(tmp_path, prefix_disk_bytes=limit) as (worker, _):
        for text in texts:
            store = worker.disk.store
            found.append(store.longest(store.keys(page_keys(text)), 1) > 0)
    assert found[0] and found[9] and not found[1]


def test_a_prefix_above_the_limit_is_not_begun(tmp_path):
    with life(tmp_path, prefix_disk_bytes=500) as (worker, _):
        answer(worker, [*STEM, 51], cuts=[70])
    assert saved(tmp_path) == []


def test_a_full_disk_is_a_warning(tmp_path, caplog, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prefix_store.os, "open", full)
    with life(tmp_path) as (worker, _):
        assert answer(worker, [*STEM, 51], cuts=[70]) == 0
        assert answer(worker, [*STEM, 52], cuts=[70]) == 68
    assert "No space left on device" in caplog.text
    assert list(tmp_path.glob("*/*.partial")) == [] and saved(tmp_path) == []


def test_a_nearly_full_disk_is_left_alone(tmp_path, caplog, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 29)
    monkeypatch.setattr(prefix_store.shutil, "disk_usage", lambda _: usage)
    with life(tmp_path) as (worker, _):
        answer(worker, [*STEM, 51], cuts=[70])
    assert "would stay free" in caplog.text and saved(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"), life(tmp_path / "file"):
        pass


def test_files_are_the_owners_alone(tmp_path):
    with life(tmp_path) as (worker, _):
        answer(worker, [*STEM, 51], cuts=[70])
    for path in saved(tmp_path):
        assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0


def test_saved_prompts_are_listed_and_removed(tmp_path):
    with life(tmp_path) as (worker, _):
        answer(worker, [*STEM, 51], cuts=[70])
    (tmp_path / "other" / "own").mkdir(parents=True)
    (entry,) = list_prompts(tmp_path)
    assert (entry.source, entry.precision) == ("/models/tiny", "q8")
    assert entry.nbytes >= sum(p.stat().st_size for p in saved(tmp_path)) > 0
    with pytest.raises(UsageError, match="no saved prompts 'else'"):
        remove_prompts(tmp_path, "else")
    assert remove_prompts(tmp_path, "/models/tiny") == [entry]
    assert list_prompts(tmp_path) == remove_prompts(tmp_path, "all") == []
    assert (tmp_path / "other" / "own").is_dir()


def test_removal_while_in_use_does_no_harm(tmp_path):
    with life(tmp_path) as (worker, _):
        answer(worker, [*STEM, 51], cuts=[70])
        remove_prompts(tmp_path, "all")
        answer(worker, [7, *STEM, 51], cuts=[70])
        assert len(saved(tmp_path)) > 0
        assert json.loads((worker.disk.store.folder / "about.json").read_text())["precision"]


def test_those_who_wait_for_one_prefix_read_it_once_and_can_be_cancelled(tmp_path):
    with life(tmp_path) as (worker, _):
        answer(worker, [*STEM, 51], cuts=[70])
    with life(tmp_path) as (worker, _):
        asked = [ask(worker, [*STEM, last], cuts=[70]) for last in (51, 52, 53)]
        worker.read_inbox(wait=False)
        assert worker.stats().num_waiting == 3
        worker.cancel(asked[1][1])
        settle(worker)
        assert worker.stats().tokens_fetched == 68 and worker.stats().num_waiting == 0
        assert asked[1][1].channel.finish_reason == "cancelled"
        for request, sequence in (asked[0], asked[2]):
            assert sequence.channel.cached_tokens == 68
            assert drain(sequence) == drain(solo(request, FakeModel(), CONTEXT))


def test_an_engine_saves_and_finds_prefixes(tmp_path):
    config = EngineConfig(context_tokens=CONTEXT, prefix_dir=tmp_path, prefix_least_tokens=8)
    request = Request(prompt=[*STEM, 51], max_tokens=3, cut_points=(70,))
    seen = []
    for _ in range(2):
        with Engine(FakeModel(), config, sample, OWNER) as engine:
            stream = engine.submit(request)
            list(stream)
            seen.append(stream.usage.cached_tokens)
    assert seen == [0, 68]


def live_once(folder: str, seed: int) -> None:
    prefix_store.BLOCK_PAGES = 3
    for turn in range(12):
        with life(Path(folder), prefix_disk_bytes=6000) as (worker, _):
            answer(worker, [*[(seed + turn) % 3] * 40, 51], cuts=[40])


def test_several_processes_share_a_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=live_once, args=(str(tmp_path), i)) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert list(tmp_path.glob("*/*.partial")) == []


@st.composite
def lives(draw):
    stems = draw(st.lists(st.lists(st.integers(0, 12), min_size=12, max_size=80), max_size=3))
    stems.append([1] * 50)
    result = []
    for _ in range(draw(st.integers(2, 4))):
        texts = []
        for _ in range(draw(st.integers(1, 4))):
            stem = draw(st.sampled_from(stems))
            stem = stem[: draw(st.integers(10, len(stem)))]
            tail = draw(st.lists(st.integers(0, 12), min_size=1, max_size=20))
            cuts = draw(st.lists(st.integers(1, len(stem)), max_size=3))
            texts.append(([*stem, *tail], [*cuts, len(stem)]))
        wait = draw(st.booleans())
        result.append((texts, wait, draw(st.sampled_from([None, truncate, flip, Path.unlink]))))
    return result


@settings(max_examples=60, deadline=None)
@given(
    script=lives(),
    windows=st.sampled_from([(8, 0), (0,), (8,), (5, 0, 13)]),
    limit=st.sampled_from([1500, 4000, 1 << 30]),
    spare_pages=st.sampled_from([0, 2, 200]),
    data=st.data(),
)
def test_bits_are_the_same_over_restarts_evictions_and_damage(
    script, windows, limit, spare_pages, data
):
    with tempfile.TemporaryDirectory() as name:
        for texts, wait, damage in script:
            model = FakeModel(windows)
            num_pages = tuple(CONTEXT // 4 + spare_pages for _ in windows)
            with life(Path(name), model, prefix_disk_bytes=limit, num_pages=num_pages) as (w, _):
                asked = []
                for text, cuts in texts:
                    before = model.num_computed
                    asked.append(ask(w, text, cuts))
                    if wait:
                        settle(w)
                        cached = asked[-1][1].channel.cached_tokens
                        # Alone, cached_tokens is what was not computed; the last draw never is.
                        assert model.num_computed - before == len(text) + 2 - cached
                        check_pages(w)
                settle(w)
                check_pages(w)
                for request, sequence in asked:
                    assert drain(sequence) == drain(solo(request, model, CONTEXT))
            files = saved(Path(name))
            assert sum(path.stat().st_size for path in files) <= limit
            if damage is not None and files:
                damage(data.draw(st.sampled_from(files)))


@pytest.mark.parametrize("precision", ["q8", "exact"])
def test_a_real_model_gives_the_same_bits_after_a_restart(tmp_path, precision):
    messages = [
        {"role": "system", "content": "Be kind to those who ask. " * 100},
        {"role": "user", "content": "What is 2 + 2?"},
    ]

    def say(folder):
        config = EngineConfig(context_tokens=2048, prefix_dir=folder)
        with aperto.load("nano", precision=precision, threads=1, config=config) as model:
            return model.chat(messages, max_tokens=12, seed=1, logprobs=True)

    plain, first, again = say(None), say(tmp_path), say(tmp_path)
    flip(saved(tmp_path)[0])
    mended = say(tmp_path)
    assert first.done.usage.cached_tokens == 0 and again.done.usage.cached_tokens >= 512
    for answer in (first, again, mended):
        assert answer.logprobs == plain.logprobs
    assert len(plain.logprobs) == 12
