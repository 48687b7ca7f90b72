"""A server of our own under test: its process, its doors, its memory, its metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

START_S = 600


@dataclasses.dataclass(frozen=True)
class Usage:
    """What the server's process holds."""

    rss_mib: float
    threads: int
    files: int


class Served:
    """A running `aperto serve`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url
        self._ps = psutil.Process(process.pid)

    def usage(self) -> Usage:
        """Memory, threads and open files of the process now."""
        with self._ps.oneshot():
            rss = self._ps.memory_info().rss / 2**20
            return Usage(rss, self._ps.num_threads(), self._ps.num_fds())

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that carry these labels."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        total = 0.0
        for line in text.splitlines():
            found = re.match(rf"{name}(?:\{{(.*)\}})? (\S+)$", line)
            if found and all(f'{k}="{v}"' in (found[1] or "") for k, v in labels.items()):
                total += float(found[2])
        return total


@contextlib.contextmanager
def served(model: str, log: Path, *options: str) -> Iterator[Served]:
    """`aperto serve MODEL OPTIONS` on a free port of this machine, until the block ends."""
    aperto = Path(sys.executable).with_name("aperto")
    command = [str(aperto), "serve", model, "--port", "0", *options]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        yield Served(process, _wait_for_url(process, log))
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for_url(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        found = re.search(r"http://[\d.]+:(\d+)", log.read_text())
        if found:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{found[0]}/health", timeout=5).status_code == 200:
                    return found[0]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not answer within {START_S} s:\n{log.read_text()}")
