import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from aperto.errors import ConfigError
from aperto.server.store import Store, Stored


def stored(name, previous=None, status="completed", text="Hello"):
    body = {"id": name, "previous_response_id": previous, "status": status}
    asked = {"id": f"msg_{name}", "type": "message", "role": "user", "content": text}
    said = {"id": f"out_{name}", "type": "message", "role": "assistant", "content": text}
    return Stored(body, [asked], [said])


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    with contextlib.closing(
        Store(tmp_path / "r.db", ttl_s=100, max_bytes=2000, clock=clock)
    ) as store:
        yield store


def event(number, text="x"):
    return {"type": "response.output_text.delta", "sequence_number": number, "delta": text}


def test_a_response_its_items_and_its_chain_are_kept(store):
    store.add(stored("a"))
    store.add(stored("b", previous="a"))
    assert store.get("a")["id"] == "a"
    assert [item["id"] for item in store.input_items("b")] == ["msg_b"]
    items, missing = store.chain("b")
    assert [item["id"] for item in items] == ["msg_a", "out_a", "msg_b", "out_b"]
    assert missing is None
    assert store.find_item("out_a")["role"] == "assistant"
    assert store.find_item("nothing") is None


def test_a_deleted_response_is_gone_with_its_items_and_log(store):
    store.add(stored("a", status="in_progress"))
    store.append_events("a", [event(0)])
    store.add(stored("b", previous="a"))
    assert store.delete("a")
    assert not store.delete("a")
    assert store.get("a") is None
    assert store.input_items("a") is None
    assert store.find_item("msg_a") is None
    assert store.events("a") == []
    assert store.chain("b") == ([], "a")


def test_a_deleted_response_does_not_come_back_with_its_end(store):
    store.add(stored("a", status="in_progress"))
    store.delete("a")
    assert not store.update(stored("a"), [event(0)])
    store.append_events("a", [event(1)])
    assert store.get("a") is None
    assert store.events("a") == []


def test_an_update_replaces_body_and_items_and_logs_at_once(store):
    store.add(stored("a", status="queued"))
    assert store.update(stored("a", text="Bye"), [event(0), event(1)])
    assert store.get("a")["status"] == "completed"
    assert store.find_item("out_a")["content"] == "Bye"
    assert [e["sequence_number"] for e in store.events("a")] == [0, 1]
    assert [e["sequence_number"] for e in store.events("a", after=0)] == [1]


def test_what_is_not_used_for_long_is_forgotten(store, clock):
    store.add(stored("a"))
    store.add(stored("b", previous="a"))
    clock.now += 99
    store.chain("b")  # going on from b counts as a use of a too
    clock.now += 99
    assert store.get("a") is not None
    clock.now += 1
    assert store.get("a") is None
    assert store.chain("b") == ([], "b")
    store.prune()
    assert store.num_bytes() == 0


def test_the_least_recently_used_goes_when_there_is_too_much(store, clock):
    for name in "abc":
        store.add(stored(name, text="x" * 200))
        clock.now += 1
    assert store.num_bytes() <= 2000
    store.chain("a")
    clock.now += 1
    store.add(stored("d", text="x" * 200))
    assert [name for name in "abcd" if store.get(name)] == ["a", "c", "d"]


def test_the_log_counts_and_unfinished_responses_are_never_pushed_out(store, clock):
    store.add(stored("a", status="in_progress"))
    store.append_events("a", [event(0, "x" * 3000)])
    assert store.num_bytes() > 3000
    store.add(stored("b"))
    assert store.get("b") is None
    assert store.get("a") is not None


def test_the_file_is_for_its_owner_alone(store, tmp_path):
    store.add(stored("a"))
    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("r.db", "r.db-wal")}
    assert modes == {"r.db": 0o600, "r.db-wal": 0o600}


def test_a_file_that_is_no_store_or_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "r.db"
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 40)
    with pytest.raises(ConfigError, match="move it away"):
        Store(path)
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="newer"):
        Store(path)


WRITER = """
import sys
from aperto.server.store import Store
from tests.server.test_store import event, stored

store = Store(__import__("pathlib").Path(sys.argv[1]))
store.add(stored("done"))
store.add(stored("lost", status="in_progress"))
number = 0
while True:
    store.append_events("lost", [event(number), event(number + 1)])
    number += 2
    print(number, flush=True)
"""


def test_everything_that_was_said_to_be_written_survives_a_kill(tmp_path):
    path = tmp_path / "r.db"
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(20):
            announced = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split("\n")
    announced = max([announced, *(int(line) for line in rest if line)])
    with contextlib.closing(Store(path)) as store:
        assert store.get("done")["status"] == "completed"
        numbers = [e["sequence_number"] for e in store.events("lost")]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= announced
        assert len(numbers) % 2 == 0  # a call's events are there together or not at all
        assert [body["id"] for body in store.orphans()] == ["lost"]
        assert store.orphans() == []


def test_what_a_living_server_works_on_is_no_orphan(store, tmp_path, clock):
    store.add(stored("a", status="in_progress"))
    with contextlib.closing(Store(tmp_path / "r.db", clock=clock)) as other:
        assert other.orphans() == []
        assert other.get("a")["status"] == "in_progress"
