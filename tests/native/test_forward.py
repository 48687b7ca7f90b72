"""One answer: logits do not depend on chunks, company, threads, cached prefixes or kernels."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.native.harness import Run, Session, Weights, random_ids, shapes, whole

from aperto.native import PAGE_TOKENS, Model, isa_names

precisions = st.sampled_from(["q8", "exact"])
isas = st.sampled_from(isa_names())
threads = st.sampled_from([1, 2, 3, 5])
property_test = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.data_too_large]
)


@contextmanager
def tiny(shape: dict[str, Any]) -> Iterator[Weights]:
    with tempfile.TemporaryDirectory() as folder:
        yield Weights(shape, Path(folder))


def feed(session: Session, sequence: int, sizes: Iterator[int]) -> None:
    while left := len(session.texts[sequence]) - session.done[sequence]:
        session.step([(sequence, min(left, next(sizes)))])


def draw_sizes(data: st.DataObject, most: int) -> Iterator[int]:
    while True:
        yield data.draw(st.sampled_from([1, 2, 7, 16, 17, 31, 32, 33, most]))


@property_test
@given(shapes(), precisions, isas, threads, st.integers(1, 130), st.data())
def test_chunks_threads_and_kernels(
    shape: dict[str, Any], precision: Any, isa: str, workers: int, length: int, data: st.DataObject
) -> None:
    with tiny(shape) as weights:
        model = weights.model(precision)
        ids = random_ids(model, length, 1)
        expected = whole(model, ids)
        assert np.isfinite(expected).all()
        other = weights.model(precision, workers, isa)
        np.testing.assert_array_equal(whole(other, ids), expected)
        session = Session(other, [ids], pages=-(-length // PAGE_TOKENS), seed=2)
        feed(session, 0, draw_sizes(data, length))
        np.testing.assert_array_equal(session.result(0), expected)


@pytest.mark.parametrize("precision", ["q8", "exact"])
@pytest.mark.parametrize("isa", isa_names())
def test_token_by_token(tmp_path: Path, precision: Any, isa: str) -> None:
    """Every chunk size 1 and every page boundary, on each instruction set."""
    weights = Weights({"windows": (0, 40), "experts": 8, "top_k": 4}, tmp_path)
    model = weights.model(precision, 2, isa)
    ids = random_ids(model, 100, 3)
    session = Session(model, [ids], pages=4, seed=4)
    feed(session, 0, iter([1] * 100))
    np.testing.assert_array_equal(session.result(0), whole(weights.model(precision), ids))


@property_test
@given(shapes(), precisions, isas, threads, st.data())
def test_company_of_strangers(
    shape: dict[str, Any], precision: Any, isa: str, workers: int, data: st.DataObject
) -> None:
    """Any mixture of prompts and single tokens in a batch, in any order.

    Pages behind a window are freed as soon as they can be, and the next sequence that needs one
    writes over it.
    """
    with tiny(shape) as weights:
        model = weights.model(precision, workers, isa)
        lengths = data.draw(st.lists(st.integers(1, 110), min_size=2, max_size=4))
        texts = [random_ids(model, length, seed) for seed, length in enumerate(lengths)]
        session = Session(model, texts, pages=sum(-(-n // PAGE_TOKENS) for n in lengths), seed=5)
        sizes = draw_sizes(data, 110)
        while unfinished := [i for i, text in enumerate(texts) if session.done[i] < len(text)]:
            chosen = data.draw(st.lists(st.sampled_from(unfinished), min_size=1, unique=True))
            session.step([(i, min(next(sizes), len(texts[i]) - session.done[i])) for i in chosen])
        alone = weights.model(precision)
        for i, text in enumerate(texts):
            np.testing.assert_array_equal(session.result(i), whole(alone, text))


@property_test
@given(shapes(), precisions, isas, st.integers(1, 100), st.integers(1, 60), st.data())
def test_shared_prefix(
    shape: dict[str, Any], precision: Any, isa: str, prefix: int, rest: int, data: st.DataObject
) -> None:
    """A continuation on shared pages equals one computed from the start, and so does the parent."""
    with tiny(shape) as weights:
        model = weights.model(precision, 2, isa)
        parent = random_ids(model, prefix + rest, 6)
        child = np.concatenate([parent[:prefix], random_ids(model, rest, 7)])
        session = Session(model, [parent, child], pages=12, seed=8)
        session.step([(0, prefix)])
        session.fork(0, 1)
        order: list[list[Run]] = [[(0, rest)], [(1, rest)]]
        for runs in data.draw(st.sampled_from([order, order[::-1], [order[0] + order[1]]])):
            session.step(runs)
        alone = weights.model(precision)
        np.testing.assert_array_equal(session.result(0), whole(alone, parent))
        np.testing.assert_array_equal(session.result(1), whole(alone, child)[prefix:])


def test_pages_behind_a_window_are_handed_on(tmp_path: Path) -> None:
    """The two sequences' windows live on fewer pages than one of them fills."""
    weights = Weights({"windows": (20, 33)}, tmp_path)
    model = weights.model("exact", 2)
    texts = [random_ids(model, 300, seed) for seed in (1, 2)]
    session = Session(model, texts, pages=6, seed=3)
    for _ in range(15):
        session.step([(1, 20), (0, 20)])
    alone = weights.model("exact")
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(session.result(i), whole(alone, text))


def test_only_the_wanted_rows_are_returned(tmp_path: Path) -> None:
    model = Weights({"vocab": 41}, tmp_path).model()
    ids = random_ids(model, 50, 0)
    expected = whole(model, ids)
    rows = np.array([49, 3, 3, 0], np.int32)
    batch = Batch(model, 50)
    batch.token_ids, batch.output_rows = ids, rows
    np.testing.assert_array_equal(batch.run(), expected[rows])
    batch.output_rows = rows[:0]
    assert batch.run().shape == (0, 41)


class Batch:
    """A valid batch of one sequence, to be damaged."""

    def __init__(self, model: Model, count: int) -> None:
        self.model = model
        self.token_ids = np.zeros(count, np.int32)
        self.positions = np.arange(count, dtype=np.int32)
        self.seq_idx = np.zeros(count, np.int32)
        pages = -(-count // PAGE_TOKENS)
        self.tables = [np.arange(pages, dtype=np.int32)[None] for _ in model.window_groups]
        self.output_rows = np.arange(count, dtype=np.int32)
        self.cache = model.new_cache([pages] * len(model.window_groups))

    def run(self) -> np.ndarray:
        return self.model.forward(
            self.cache,
            self.token_ids,
            self.positions,
            self.seq_idx,
            self.tables,
            self.output_rows,
        )


INT_MAX = 2**31 - 1


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("token_ids", 7, 384, r"token id 384 .* 384 entries"),
        ("token_ids", 7, -1, r"token id -1 .* 384 entries"),
        ("token_ids", 0, INT_MAX, rf"token id {INT_MAX} "),
        ("positions", 0, -1, "position -1 is negative"),
        ("positions", 5, 6, r"position 6 follows 4 in sequence 0; expected the next"),
        ("positions", 5, 4, r"position 4 follows 4 in sequence 0"),
        ("positions", 0, 64, r"position 64 needs page 2 of its table; group 0 has 2"),
        ("positions", 0, INT_MAX, rf"position {INT_MAX} needs page 67108863 "),
        ("seq_idx", 3, 1, r"sequence 1 is out of range; the page tables have 1 rows"),
        ("seq_idx", 3, -1, r"sequence -1 is out of range"),
        ("output_rows", 2, 40, r"output row 40 is out of range; the batch has 40 tokens"),
        ("output_rows", 2, -1, r"output row -1 is out of range"),
    ],
)
def test_bad_numbers_are_refused(
    tmp_path: Path, name: str, index: int, value: int, message: str
) -> None:
    batch = Batch(Weights({}, tmp_path).model(), 40)
    getattr(batch, name)[index] = value
    with pytest.raises(ValueError, match=message):
        batch.run()


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize("page", [-1, 2, INT_MAX])
def test_bad_pages_are_refused(tmp_path: Path, group: int, page: int) -> None:
    batch = Batch(Weights({"windows": (0, 8)}, tmp_path).model(), 40)
    batch.tables[group] = np.array([[0, page]], np.int32)
    with pytest.raises(ValueError, match=rf"sequence 0, group {group}: page {page} of .* has 2"):
        batch.run()


def test_a_page_inside_the_window_may_not_be_freed(tmp_path: Path) -> None:
    """Position 32 with a window of 8 reads positions 25 to 32, so it needs page 0; 40 does not."""
    model = Weights({"windows": (0, 8)}, tmp_path).model()
    batch = Batch(model, 48)
    batch.run()
    batch.tables[1] = np.array([[-1, 1]], np.int32)
    for start, fits in ((38, False), (39, True)):
        count = 48 - start
        batch.token_ids = np.zeros(count, np.int32)
        batch.positions = np.arange(start, 48, dtype=np.int32)
        batch.seq_idx = np.zeros(count, np.int32)
        batch.output_rows = np.arange(count, dtype=np.int32)
        if fits:
            assert batch.run().shape == (count, 384)
        else:
            with pytest.raises(ValueError, match="group 1: page -1 of table entry 0"):
                batch.run()


def test_batches_of_the_wrong_form_are_refused(tmp_path: Path) -> None:
    model = Weights({}, tmp_path).model()
    most = model.max_batch_tokens
    with pytest.raises(ValueError, match=rf"{most + 1} tokens; expected 1..{most}"):
        Batch(model, most + 1).run()
    with pytest.raises(ValueError, match="the batch has 0 tokens"):
        Batch(model, 0).run()

    batch = Batch(model, 4)
    batch.output_rows = np.zeros(most + 1, np.int32)
    with pytest.raises(ValueError, match=f"wants {most + 1} rows of logits"):
        batch.run()
    for name in ("positions", "seq_idx"):
        batch = Batch(model, 4)
        setattr(batch, name, np.zeros(3, np.int32))
        with pytest.raises(ValueError, match=r"3 .* expected 4, one a token"):
            batch.run()
    batch = Batch(model, 4)
    batch.tables = batch.tables[:1]
    with pytest.raises(ValueError, match="1 page tables; expected one a window group: 2"):
        batch.run()
    batch = Batch(model, 4)
    batch.tables[1] = np.zeros((2, 1), np.int32)
    with pytest.raises(ValueError, match="page tables have 2 and 1 rows"):
        batch.run()


def test_a_cache_of_another_model_is_refused(tmp_path: Path) -> None:
    model = Weights({}, tmp_path / "a").model()
    for shape in (
        {"windows": (0,)},
        {"head_dim": 64},
        {"windows": (8, 0, 0)},
        {"heads": 4, "kv_heads": 4},
    ):
        other = Weights(shape, tmp_path / str(shape)).model()
        batch = Batch(model, 40)
        batch.cache = other.new_cache([2] * len(other.window_groups))
        with pytest.raises(ValueError, match="expected"):
            batch.run()


def test_a_refused_batch_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    model = Weights({}, tmp_path).model("exact")
    ids = random_ids(model, 60, 0)
    session = Session(model, [ids], pages=2, seed=0)
    session.step([(0, 30)])
    good = session.texts[0]
    session.texts[0] = np.full_like(good, 999)
    session._allocate(0, 30, 60)
    with pytest.raises(ValueError, match="token id 999"):
        model.forward(
            session.cache,
            session.texts[0][30:],
            np.arange(30, 60, dtype=np.int32),
            np.zeros(30, np.int32),
            session.tables,
            np.zeros(0, np.int32),
        )
    session.texts[0] = good
    session.free = [[] for _ in session.free]  # the pages are there already
    session._allocate = lambda *_: None  # type: ignore[method-assign]
    session.step([(0, 30)])
    np.testing.assert_array_equal(session.result(0), whole(model, ids))


def test_copies_of_pages_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    cache = Weights({}, tmp_path).model().new_cache([2, 3])
    cache.copy_page(1, 2, 0)
    with pytest.raises(ValueError, match="group 2 does not exist; expected < 2"):
        cache.copy_page(2, 0, 0)
    for source, target in ((2, 0), (0, 2)):
        with pytest.raises(ValueError, match=f"page {source} to {target} .* group 0 has 2 pages"):
            cache.copy_page(0, source, target)


def test_a_page_can_be_read_and_written_in_place(tmp_path: Path) -> None:
    model = Weights({}, tmp_path).model()
    cache = model.new_cache([2, 3])
    page = cache.page(1, 2)
    assert page.dtype == np.uint8 and page.shape == (model.page_bytes(1),)
    page[:] = np.arange(len(page)) % 251
    cache.copy_page(1, 2, 0)
    np.testing.assert_array_equal(cache.page(1, 0), page)
    assert not cache.page(1, 1).any()
    view = cache.page(1, 0)
    del cache  # a view keeps its memory alive
    np.testing.assert_array_equal(view, page)
    for group, number in ((2, 0), (0, 2)):
        with pytest.raises(ValueError, match=f"group {group} (does not exist|has 2 pages)"):
            model.new_cache([2, 3]).page(group, number)
