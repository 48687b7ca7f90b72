"""Responses made without a client that waits: their tasks, and the logs that clients follow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from aperto.server.response_run import ResponseRun
from aperto.server.sse import aclose
from aperto.server.store import UNFINISHED, Store, Stored
from aperto.server.wire_responses import Json

_log = logging.getLogger(__name__)

_POLL_S = 1.0
"""How often a response that another server works on is looked at."""
_LAST = ("response.completed", "response.incomplete", "response.failed")
_LOST = "the server stopped while it worked on this response; send the request again"


class _Job:
    """One response under way."""

    def __init__(self, run: ResponseRun) -> None:
        self.run = run
        self.task: asyncio.Task[None] | None = None
        self.changed = asyncio.Event()
        self.is_unwanted = False

    def announce(self) -> None:
        """Wake those who wait for more events."""
        self.changed.set()
        self.changed = asyncio.Event()


class Background:
    """Makes responses in tasks of their own; used from one event loop.

    Every event is in the store's log before anybody sees it, so that a client can go on reading
    where it stopped, also after the server was killed.

    Args:
        store: where responses and logs are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._jobs: dict[str, _Job] = {}

    async def recover(self) -> None:
        """End the responses of servers that are gone, as failed."""
        for body in await asyncio.to_thread(self._store.orphans):
            _log.warning("the response %s was lost by a server that is gone", body["id"])
            await asyncio.to_thread(self._fail, body)

    def _fail(self, body: Json) -> None:
        error = {"code": "server_error", "message": _LOST}
        body = {**body, "status": "failed", "error": error}
        log = self._store.events(body["id"])
        number = log[-1]["sequence_number"] + 1 if log else 0
        event = {"type": "response.failed", "response": body, "sequence_number": number}
        own = self._store.input_items(body["id"]) or []
        self._store.update(Stored(body, own, []), [event])

    async def start(self, run: ResponseRun) -> Json:
        """Store a response and begin to make it; returns it as it is before that."""
        body = dict(run.body)
        await run.keep()
        job = self._jobs[body["id"]] = _Job(run)
        job.task = asyncio.create_task(self._work(body["id"], job))
        await asyncio.sleep(0)  # a task that is cancelled before its first step never runs
        return body

    async def follow(self, response_id: str, after: int = -1) -> AsyncIterator[Json]:
        """The events of a response after a sequence number, those that are still to come too."""
        while True:
            job = self._jobs.get(response_id)
            changed = job.changed if job is not None else None
            body = await asyncio.to_thread(self._store.get, response_id)
            for event in await asyncio.to_thread(self._store.events, response_id, after):
                after = event["sequence_number"]
                yield event
                if event["type"] in _LAST:
                    return
            if body is None or (job is None and body["status"] not in UNFINISHED):
                return
            if changed is not None:
                await changed.wait()
            else:
                await asyncio.sleep(_POLL_S)

    async def cancel(self, response_id: str) -> None:
        """End a response; nothing happens where it is not under way here."""
        job = self._jobs.get(response_id)
        if job is None or job.task is None:
            return
        job.is_unwanted = True
        job.task.cancel()
        await asyncio.wait({job.task})

    async def close(self, grace_s: float) -> None:
        """Let what is under way finish for some seconds; what is left then fails."""
        tasks = {job.task for job in self._jobs.values() if job.task is not None}
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=grace_s)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _work(self, response_id: str, job: _Job) -> None:
        try:
            await self._make(job)
        except Exception:
            _log.exception("the response %s could not be kept", response_id)
        finally:
            del self._jobs[response_id]
            job.announce()

    async def _make(self, job: _Job) -> None:
        run, batches = job.run, job.run.events()
        try:
            async for events in batches:
                await asyncio.shield(self._publish(job, events))
        except asyncio.CancelledError:
            # Not raised again: the end of the response is still to be written.
            await aclose(batches)
            if not run.writer.is_over:
                writer = run.writer
                last = writer.cancel() if job.is_unwanted else writer.fail("server_error", _LOST)
                await self._publish(job, last)

    async def _publish(self, job: _Job, events: list[Json]) -> None:
        """Write events to the log, the first and the last with the response's new state."""
        run = job.run
        if run.writer.is_over or events[0]["sequence_number"] == 0:
            await run.keep(events)
        else:
            await asyncio.to_thread(self._store.append_events, run.body["id"], events)
        job.announce()
