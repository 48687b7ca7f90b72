"""Reading the machine: model names, hyper-threads, control groups of both versions, disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from aperto import machine, native

MEMINFO = "MemTotal:       24000000 kB\nMemFree:        1000000 kB\nMemAvailable:   20000000 kB\n"
X86 = """processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9V74 80-Core Processor
stepping\t: 1
flags\t\t: fpu avx2 fma f16c avx512f avx512_vnni nonsense

processor\t: 1
model name\t: something else
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


def write(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/cpuinfo", X86)
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    return tmp_path


def test_cpu_is_named_with_its_numbers(root: Path) -> None:
    name = machine.cpu_name(root)
    assert name == "AMD EPYC 9V74 80-Core Processor (family 25 model 17 stepping 1)"
    assert machine.cpu_features(root) == ("avx2", "fma", "f16c", "avx512f", "avx512_vnni")


def test_an_arm_cpu_has_no_model_name(root: Path) -> None:
    write(root, "proc/cpuinfo", ARM)
    assert machine.cpu_name(root).endswith("CPU (implementer 0x41 part 0xd40)")
    assert machine.cpu_features(root) == ("asimd", "asimddp")


def test_hyper_threads_count_once(root: Path) -> None:
    for cpu, siblings in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        path = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        write(root, path, siblings + "\n")
    assert machine.num_cores(root, {0, 1, 2, 3}) == 2
    assert machine.num_cores(root, {0, 2}) == 1
    assert machine.num_cores(root, {7, 8}) == 2, "no topology: every CPU is its own core"


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1)]
)
def test_cpu_quota_of_version_2(root: Path, quota: str, cores: int) -> None:
    write(root, "proc/self/cgroup", "0::/box/job\n")
    write(root, "sys/fs/cgroup/box/cpu.max", quota + "\n")
    assert machine.num_cores(root, {0, 1, 2, 3}) == cores


def test_cpu_quota_of_version_1(root: Path) -> None:
    write(root, "proc/self/cgroup", "3:cpu,cpuacct:/job\n1:name=systemd:/other\n")
    write(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "300000\n")
    write(root, "sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n")
    assert machine.num_cores(root, {0, 1, 2, 3}) == 3


def test_memory_without_control_groups(root: Path) -> None:
    (root / "proc/self/cgroup").unlink()
    assert machine.memory_bytes(root) == 24000000 * 1024
    assert machine.available_bytes(root) == 20000000 * 1024


def test_memory_limit_of_version_2_counts_the_tightest_parent(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/box/job\n")
    write(root, "sys/fs/cgroup/box/job/memory.max", "max\n")
    write(root, "sys/fs/cgroup/box/memory.max", "8000000000\n")
    write(root, "sys/fs/cgroup/box/memory.current", "3000000000\n")
    write(root, "sys/fs/cgroup/box/memory.stat", "anon 5\ninactive_file 1000000000\n")
    assert machine.memory_bytes(root) == 8_000_000_000
    assert machine.available_bytes(root) == 6_000_000_000


def test_memory_limit_of_version_1(root: Path) -> None:
    write(root, "proc/self/cgroup", "5:memory:/job\n")
    write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(root, "sys/fs/cgroup/memory/job/memory.limit_in_bytes", "4000000000\n")
    write(root, "sys/fs/cgroup/memory/job/memory.usage_in_bytes", "5000000000\n")
    write(root, "sys/fs/cgroup/memory/job/memory.stat", "total_inactive_file 7\n")
    assert machine.memory_bytes(root) == 4_000_000_000
    assert machine.available_bytes(root) == 0, "never negative"


def test_memory_group_named_by_the_host_falls_back_to_the_mount(root: Path) -> None:
    write(root, "proc/self/cgroup", "0::/docker/0123\n")
    write(root, "sys/fs/cgroup/memory.max", "2000000000\n")
    write(root, "sys/fs/cgroup/memory.current", "500000000\n")
    write(root, "sys/fs/cgroup/memory.stat", "inactive_file 0\n")
    assert machine.available_bytes(root) == 1_500_000_000


def test_this_machine_describes_itself() -> None:
    here = machine.describe()
    assert here.cpu
    assert 1 <= here.num_cores <= here.num_cpus
    assert 0 < here.available_bytes <= here.memory_bytes


def test_disk_of_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    there = machine.disk_free_bytes(tmp_path)
    missing = machine.disk_free_bytes(tmp_path / "not" / "yet")
    # Other processes write to the same disk between the two calls.
    assert there > 0 and abs(there - missing) < 10e9


def test_the_better_of_two_measurements_counts() -> None:
    first, second = machine.Limits(2, 5.0, 6.0, 7.0), machine.Limits(2, 6.0, 5.0, 8.0)
    assert machine.best_of(first, second) == machine.Limits(2, 6.0, 6.0, 8.0)


@pytest.mark.parametrize("threads", [1, 3])
def test_probes_measure_something(threads: int) -> None:
    # No CPU that runs this reads a byte or multiplies at more than 10^16 a second.
    assert 0 < native.probe_read_bandwidth(1 << 20, threads, 0.01) < 1e16
    assert 0 < native.probe_int8_peak(threads, 0.01) < 1e16
    assert 0 < native.probe_f32_peak(threads, 0.01) < 1e16


def test_limits_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_BANDWIDTH_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_SMALLEST_BANDWIDTH_BYTES", 1 << 20)
    limits = machine.probe_limits(2, 0.01)
    assert limits.num_threads == 2
    assert min(limits.read_bytes_per_s, limits.int8_macs_per_s, limits.f32_macs_per_s) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1 << 20, 0, 1.0), "num_threads is 0"),
        ((1 << 20, 1, 0.0), "seconds is 0"),
        ((1 << 20, 1, 61.0), "seconds is 61"),
        ((8, 2, 0.01), "bytes is 8"),
    ],
)
def test_probes_refuse_nonsense(arguments: tuple[int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.probe_read_bandwidth(*arguments)
