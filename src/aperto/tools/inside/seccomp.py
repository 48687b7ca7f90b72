"""The filter of kernel calls: what sandboxed code has no use for is refused.

Ordinary computing needs none of the calls named here. Calls that are newer than this table do not
exist for the sandbox.
"""

from __future__ import annotations

import errno
import os
import struct

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NEWEST_CALL = 456
_X32_CALLS = 0x40000000

# name: number on x86_64, number on aarch64 (None where it does not exist)
_REFUSED: dict[str, tuple[int, int | None]] = {
    # other processes' memory and files
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # memory that no limit counts
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # large or seldom used parts of the kernel
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "get_mempolicy": (239, 236),
    # running the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "syslog": (103, 116),
    "vhangup": (153, 58),
    "lookup_dcookie": (212, 18),
    "uselib": (134, None),
    "sysfs": (139, None),
    "nfsservctl": (180, 42),
}
_SOCKET, _CLONE, _CLONE3, _IOCTL = (41, 198), (56, 220), (435, 435), (16, 29)
_AF_UNIX = 1
_CLONE_NAMESPACES = 0x7E020000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_OFFSET_CALL, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16
_KILL, _ALLOW, _ERROR = 0x80000000, 0x7FFF0000, 0x00050000


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _return(value: int) -> bytes:
    return _step(_RETURN, value)


def _when_equal(number: int, then: list[bytes]) -> list[bytes]:
    return [_step(_EQUAL, number, 0, len(then)), *then]


def _argument(index: int) -> bytes:
    return _step(_LOAD, _OFFSET_ARGUMENTS + 8 * index)


def refused_calls(machine: str) -> dict[str, int]:
    """Names and numbers of the calls that are always refused on `machine`."""
    column = list(_ARCHITECTURES).index(machine)
    rows = {name: numbers[column] for name, numbers in _REFUSED.items()}
    return {name: number for name, number in rows.items() if number is not None}


def is_supported(machine: str) -> bool:
    """Whether there is a table for this kind of processor."""
    return machine in _ARCHITECTURES


def program(machine: str | None = None) -> bytes:
    """The filter as BPF, 8 bytes an instruction. KeyError for a processor without a table."""
    machine = machine or os.uname().machine
    architecture = _ARCHITECTURES[machine]
    column = list(_ARCHITECTURES).index(machine)
    refuse, absent = _return(_ERROR | errno.EPERM), _return(_ERROR | errno.ENOSYS)
    steps = [
        _step(_LOAD, _OFFSET_ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _return(_KILL),
        _step(_LOAD, _OFFSET_CALL),
        _step(_AT_LEAST, _X32_CALLS, 0, 1),
        _return(_KILL),
        _step(_AT_LEAST, _NEWEST_CALL + 1, 0, 1),
        absent,
    ]
    for number in refused_calls(machine).values():
        steps += _when_equal(number, [refuse])
    # The C library falls back to clone, whose flags a filter can read.
    steps += _when_equal(_CLONE3[column], [absent])
    steps += _when_equal(
        _SOCKET[column],
        [
            _argument(0),
            _step(_EQUAL, _AF_UNIX, 1, 0),
            _return(_ERROR | errno.ENETUNREACH),
            _return(_ALLOW),
        ],
    )
    steps += _when_equal(
        _CLONE[column],
        [_argument(0), _step(_ANY_BIT, _CLONE_NAMESPACES, 0, 1), refuse, _return(_ALLOW)],
    )
    steps += _when_equal(
        _IOCTL[column],
        [
            _argument(1),
            *_when_equal(_TIOCSTI, [refuse]),
            *_when_equal(_TIOCLINUX, [refuse]),
            _return(_ALLOW),
        ],
    )
    return b"".join([*steps, _return(_ALLOW)])
