"""What this machine is and can: CPU, memory, disk, and the limits of its memory and arithmetic.

Linux only reads: /proc and the memory and CPU control groups (versions 1 and 2) of this process.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")

SHOWN_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)
"""CPU flags that matter to matrix products, in the order in which they are shown."""

# A version 1 control group without a limit states the largest page multiple of an int64.
_NO_LIMIT = 1 << 60

_BANDWIDTH_BYTES = 4 << 30
_SMALLEST_BANDWIDTH_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """The hardware as the operating system states it."""

    cpu: str
    """Model name, with family, model and stepping where the system states them."""
    features: tuple[str, ...]
    """Which of SHOWN_FEATURES the CPU has."""
    num_cpus: int
    """Logical CPUs this process may run on."""
    num_cores: int
    """Physical cores among them, no more than the CPU quota of the control group."""
    memory_bytes: int
    """Memory this process may use in all: the machine's, or its control group's limit."""
    available_bytes: int
    """Memory it may still take without swapping."""


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """The most that any program could reach here, as measured just now."""

    num_threads: int
    """Threads that ran together."""
    read_bytes_per_s: float
    """Best streaming read from huge pages."""
    int8_macs_per_s: float
    """8-bit multiply-adds from registers, with the widest dot product the CPU has."""
    f32_macs_per_s: float
    """float32 fused multiply-adds from registers."""


def best_of(first: Limits, second: Limits) -> Limits:
    """The higher of two measurements, figure by figure: neighbours only ever slow a probe down."""
    return Limits(
        num_threads=first.num_threads,
        read_bytes_per_s=max(first.read_bytes_per_s, second.read_bytes_per_s),
        int8_macs_per_s=max(first.int8_macs_per_s, second.int8_macs_per_s),
        f32_macs_per_s=max(first.f32_macs_per_s, second.f32_macs_per_s),
    )


def describe() -> Machine:
    """Read what this machine is; takes no measurable time."""
    return Machine(
        cpu=cpu_name(),
        features=cpu_features(),
        num_cpus=len(os.sched_getaffinity(0)),
        num_cores=num_cores(),
        memory_bytes=memory_bytes(),
        available_bytes=available_bytes(),
    )


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entries."""
    entries: dict[str, str] = {}
    for line in (root / "proc/cpuinfo").read_text().splitlines():
        key, separator, value = line.partition(":")
        if separator:
            entries.setdefault(key.strip(), value.strip())
    return entries


def cpu_name(root: Path = ROOT) -> str:
    """The CPU's model name, told apart by its numbers: clouds give many CPUs the same name."""
    entries = _cpuinfo(root)
    name = entries.get("model name") or f"{platform.machine()} CPU"
    if "cpu family" in entries:
        return (
            f"{name} (family {entries['cpu family']} model {entries.get('model', '?')} "
            f"stepping {entries.get('stepping', '?')})"
        )
    if "CPU part" in entries:
        return (
            f"{name} (implementer {entries.get('CPU implementer', '?')} part {entries['CPU part']})"
        )
    return name


def cpu_features(root: Path = ROOT) -> tuple[str, ...]:
    """Those of SHOWN_FEATURES that the CPU has."""
    entries = _cpuinfo(root)
    flags = set(entries.get("flags", entries.get("Features", "")).split())
    return tuple(feature for feature in SHOWN_FEATURES if feature in flags)


def num_cores(root: Path = ROOT, cpus: set[int] | None = None) -> int:
    """Physical cores of this process, hyper-threads counted once, within the CPU quota."""
    cpus = os.sched_getaffinity(0) if cpus is None else cpus
    cores = {_siblings(root, cpu) for cpu in cpus}
    quota = _cpu_quota(root)
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _siblings(root: Path, cpu: int) -> str:
    file = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
    return file.read_text().strip() if file.is_file() else str(cpu)


def _group_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control group and of its parents, both versions."""
    file = root / "proc/self/cgroup"
    if not file.is_file():
        return
    for line in file.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        # Inside a container the named path may be the host's: its parents, up to the mount, remain.
        group = Path(path)
        for folder in (group, *group.parents):
            yield mount / folder.relative_to("/")


def _cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time the control groups allow, None where they set no limit."""
    quotas = []
    for folder in _group_folders(root, "cpu"):
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
            if quota != "max":
                quotas.append(int(quota) / int(period))
        elif (folder / "cpu.cfs_quota_us").is_file():
            quota_us = int((folder / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                quotas.append(quota_us / int((folder / "cpu.cfs_period_us").read_text()))
    return min(quotas, default=None)


def _meminfo(root: Path, key: str) -> int:
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0


def _group_memory(root: Path) -> list[tuple[int, int]]:
    """(limit, unused) in bytes of every control group that limits this process's memory."""
    found = []
    for folder in _group_folders(root, "memory"):
        for limit_name, usage_name, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            if not (folder / limit_name).is_file():
                continue
            limit = (folder / limit_name).read_text().strip()
            if limit == "max" or int(limit) >= _NO_LIMIT:
                continue
            usage = int((folder / usage_name).read_text()) - _stat(folder, cache_key)
            found.append((int(limit), max(0, int(limit) - usage)))
    return found


def _stat(folder: Path, key: str) -> int:
    """One entry of memory.stat; cached file pages are given back when memory is short."""
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def memory_bytes(root: Path = ROOT) -> int:
    """Memory this process may use in all, in bytes."""
    limits = [limit for limit, _ in _group_memory(root)]
    return min([_meminfo(root, "MemTotal"), *limits])


def available_bytes(root: Path = ROOT) -> int:
    """Memory this process may still take, in bytes; what caches can give back is counted."""
    unused = [left for _, left in _group_memory(root)]
    return min([_meminfo(root, "MemAvailable"), *unused])


def disk_free_bytes(path: Path) -> int:
    """Free bytes, for this user, of the disk that holds `path` or would hold it."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def probe_read_bandwidth(num_threads: int, seconds: float = 1.0) -> float:
    """Measure the best streaming read from memory, in bytes/s.

    Takes a quarter of the free memory, at most 4 GiB, while it runs: far more than any cache.
    """
    from aperto import native

    num_bytes = min(_BANDWIDTH_BYTES, max(_SMALLEST_BANDWIDTH_BYTES, available_bytes() // 4))
    return float(native.probe_read_bandwidth(num_bytes, num_threads, seconds))


def probe_limits(num_threads: int, seconds: float = 1.0) -> Limits:
    """Measure memory and arithmetic, `seconds` each."""
    from aperto import native

    return Limits(
        num_threads=num_threads,
        read_bytes_per_s=probe_read_bandwidth(num_threads, seconds),
        int8_macs_per_s=float(native.probe_int8_peak(num_threads, seconds)),
        f32_macs_per_s=float(native.probe_f32_peak(num_threads, seconds)),
    )
