"""The built-in `python`: a notebook's interpreter in a sandbox."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from pathlib import Path

from aperto.errors import ConfigError, ResourceError
from aperto.harmony.builtin import PYTHON
from aperto.harmony.messages import FunctionTool, Message, ToolNamespace
from aperto.tools.sandbox import (
    CellResult,
    Confinement,
    Limits,
    Sandbox,
    SandboxDiedError,
    probe,
)
from aperto.tools.tool import answer

TIME_LIMIT_S = 120.0
"""Seconds one call may take; the number that the tool's announcement states."""
_FENCE = re.compile(r"\A```[a-z]*\n(.*?)\n?```\s*\Z", re.DOTALL)
_NO_OUTPUT = "(no output; print something or end with an expression to see its value)"
_RESTARTED = "The interpreter was restarted: all variables are gone, files are still there."


class PythonTool:
    """Runs Python; variables stay from call to call.

    Args:
        data: folder of the user that the code sees, writable, as /mnt/data; None gives an empty
            one that goes with the tool.
        time_limit_s: seconds one call may take.
        limits: memory, processes, files and output.
        allow_unsandboxed: run with the user's own rights where no sandbox can be had.

    Raises:
        ResourceError: no sandbox can be had here, and running without one was not allowed.
        ConfigError: `data` is no folder.
    """

    name = "python"
    """Its name in specifications and its recipient."""
    functions: tuple[FunctionTool, ...] = ()
    """None: it is announced as a namespace."""

    def __init__(
        self,
        *,
        data: Path | None = None,
        time_limit_s: float = TIME_LIMIT_S,
        limits: Limits | None = None,
        allow_unsandboxed: bool = False,
    ) -> None:
        if data is not None and not data.is_dir():
            raise ConfigError(f"{data} is no folder; expected one for python's /mnt/data")
        self.confinement = _confinement(allow_unsandboxed)
        """How the code is kept apart from this machine."""
        self.namespace: ToolNamespace | None = _announcement(self.confinement, time_limit_s)
        """How the system message announces it."""
        self._data = data
        self._time_limit_s = time_limit_s
        self._limits = limits or Limits()
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()

    def accepts(self, recipient: str) -> bool:
        """Calls of ``python``."""
        return recipient.split(".")[0] == self.name

    def run(self, call: Message) -> tuple[Message, ...]:
        """Run the code of a call: plain, or as JSON ``{"code": …}``."""
        with self._lock:
            return answer(call, self._run(code_of(call.text)))

    def close(self) -> None:
        """End the interpreter and what it started."""
        with self._lock:
            self._close()

    def _run(self, code: str) -> str:
        try:
            if self._sandbox is None:
                self._sandbox = Sandbox(self.confinement, self._limits, self._data)
            return self._text(self._sandbox.run(code, self._time_limit_s))
        except (SandboxDiedError, OSError) as error:
            self._close()
            return f"[The sandbox ended: {error}. The next call starts a new, empty one.]"
        except BaseException:  # Ctrl-C: the answer to come must not be taken for the next one's
            self._close()
            raise

    def _text(self, result: CellResult) -> str:
        limit_s, memory = f"{self._time_limit_s:g} s", self._limits.memory_bytes >> 20
        notes = {
            "ok": "",
            "interrupted": f"[Stopped at the time limit of {limit_s}; variables are kept.]",
            "time": f"[Ended at the time limit of {limit_s}. {_RESTARTED}]",
            "memory": f"[Ended: more than {memory} MiB of memory. {_RESTARTED}]",
            "died": f"[The interpreter died. {_RESTARTED}]",
        }
        note = notes.get(result.state, f"[{_RESTARTED}]")
        parts = [part for part in (result.output.rstrip("\n"), note) if part]
        return "\n".join(parts) or _NO_OUTPUT

    def _close(self) -> None:
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            sandbox.close()


def code_of(text: str) -> str:
    """The code of a call: plain text, JSON with ``code``, or a fenced block."""
    with contextlib.suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict) and isinstance(value.get("code"), str):
            text = value["code"]
    fenced = _FENCE.match(text.strip())
    return fenced.group(1) if fenced else text


def _confinement(allow_unsandboxed: bool) -> Confinement:
    found = probe()
    if found.confinement is not None:
        return found.confinement
    if allow_unsandboxed:
        return Confinement.NONE
    raise ResourceError(
        f"python needs a sandbox, and none works here: {'; '.join(found.reasons)}. Install "
        "bubblewrap, or let it run with your own rights (--unsandboxed, allow_unsandboxed=True)"
    )


def _announcement(confinement: Confinement, time_limit_s: float) -> ToolNamespace:
    """The trained wording, with what is known here instead of what it leaves open."""
    text = (PYTHON.description or "").replace("120.0", f"{time_limit_s:.1f}")
    network = "UNKNOWN. Depends on the cluster."
    known = "enabled." if confinement is Confinement.NONE else "disabled."
    return ToolNamespace("python", text.replace(network, known))
