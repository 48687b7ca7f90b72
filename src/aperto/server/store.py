"""Responses that outlive their request, in one SQLite file: bodies, items and event logs."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from aperto.errors import ConfigError

_log = logging.getLogger(__name__)

Json = dict[str, Any]

UNFINISHED = ("queued", "in_progress")
"""Statuses of responses that somebody still works on."""

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, previous_id TEXT, status TEXT NOT NULL, owner TEXT NOT NULL,
    created_at REAL NOT NULL, used_at REAL NOT NULL, num_bytes INTEGER NOT NULL, body TEXT NOT NULL
);
CREATE INDEX responses_by_use ON responses (used_at);
CREATE TABLE items (
    response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    is_output INTEGER NOT NULL, idx INTEGER NOT NULL, item_id TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (response_id, is_output, idx)
) WITHOUT ROWID;
CREATE INDEX items_by_id ON items (item_id);
CREATE TABLE events (
    response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    number INTEGER NOT NULL, body TEXT NOT NULL, PRIMARY KEY (response_id, number)
) WITHOUT ROWID;
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """One response and what it was made from."""

    body: Json
    """The response object, as clients get it."""
    input: Sequence[Json]
    """Its own input items, each with an id."""
    output: Sequence[Json]
    """Its output items with all their reasoning, whatever the body shows of it."""


class Store:
    """Keeps responses until they are deleted, unused for `ttl_s`, or pushed out by newer ones.

    Thread-safe; several servers may use one file. Every call is one transaction, so that what a
    call has written is there after the process was killed.

    Args:
        path: the SQLite file; made, readable for its owner alone, where it is missing.
        ttl_s: seconds after its last use that a response is kept.
        max_bytes: JSON text that is kept in all; the least recently used goes first.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        *,
        ttl_s: float = 30 * 86400.0,
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._ttl_s, self._max_bytes, self._clock = path, ttl_s, max_bytes, clock
        self._lock = threading.Lock()
        self._owner = uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._claim = _claim(self._claim_path(self._owner))
        try:
            self._db = _open(path)
        except BaseException:
            self._release()
            raise

    def add(self, stored: Stored) -> None:
        """Keep a new response."""
        body, now, text = stored.body, self._clock(), _dump(stored.body)
        items = _item_rows(stored)
        size = len(text) + sum(len(row[-1]) for row in items)
        head = (body["id"], body["previous_response_id"], body["status"], self._owner)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (*head, now, now, size, text),
            )
            db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", items)
            self._prune(db)

    def update(self, stored: Stored, events: Iterable[Json] = ()) -> bool:
        """Replace the state of a response and add to its event log.

        False, and nothing done, where it was deleted.
        """
        body, text = stored.body, _dump(stored.body)
        items = _item_rows(stored)
        size = len(text) + sum(len(row[-1]) for row in items)
        with self._transaction() as db:
            known = db.execute(
                "UPDATE responses SET status = ?, body = ?, used_at = ?, num_bytes = ? + (SELECT "
                "coalesce(sum(length(body)), 0) FROM events WHERE response_id = id) WHERE id = ?",
                (body["status"], text, self._clock(), size, body["id"]),
            )
            if known.rowcount:
                db.execute("DELETE FROM items WHERE response_id = ?", (body["id"],))
                db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", items)
                _log_events(db, body["id"], events)
                self._prune(db)
        return known.rowcount > 0

    def get(self, response_id: str) -> Json | None:
        """The response object."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT body FROM responses WHERE id = ? AND used_at > ?",
                (_key(response_id), self._oldest()),
            ).fetchone()
        return None if row is None else _load(row[0])

    def chain(self, response_id: str) -> tuple[list[Json], str | None]:
        """All items of a response and of those before it, oldest first; they count as used.

        The second value is the id of a response of the chain that is gone, if one is.
        """
        items: list[Json] = []
        next_id: str | None = response_id
        with self._transaction() as db:
            while next_id is not None:
                row = db.execute(
                    "UPDATE responses SET used_at = ? WHERE id = ? AND used_at > ? "
                    "RETURNING previous_id",
                    (self._clock(), next_id, self._oldest()),
                ).fetchone()
                if row is None:
                    return [], next_id
                items = [*_items(db, next_id, (0, 1)), *items]
                next_id = row[0]
        return items, None

    def input_items(self, response_id: str) -> list[Json] | None:
        """The input items of a response, in order; None where there is no such response."""
        if self.get(response_id) is None:
            return None
        with self._transaction() as db:
            return _items(db, response_id, (0,))

    def find_item(self, item_id: str) -> Json | None:
        """The item of an id, from any response."""
        with self._transaction() as db:
            row = db.execute(
                "SELECT body FROM items WHERE item_id = ? LIMIT 1", (_key(item_id),)
            ).fetchone()
        return None if row is None else _load(row[0])

    def delete(self, response_id: str) -> bool:
        """Forget a response; whether there was one."""
        with self._transaction() as db:
            count = db.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount
            db.execute("PRAGMA incremental_vacuum").fetchall()
        return count > 0

    def append_events(self, response_id: str, events: Iterable[Json]) -> None:
        """Add to a response's event log; nothing happens where it was deleted."""
        with self._transaction() as db:
            _log_events(db, response_id, events)

    def events(self, response_id: str, after: int = -1) -> list[Json]:
        """The logged events whose sequence number is greater than `after`."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT body FROM events WHERE response_id = ? AND number > ? ORDER BY number",
                (response_id, after),
            ).fetchall()
        return [_load(body) for (body,) in rows]

    def orphans(self) -> list[Json]:
        """Unfinished responses whose server is gone; from now on they are this server's."""
        with self._transaction() as db:
            rows = db.execute(
                "SELECT owner, body FROM responses WHERE status IN (?, ?) AND owner != ?",
                (*UNFINISHED, self._owner),
            ).fetchall()
            dead = {owner for owner in {row[0] for row in rows} if self._is_gone(owner)}
            for owner in dead:
                db.execute("UPDATE responses SET owner = ? WHERE owner = ?", (self._owner, owner))
        return [_load(body) for owner, body in rows if owner in dead]

    def prune(self) -> None:
        """Forget what is too old or too much."""
        with self._transaction() as db:
            self._prune(db)

    def num_bytes(self) -> int:
        """JSON text that is kept."""
        with self._transaction() as db:
            return int(
                db.execute("SELECT coalesce(sum(num_bytes), 0) FROM responses").fetchone()[0]
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()
        self._release()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _oldest(self) -> float:
        return self._clock() - self._ttl_s

    def _prune(self, db: sqlite3.Connection) -> None:
        gone = db.execute("DELETE FROM responses WHERE used_at <= ?", (self._oldest(),)).rowcount
        total = int(db.execute("SELECT coalesce(sum(num_bytes), 0) FROM responses").fetchone()[0])
        rows = db.execute(
            "SELECT id, num_bytes FROM responses WHERE status NOT IN (?, ?) ORDER BY used_at",
            UNFINISHED,
        )
        doomed = []
        for response_id, size in rows if total > self._max_bytes else ():
            doomed.append((response_id,))
            total -= size
            if total <= self._max_bytes:
                break
        db.executemany("DELETE FROM responses WHERE id = ?", doomed)
        if doomed:
            _log.info("forgot %d responses to stay below %d bytes", len(doomed), self._max_bytes)
        if doomed or gone:
            db.execute("PRAGMA incremental_vacuum").fetchall()

    def _claim_path(self, owner: str) -> Path:
        return self._path.with_name(f"{self._path.name}.{owner}.owner")

    def _is_gone(self, owner: str) -> bool:
        """Whether no living server holds the owner's lock."""
        path = self._claim_path(owner)
        if not path.exists():
            return True
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        path.unlink(missing_ok=True)
        return True

    def _release(self) -> None:
        self._claim_path(self._owner).unlink(missing_ok=True)
        self._claim.close()


def _claim(path: Path) -> TextIO:
    """A file that is locked for as long as this process lives."""
    file = path.open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _open(path: Path) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10.0)
    try:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("BEGIN IMMEDIATE")
        _migrate(db, path)
        db.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        db.close()
        raise ConfigError(
            f"{path}: cannot be used as the store of responses: {error}; move it away to begin anew"
        ) from error
    except BaseException:
        db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: was written by a newer aperto (version {version} of its tables; this one "
            f"knows {_SCHEMA_VERSION}); upgrade, or use another state folder"
        )
    if version == 0:
        for statement in filter(str.strip, _SCHEMA.split(";")):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def _log_events(db: sqlite3.Connection, response_id: str, events: Iterable[Json]) -> None:
    rows = [(response_id, event["sequence_number"], _dump(event)) for event in events]
    known = db.execute(
        "UPDATE responses SET num_bytes = num_bytes + ? WHERE id = ?",
        (sum(len(row[2]) for row in rows), response_id),
    )
    if known.rowcount:
        db.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)


def _items(db: sqlite3.Connection, response_id: str, kinds: Sequence[int]) -> list[Json]:
    rows = db.execute(
        "SELECT is_output, body FROM items WHERE response_id = ? ORDER BY is_output, idx",
        (response_id,),
    )
    return [_load(body) for is_output, body in rows if is_output in kinds]


def _item_rows(stored: Stored) -> list[tuple[str, int, int, str, str]]:
    return [
        (stored.body["id"], is_output, idx, _key(item["id"]), _dump(item))
        for is_output, items in enumerate((stored.input, stored.output))
        for idx, item in enumerate(items)
    ]


def _key(text: str) -> str:
    """The id as SQLite can take it: lone surrogates, which clients may send, become "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _dump(value: Json) -> str:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def _load(text: str) -> Json:
    value: Json = json.loads(text)
    return value
