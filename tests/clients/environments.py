"""Environments of clients that do not get on with each other: made on demand, kept by pins."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from aperto.config import default_cache_dir

REQUIREMENTS = Path(__file__).parent / "requirements"
_TIMEOUT_S = 1200.0


def client_env(name: str) -> Path:
    """The Python of an environment that requirements/NAME.txt pins; skips where there is none."""
    return _environment(name, REQUIREMENTS / f"{name}.txt", _make_venv) / "bin" / "python"


def codex_binary() -> Path:
    """The Codex CLI that requirements/codex pins; skips where npm or its registry is missing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Codex needs npm and node, which are not installed")
    folder = _environment("codex", REQUIREMENTS / "codex" / "package.json", _make_modules)
    return folder / "node_modules" / ".bin" / "codex"


@functools.cache
def _environment(name: str, pins: Path, make: Callable[[Path, Path], None]) -> Path:
    """A folder that holds what a file pins. Other runs wait while one makes it."""
    version = "{}.{}".format(*sys.version_info)
    identity = hashlib.sha256(version.encode() + pins.read_bytes()).hexdigest()[:12]
    base = Path(os.environ.get("APERTO_CLIENT_ENVS") or default_cache_dir() / "clients")
    folder = base / f"{name}-{identity}"
    base.mkdir(parents=True, exist_ok=True)
    with (base / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder, pins)
            (folder / "made").touch()
    return folder


def _make_venv(folder: Path, pins: Path) -> None:
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    _run([*pip, "install", "--quiet", "--requirement", str(pins)], folder)


def _make_modules(folder: Path, pins: Path) -> None:
    folder.mkdir()
    shutil.copy(pins, folder)
    _run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], folder)


def _run(command: list[str], folder: Path) -> None:
    """Run an installer; where it fails, tests are skipped and its first error is the reason."""
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{folder.name} was not installed within {_TIMEOUT_S:.0f} s")
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "no output").strip().splitlines()
        reason = next((line for line in lines if "error" in line.lower()), lines[-1])
        pytest.skip(f"{folder.name} cannot be installed here: {reason}")
