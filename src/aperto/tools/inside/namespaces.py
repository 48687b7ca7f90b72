"""Starts a program in namespaces of its own with a file tree of its own, without bubblewrap."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

from . import kernel

_DEVICES = ("null", "zero", "full", "random", "urandom")
_NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWNET
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWCGROUP
)


def main() -> None:
    """Start `command` as the first process of a sandbox; the plan is JSON in the first argument."""
    plan = json.loads(sys.argv[1])
    ready_out, ready_in = os.pipe()
    mapped_out, mapped_in = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ready_out)
        os.close(mapped_in)
        _in_child(plan, ready_in, mapped_out)
    os.close(ready_in)
    os.close(mapped_out)
    if os.read(ready_out, 1):
        _map_ids(child, plan["inner_uid"], plan["outer_uid"])
        os.write(mapped_in, b"m")
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def _in_child(plan: dict[str, Any], ready_in: int, mapped_out: int) -> NoReturn:
    status = 1
    try:
        kernel.unshare(_NAMESPACES)
        os.write(ready_in, b"r")
        os.close(ready_in)
        if os.read(mapped_out, 1):
            first = os.fork()
            if first == 0:
                _become_first(plan)
            status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF
    except OSError as error:
        print(error, file=sys.stderr)
    finally:
        os._exit(status)


def _map_ids(child: int, inner: int, outer: int) -> None:
    """Map the sandbox's user to `outer`; root keeps itself mapped as well, to make the mounts."""
    folder = Path(f"/proc/{child}")
    if os.geteuid() == 0:
        lines = f"0 0 1\n{inner} {outer} 1\n"
    else:
        lines = f"{inner} {os.geteuid()} 1\n"
        (folder / "setgroups").write_text("deny")
    (folder / "uid_map").write_text(lines)
    gid_lines = lines if os.geteuid() == 0 else f"{inner} {os.getegid()} 1\n"
    (folder / "gid_map").write_text(gid_lines)


def _become_first(plan: dict[str, Any]) -> NoReturn:
    try:
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
        _build_tree(plan["root"], plan)
        kernel.enter_root(plan["root"])
        kernel.make_read_only("/", recursive=False)
        command = plan["command"]
        os.execve(command[0], command, plan["environment"])
    except OSError as error:
        print(error, file=sys.stderr)
    finally:
        os._exit(1)


def _build_tree(root: str, plan: dict[str, Any]) -> None:
    plain = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("tmpfs", root, "tmpfs", plain, "mode=0755,size=1m")
    for source, target in plan["read_only"]:
        _bind(source, root + target, read_only=True)
    for link, target in plan["links"]:
        Path(root + link).symlink_to(target)
    for target, size_bytes in plan["scratch"]:
        Path(root + target).mkdir(parents=True, exist_ok=True)
        options = f"mode=1777,size={size_bytes}"
        kernel.mount("tmpfs", root + target, "tmpfs", plain, options)
    for source, target in plan["writable"]:
        _bind(source, root + target, read_only=False)
    _devices(root, plan["shared_memory_bytes"])
    Path(root + "/proc").mkdir()
    kernel.mount("proc", root + "/proc", "proc", plain | 0x8)  # 0x8: no programs are run from it
    kernel.make_read_only(root + "/proc", recursive=False)


def _bind(source: str, target: str, *, read_only: bool) -> None:
    place = Path(target)
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    kernel.mount(source, target, None, kernel.MS_BIND | kernel.MS_REC)
    if read_only:
        kernel.make_read_only(target, recursive=True)


def _devices(root: str, shared_memory_bytes: int) -> None:
    folder = Path(root + "/dev")
    folder.mkdir()
    for name in _DEVICES:
        _bind(f"/dev/{name}", str(folder / name), read_only=False)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (folder / name).symlink_to(f"/proc/self/{target}")
    (folder / "shm").mkdir()
    plain = kernel.MS_NOSUID | kernel.MS_NODEV
    options = f"mode=1777,size={shared_memory_bytes}"
    kernel.mount("tmpfs", str(folder / "shm"), "tmpfs", plain, options)
