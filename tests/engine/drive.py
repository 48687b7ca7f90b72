"""Run the engine's loop step by step in the test's own thread."""

from __future__ import annotations

import time

from tests.fakes import FakeModel, sample

from aperto.config import EngineConfig
from aperto.engine.core import CoreModel
from aperto.engine.engine import plan_pages
from aperto.engine.prefix_store import PrefixOwner
from aperto.engine.sequence import Request, Sequence
from aperto.engine.stream import Token
from aperto.engine.worker import Worker


def make_worker(
    model: CoreModel,
    config: EngineConfig,
    num_pages: tuple[int, ...] | None = None,
    owner: PrefixOwner | None = None,
) -> Worker:
    context = config.context_tokens or model.config.max_context
    return Worker(model, num_pages or plan_pages(model, config), config, context, sample, owner)


def run_until_idle(worker: Worker, max_steps: int = 10_000) -> int:
    """Serve all that was submitted; returns the number of steps."""
    for steps in range(max_steps):
        worker.read_inbox(wait=False)
        if not worker.step():
            return steps
    raise AssertionError(f"still busy after {max_steps} steps")


def settle(worker: Worker) -> None:
    """Serve all that was submitted, and wait for the disk."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        run_until_idle(worker)
        if worker.disk is None or worker.disk.is_idle:
            return
        time.sleep(0.001)
    raise AssertionError("the disk is still busy after a minute")


def drain(sequence: Sequence) -> list[Token]:
    """The tokens of a sequence that has ended."""
    assert sequence.channel.finish_reason is not None
    tokens = []
    while (token := sequence.channel.get()) is not None:
        tokens.append(token)
    return tokens


def solo(request: Request, model: FakeModel, context: int) -> Sequence:
    """The same request alone, with pages for everything and nothing shared."""
    config = EngineConfig(context_tokens=context, max_batch_tokens=context, share_prefixes=False)
    fresh = FakeModel(
        model.window_groups, model.page_tokens, model.config.vocab_size, model.config.max_context
    )
    worker = make_worker(fresh, config, (64 + context,) * len(model.window_groups))
    sequence = worker.submit(request)
    run_until_idle(worker)
    return sequence


def check_pages(worker: Worker) -> None:
    """Every page is free, cached or held exactly as often as tables name it; none is lost."""
    pages, running = worker.pages, worker.scheduler.running
    assert [s.arrival for s in running] == sorted(s.arrival for s in running)
    rows = [s.row for s in running]
    assert len(set(rows)) == len(rows)
    for group, pool in enumerate(pages.pools):
        named = [0] * pool.num_pages
        for sequence in running:
            row = pages.tables[group][sequence.row]
            first, end = sequence.first_pages[group], sequence.end_pages[group]
            assert (row[:first] == -1).all() and (row[end:] == -1).all()
            assert first <= pages.first_needed(group, sequence.num_computed)
            for page in row[first:end].tolist():
                named[page] += 1
        assert named == pool.refs
        free, cached = pool.free_pages, pool.cached_pages
        held = {page for page, refs in enumerate(pool.refs) if refs}
        assert len(set(free)) == len(free)
        assert set(free) | set(cached) | held == set(range(pool.num_pages))
        assert len(free) + len(cached) + len(held) == pool.num_pages
        for page, node in enumerate(pool.nodes):
            assert node is None or node.pages[group] == page
            assert (page in cached) <= (node is not None)
    for table, others in zip(pages.tables, [rows] * len(pages.tables), strict=True):
        idle = [row for row in range(table.shape[0]) if row not in others]
        assert (table[idle] == -1).all()
    check_index(worker)


def check_index(worker: Worker) -> None:
    """Each node of the prefix index is reachable, and held by what its count says."""
    pages = worker.pages
    holds: dict[int, int] = {}
    nodes = pages.prefix_nodes
    for node in nodes:
        assert node.parent is not None
        holds[id(node.parent)] = holds.get(id(node.parent), 0) + 1
    for sequence in worker.scheduler.running:
        holds[id(sequence.tip)] = holds.get(id(sequence.tip), 0) + 1
    for node in nodes:
        assert node.holds == holds.get(id(node), 0)
        assert node.holds or any(page >= 0 for page in node.pages), "a node that nothing needs"
