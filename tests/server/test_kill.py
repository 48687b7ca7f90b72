"""A server that is killed in the middle of its work, and the one that is started after it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys

import httpx
import pytest
from tests.server.kit import wait_until

pytestmark = pytest.mark.long

ENDLESS = {"format": {"type": "regex", "pattern": "([0-9]+ ){3000}"}}


@contextlib.contextmanager
def serving(folder):
    """`aperto serve nano` with its state in a folder; a client of it, and its process."""
    program = [sys.executable, "-c", "from aperto.cli.main import main; main()"]
    env = dict(os.environ, XDG_STATE_HOME=str(folder))
    command = [*program, "serve", "nano", "--port", "0"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            printed = ""
            while "Ctrl-C" not in printed:
                line = process.stderr.readline()
                assert line, f"it ended with {process.wait()}: {printed}"
                printed += line
            url = re.search(r"http://\S+(?=/v1)", printed)
            with httpx.Client(base_url=url[0], timeout=60) as client:
                yield client, process
        finally:
            process.kill()


def events_of(response):
    lines = (line.removeprefix("data: ") for line in response.iter_lines())
    return (json.loads(line) for line in lines if line.startswith("{"))


def test_what_was_stored_is_there_and_what_was_made_has_failed(tmp_path):
    path = "/v1/responses"
    with serving(tmp_path) as (client, process):
        kept = client.post(path, json={"input": "What is 2 + 2?", "seed": 1}).json()
        asked = {"input": "Count", "background": True, "text": ENDLESS}
        lost = client.post(path, json=asked).json()["id"]
        wait_until(lambda: client.get(f"{path}/{lost}").json()["status"] == "in_progress")
        with client.stream("GET", f"{path}/{lost}?stream=true") as response:
            last = next(e["sequence_number"] for e in events_of(response) if "delta" in e)
        process.kill()

    with serving(tmp_path) as (client, _):
        assert client.get(f"{path}/{kept['id']}").json() == kept
        body = client.get(f"{path}/{lost}").json()
        assert (body["status"], body["error"]["code"]) == ("failed", "server_error")
        with client.stream("GET", f"{path}/{lost}?stream=true&starting_after={last}") as response:
            resumed = list(events_of(response))
        numbers = [event["sequence_number"] for event in resumed]
        assert numbers == list(range(last + 1, last + 1 + len(numbers)))
        assert resumed[-1]["type"] == "response.failed"
        again = {"input": "And 3?", "previous_response_id": kept["id"]}
        assert client.post(path, json=again).json()["status"] == "completed"
