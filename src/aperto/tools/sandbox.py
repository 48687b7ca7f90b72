"""A place where code of the model can run: no network, no files of the user, hard limits.

Two ways lead there: bubblewrap where it is installed and works, else namespaces made by ourselves.
Inside, both lead to the same first process (`inside/warden.py`), which gives up every privilege and
installs the filter of kernel calls. `probe` tries them once and says why one does not work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from aperto.tools.inside import seccomp

_INNER_UID = 1000
_INSIDE = Path(__file__).parent / "inside"
_PYTHON_HOME, _PACKAGES_HOME = "/opt/python", "/opt/packages"
_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/alternatives")
_SHARED_MEMORY_BYTES = 64 << 20
_PROBE_S = 20.0
_HARD_GRACE_S = 8.0
_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from inside import {0}; {0}.main()"


class Confinement(enum.StrEnum):
    """How code is kept apart from the machine."""

    BUBBLEWRAP = "bubblewrap"
    NAMESPACES = "namespaces"
    NONE = "none"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What code in a sandbox may use."""

    memory_bytes: int = 2 << 30
    """Address space of each process, and memory of all of them together."""
    processes: int = 64
    """Processes and threads at a time."""
    file_bytes: int = 256 << 20
    """Size of one file."""
    scratch_bytes: int = 256 << 20
    """Size of /tmp, and of /mnt/data where it is not a folder of the user; kept in memory."""
    output_bytes: int = 20_000
    """Output of one call that is kept; the middle of more is left out."""


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """What was found out about sandboxes on this machine."""

    confinement: Confinement | None
    """The best way that works; None where there is none."""
    reasons: tuple[str, ...]
    """Why the better ways do not work."""

    def __str__(self) -> str:
        found = f"sandbox: {self.confinement or 'none works on this machine'}"
        return "; ".join((found, *self.reasons))


@dataclasses.dataclass(frozen=True, slots=True)
class CellResult:
    """How a piece of code ended."""

    state: str
    """ok, interrupted (at the time limit), or time, memory, died: the interpreter was ended."""
    output: str
    """What it wrote."""


class SandboxDiedError(Exception):
    """The sandbox ended or does not answer; everything in it is lost."""


@functools.cache
def probe() -> Probe:
    """Find the best confinement that works here, once per process."""
    reasons: list[str] = []
    for confinement in (Confinement.BUBBLEWRAP, Confinement.NAMESPACES):
        reason = why_not(confinement)
        if reason is None:
            return Probe(confinement, tuple(reasons))
        reasons.append(f"{confinement}: {reason}")
    return Probe(None, tuple(reasons))


def why_not(confinement: Confinement) -> str | None:
    """Why a confinement does not work here; None where it does. Starts a sandbox to find out."""
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    if not seccomp.is_supported(os.uname().machine):
        return f"no filter of kernel calls for {os.uname().machine}"
    if confinement is Confinement.BUBBLEWRAP and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    try:
        with contextlib.closing(Sandbox(confinement)) as sandbox:
            result = sandbox.run("print(6 * 7)", _PROBE_S)
    except (SandboxDiedError, OSError) as error:
        return str(error)
    return None if result.output == "42\n" else f"a trial printed {result.output!r}"


class Sandbox:
    """An interpreter that keeps its names from call to call, confined.

    Args:
        confinement: how it is kept apart.
        limits: what it may use.
        data: a folder of the user, mounted writable at /mnt/data; None gives an empty one that
            goes with the sandbox.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        confinement: Confinement,
        limits: Limits | None = None,
        data: Path | None = None,
    ) -> None:
        self.confinement = confinement
        """How it is kept apart."""
        self._limits = limits or Limits()
        self._folder = Path(tempfile.mkdtemp(prefix="aperto-sandbox-"))
        self._log = (self._folder / "log").open("w+b")
        (self._folder / "root").mkdir()
        try:
            self._process = self._start(data)
        except BaseException:
            self._remove()
            raise

    def run(self, code: str, time_s: float) -> CellResult:
        """Run a piece of code for at most `time_s` seconds.

        Raises:
            SandboxDiedError: the sandbox has ended or does not answer in time; close it.
        """
        command = json.dumps({"code": code, "time_s": time_s}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command.encode())
            self._process.stdin.flush()
        except OSError:
            raise SandboxDiedError(self._last_words()) from None
        return _result(self._read_line(time.monotonic() + time_s + _HARD_GRACE_S))

    def close(self) -> None:
        """End everything that runs in the sandbox."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        self._remove()

    def _start(self, data: Path | None) -> subprocess.Popen[bytes]:
        if self.confinement is Confinement.NONE:
            command, environment = _bare(self._limits, data or self._folder / "root")
        else:
            plan = _plan(self._limits, data, self._folder / "root")
            build = _bubblewrap if self.confinement is Confinement.BUBBLEWRAP else _namespaces
            command, environment = build(plan), plan["environment"]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            cwd="/",
            start_new_session=True,
        )

    def _read_line(self, deadline: float) -> bytes:
        """One line of the first process, which is not trusted to keep to any size or time."""
        pipe: IO[bytes] | None = self._process.stdout
        assert pipe is not None
        limit = 8 * self._limits.output_bytes + (1 << 16)
        line = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise SandboxDiedError("it did not answer in time")
                data = os.read(pipe.fileno(), 1 << 16)
                line += data
                if not data:
                    raise SandboxDiedError(self._last_words())
                if len(line) > limit:
                    raise SandboxDiedError(f"it answered with more than {limit} bytes")
        return bytes(line)

    def _last_words(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2.0)
        self._log.seek(0)
        lines = self._log.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with status {self._process.returncode}"

    def _remove(self) -> None:
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _result(line: bytes) -> CellResult:
    try:
        fields = json.loads(line)
        return CellResult(str(fields["state"]), str(fields["output"]))
    except (ValueError, KeyError, TypeError):
        raise SandboxDiedError(f"it answered {line[:80]!r}") from None


def _plan(limits: Limits, data: Path | None, root: Path) -> dict[str, Any]:
    """What the sandbox is made of, for either way of making it."""
    read_only, links = _system()
    interpreter, python_mounts, packages = _python()
    scratch = [("/tmp", limits.scratch_bytes)]
    if data is None:
        scratch.append(("/mnt/data", limits.scratch_bytes))
    environment = {
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "OPENBLAS_NUM_THREADS": "2",
        "OMP_NUM_THREADS": "2",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "USER": "user",
    }
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and interpreter.startswith(_PYTHON_HOME):
        environment["LD_LIBRARY_PATH"] = f"{_PYTHON_HOME}/lib"
    return {
        "root": str(root),
        "read_only": [*read_only, *python_mounts, (str(_INSIDE), "/opt/aperto/inside")],
        "links": links,
        "scratch": scratch,
        "writable": [] if data is None else [(str(data.resolve()), "/mnt/data")],
        "shared_memory_bytes": _SHARED_MEMORY_BYTES,
        "environment": environment,
        "inner_uid": _INNER_UID,
        "outer_uid": _unprivileged_uid(data),
        "interpreter": interpreter,
        "config": _config(limits) | {"packages": packages},
    }


def _config(limits: Limits) -> dict[str, Any]:
    """What the first process is told."""
    return {
        "contained": True,
        "uid": None,
        "directory": "/mnt/data",
        "memory_bytes": limits.memory_bytes,
        "processes": limits.processes + _foreign_processes(),
        "file_bytes": limits.file_bytes,
        "output_bytes": limits.output_bytes,
        "packages": [],
    }


def _foreign_processes() -> int:
    """What else counts against the limit of processes: before Linux 5.14, all of the user's."""
    major, minor = (int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    if (major, minor) >= (5, 14) or os.geteuid() == 0:
        return 0
    count = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if folder.stat().st_uid == os.geteuid():
                count += len(list((folder / "task").iterdir()))
    return count


def _unprivileged_uid(data: Path | None) -> int:
    """The user that root's sandboxes run as: the data folder's owner, else one nobody has."""
    owner = 0 if data is None else data.stat().st_uid
    if owner:
        return owner
    mapped = Path("/proc/self/uid_map").read_text().split()
    whole_machine = int(mapped[2]) == 2**32 - 1
    return (1 << 30) + secrets.randbelow(1 << 20) if whole_machine else 65534


def _system() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Mounts of the system's programs and libraries, and the links among them."""
    mounts, links = [], []
    for path in map(Path, (*_SYSTEM_FOLDERS, *_SYSTEM_FILES)):
        if path.is_symlink():
            links.append((str(path), str(path.readlink())))
        elif path.exists():
            mounts.append((str(path), str(path)))
    return mounts, links


def _python() -> tuple[str, list[tuple[str, str]], list[str]]:
    """Interpreter inside, the mounts it needs and the folders of packages.

    It lies at another path than outside, so that no folder of the user appears in the sandbox.
    """
    base = Path(sys.base_prefix).resolve()
    is_system = base.is_relative_to("/usr")
    home = str(base) if is_system else _PYTHON_HOME
    mounts = [] if is_system else [(str(base), _PYTHON_HOME)]
    packages = []
    for index, name in enumerate(dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))):
        folder = Path(name).resolve()
        if folder.is_relative_to(base):
            packages.append(f"{home}/{folder.relative_to(base)}")
        elif folder.is_relative_to("/usr"):
            packages.append(str(folder))
        elif folder.is_dir():
            packages.append(f"{_PACKAGES_HOME}/{index}")
            mounts.append((str(folder), packages[-1]))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return f"{home}/bin/{version}", mounts, packages


def _warden(plan: dict[str, Any], uid: int | None) -> list[str]:
    config = json.dumps(plan["config"] | {"uid": uid})
    start = _START.format("warden")
    return [plan["interpreter"], "-I", "-S", "-B", "-c", start, "/opt/aperto", config]


def _bubblewrap(plan: dict[str, Any]) -> list[str]:
    is_root = os.geteuid() == 0
    inner = str(plan["inner_uid"])
    command = [shutil.which("bwrap") or "bwrap", "--as-pid-1", "--hostname", "sandbox"]
    command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    command += ["--unshare-cgroup-try"]
    if is_root:  # the first process becomes another user, and then has no capabilities
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        command += ["--cap-add", "CAP_SETPCAP"]
    else:
        command += ["--unshare-user", "--uid", inner, "--gid", inner]
    for folder in ("/etc", "/mnt", "/nix", "/opt", _PACKAGES_HOME, "/opt/aperto"):
        command += ["--perms", "0755", "--dir", folder]  # else only root could enter them
    for source, target in plan["read_only"]:
        command += ["--ro-bind", source, target]
    for link, target in plan["links"]:
        command += ["--symlink", target, link]
    for target, size in plan["scratch"]:
        command += ["--perms", "1777", "--size", str(size), "--tmpfs", target]
    for source, target in plan["writable"]:
        command += ["--bind", source, target]
    command += ["--dev", "/dev", "--perms", "1777", "--size", str(plan["shared_memory_bytes"])]
    command += ["--tmpfs", "/dev/shm", "--proc", "/proc"]
    for target in ("/dev", "/proc", "/"):
        command += ["--remount-ro", target]
    return [*command, "--chdir", "/", "--", *_warden(plan, plan["outer_uid"] if is_root else None)]


def _namespaces(plan: dict[str, Any]) -> list[str]:
    uid = plan["inner_uid"] if os.geteuid() == 0 else None
    whole = json.dumps(plan | {"command": _warden(plan, uid)})
    start = _START.format("namespaces")
    return [sys.executable, "-I", "-S", "-B", "-c", start, str(_INSIDE.parent), whole]


def _bare(limits: Limits, folder: Path) -> tuple[list[str], dict[str, str]]:
    """No confinement at all: the user's own rights, in a folder for the purpose."""
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    config = _config(limits) | {
        "contained": False,
        "directory": str(folder),
        "packages": list(dict.fromkeys(packages)),
    }
    start = _START.format("warden")
    command = [sys.executable, "-I", "-S", "-B", "-c", start, str(_INSIDE.parent)]
    return [*command, json.dumps(config)], {"HOME": str(folder), "PATH": os.defpath}
