"""The first process of the sandbox: keeps an interpreter running and its limits.

Commands come as lines of JSON on standard input, answers go as such lines to standard output. Each
command is a cell of code; it runs in a child that lives on from cell to cell until it breaks a
limit. When standard input ends, the sandbox ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import site
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from . import kernel, seccomp
from .cell import Interpreter

_TICK_S = 0.05
_GRACE_S = 1.0
_DRAIN_S = 0.2
_READ_BYTES = 1 << 16
_SWEEPS, _SWEEP_S = 5, 0.01
_OPEN_FILES = 512
_LENGTH = struct.Struct("!I")


class Output:
    """What a cell wrote: its beginning and its end, within a limit in bytes."""

    def __init__(self, limit: int) -> None:
        self._head_limit = limit * 3 // 4
        self._tail_limit = limit - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def add(self, data: bytes) -> None:
        """Take more output."""
        self._total += len(data)
        room = self._head_limit - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._tail_limit + _READ_BYTES:
            del self._tail[: -self._tail_limit]

    def text(self) -> str:
        """The output with a note where some was left out."""
        tail = self._tail[-self._tail_limit :]
        dropped = self._total - len(self._head) - len(tail)
        head_text, tail_text = (part.decode("utf-8", "replace") for part in (self._head, tail))
        if not dropped:
            return (self._head + tail).decode("utf-8", "replace")
        return f"{head_text}\n[… {dropped} bytes of output left out …]\n{tail_text}"


class Worker:
    """The child that runs the cells."""

    def __init__(self, config: dict[str, Any]) -> None:
        code_out, self.code_fd = os.pipe()
        self.done_fd, done_in = os.pipe()
        self.output_fd, output_in = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self.close()
            _work(config, code_out, done_in, output_in)
        for fd in (code_out, done_in, output_in):
            os.close(fd)
        os.set_blocking(self.output_fd, False)
        os.set_blocking(self.code_fd, False)

    def close(self) -> None:
        """Let go of this end of the pipes."""
        for fd in (self.code_fd, self.done_fd, self.output_fd):
            os.close(fd)


def _work(config: dict[str, Any], code_fd: int, done_fd: int, output_fd: int) -> NoReturn:
    """The life of the child."""
    try:
        if not config["contained"]:
            os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output_fd, 1)
        os.dup2(output_fd, 2)
        os.close(nothing)
        os.close(output_fd)
        kernel.set_dumpable(True)
        memory = config["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _run_cells(config, code_fd, done_fd)
    finally:
        os._exit(1)


def _run_cells(config: dict[str, Any], code_fd: int, done_fd: int) -> None:
    site.setquit()
    site.sethelper()
    sys.path += config["packages"]
    sys.argv = [""]
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    interpreter, pid = Interpreter(), os.getpid()
    while size := os.read(code_fd, _LENGTH.size):
        try:
            interpreter.run(_read_exactly(code_fd, _LENGTH.unpack(size)[0]).decode())
            sys.stdout.flush()
        except KeyboardInterrupt:
            print("KeyboardInterrupt", file=sys.stderr)
        finally:
            if os.getpid() != pid:  # a child that the cell forked and that ran to its end
                os._exit(0)
        os.write(done_fd, b"d")


def _read_exactly(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(fd, size - len(data))
        if not piece:
            raise EOFError("the warden is gone")
        data += piece
    return bytes(data)


class Warden:
    """Runs cells in a worker and ends what breaks a limit."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._worker: Worker | None = None

    def serve(self) -> None:
        """Answer commands until standard input ends."""
        for line in sys.stdin:
            command = json.loads(line)
            print(json.dumps(self._run(command["code"], command["time_s"])), flush=True)

    def _run(self, code: str, time_s: float) -> dict[str, str]:
        if self._worker is None:
            self._worker = Worker(self._config)
        output = Output(self._config["output_bytes"])
        state = self._watch(self._worker, code.encode("utf-8", "replace"), time_s, output)
        if state == "interrupted" and not self._kill_strays():
            state = "time"
        if state not in ("ok", "interrupted"):
            self._end_worker(output)
        return {"state": state, "output": output.text()}

    def _watch(self, worker: Worker, code: bytes, time_s: float, output: Output) -> str:
        """Run a cell in the worker: how it ended."""
        pending = memoryview(_LENGTH.pack(len(code)) + code)
        deadline, interrupted = time.monotonic() + time_s, False
        poll = select.poll()
        poll.register(worker.done_fd, select.POLLIN)
        poll.register(worker.output_fd, select.POLLIN)
        poll.register(worker.code_fd, select.POLLOUT)
        poll.register(0, 0)  # reports only that the other end is gone
        while True:
            ready = dict(poll.poll(_TICK_S * 1000))
            if ready.get(0, 0) & (select.POLLHUP | select.POLLERR):
                self._leave(worker)
            if worker.code_fd in ready:
                pending = _write_some(worker.code_fd, pending)
                if not pending:
                    poll.unregister(worker.code_fd)
            if worker.output_fd in ready:
                _drain(worker.output_fd, output, once=True)
            if worker.done_fd in ready:
                is_done = os.read(worker.done_fd, 1) == b"d"
                _drain(worker.output_fd, output, once=False)
                return ("interrupted" if interrupted else "ok") if is_done else "died"
            if self._is_over_memory():
                return "memory"
            if time.monotonic() > deadline:
                if interrupted:
                    return "time"
                interrupted, deadline = True, deadline + _GRACE_S
                os.kill(worker.pid, signal.SIGINT)

    def _is_over_memory(self) -> bool:
        if not self._config["contained"]:
            return False
        pids = [pid for pid in _processes() if pid != os.getpid()]
        limit = int(self._config["memory_bytes"])
        return sum(map(_resident, pids)) > limit and sum(map(_proportional, pids)) > limit

    def _kill_strays(self) -> bool:
        """End what an interrupted cell left running; whether there is room again.

        Dead children that the worker does not collect still count as processes.
        """
        if not self._config["contained"] or self._worker is None:
            return True
        left = 0
        for _ in range(_SWEEPS):
            strays = [pid for pid in _processes() if pid not in (os.getpid(), self._worker.pid)]
            left = len(strays)
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_SWEEP_S)
            _reap(self._worker.pid)
        return left <= int(self._config["processes"]) // 4

    def _leave(self, worker: Worker) -> NoReturn:
        """The other end is gone; with its first process the whole sandbox ends."""
        _kill_all(self._config, worker.pid)
        os._exit(0)

    def _end_worker(self, output: Output) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        _kill_all(self._config, worker.pid)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, 0):  # everything was killed and comes here to be collected
                pass
        _drain(worker.output_fd, output, once=False)
        worker.close()


def _write_some(fd: int, data: memoryview) -> memoryview:
    try:
        return data[os.write(fd, data[:_READ_BYTES]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]


def _drain(fd: int, output: Output, *, once: bool) -> None:
    """Read what is there; a flood without end is left after a moment."""
    until = time.monotonic() + _DRAIN_S
    with contextlib.suppress(BlockingIOError):
        while data := os.read(fd, _READ_BYTES):
            output.add(data)
            if once or time.monotonic() > until:
                return


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208


def _resident(pid: int) -> int:
    """Memory of a process in bytes, shared pages included."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _proportional(pid: int) -> int:
    """Memory of a process in bytes, each shared page divided among those that share it."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except PermissionError:
        return _resident(pid)
    except OSError:
        pass
    return 0


def _kill_all(config: dict[str, Any], worker: int) -> None:
    """End every process of the sandbox but this one; without a sandbox, those of the worker."""
    with contextlib.suppress(ProcessLookupError):
        if config["contained"] and os.getpid() == 1:
            os.kill(-1, signal.SIGKILL)
        else:
            os.killpg(worker, signal.SIGKILL)


def _reap(spared: int) -> None:
    """Collect the dead processes that came to this one, but for the worker."""
    for pid in _processes():
        if pid not in (os.getpid(), spared):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def lock(config: dict[str, Any]) -> None:
    """Give up what the sandbox is not to have, for good."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: config["file_bytes"],
        resource.RLIMIT_NOFILE: _OPEN_FILES,
    }
    if config["contained"]:
        limits |= {resource.RLIMIT_NPROC: config["processes"], resource.RLIMIT_MSGQUEUE: 0}
    for name, value in limits.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))
    if not config["contained"]:
        return
    if os.getpid() != 1:
        raise RuntimeError(f"the sandbox's first process has id {os.getpid()}; expected 1")
    if config["uid"] is not None:
        os.setgroups([])
        os.setresgid(config["uid"], config["uid"], config["uid"])
        os.setresuid(config["uid"], config["uid"], config["uid"])
    kernel.drop_capabilities()
    kernel.set_dumpable(False)
    kernel.filter_calls(seccomp.program())


def main() -> None:
    """Serve with the limits given as JSON in the first argument."""
    config = json.loads(sys.argv[1])
    lock(config)
    os.chdir(config["directory"])
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Warden(config).serve()
