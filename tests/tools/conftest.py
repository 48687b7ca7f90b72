"""Sandboxes for the tests, each way of making one that works on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from aperto.tools.sandbox import Confinement, Limits, Sandbox, why_not

SMALL = Limits(
    memory_bytes=512 << 20,
    processes=24,
    file_bytes=4 << 20,
    scratch_bytes=8 << 20,
    output_bytes=4000,
)

_CLEAN = """
import os
for folder in ("/tmp", "/mnt/data", "/dev/shm"):
    for name in os.listdir(folder):
        os.unlink(f"{folder}/{name}")
"""


@pytest.fixture(params=[Confinement.BUBBLEWRAP, Confinement.NAMESPACES], scope="session")
def confinement(request: pytest.FixtureRequest) -> Confinement:
    """A way of confining that works here; what does not is skipped with the reason."""
    reason = why_not(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    return request.param


@pytest.fixture(scope="module")
def shared(confinement: Confinement) -> Iterator[Sandbox]:
    """A sandbox with small limits, which every attack must leave in order for the next."""
    with contextlib.closing(Sandbox(confinement, SMALL)) as made:
        yield made


@pytest.fixture
def sandbox(shared: Sandbox) -> Sandbox:
    """The shared sandbox with a new interpreter and without files."""
    shared.run("import os\nos._exit(0)", 10.0)
    assert shared.run(_CLEAN, 10.0).output == ""
    return shared
