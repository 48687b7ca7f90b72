"""One rehearsal: an adapter of nano through a whole release, with the questions of this folder."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.vet.rehearsal.adapters import nano_hash
from tests.vet.rehearsal.questions import PROTOCOL, sources

import aperto
from aperto.formats.hub import resolve_model
from aperto.vet.arms import Model, models_of
from aperto.vet.ask import Asker
from aperto.vet.gate import Verdict
from aperto.vet.protocol import Arm, freeze
from aperto.vet.release import ROWS_FOLDER, Release

KINDS = ("benign", "eroding", "babbling", "unlocking")


def rehearse(
    folder: Path, adapter: Path | None, *, seed: int = 0, base_rows: Path | None = None
) -> tuple[Release, Verdict]:
    """Vet an adapter; None vets nano against itself.

    `base_rows` is the folder of an earlier release with the same seed, whose answers of the base
    are these very ones: they are not asked again.
    """
    folder.mkdir(parents=True)
    copy = folder / "protocol.toml"
    shutil.copy(PROTOCOL, copy)
    frozen = freeze(copy)
    home = resolve_model("nano")
    base = Model("nano", nano_hash(), home)
    adapted = base if adapter is None else Model(adapter.name, adapter.name, home, adapter)
    release = Release(frozen, models_of(frozen.protocol, base, adapted), folder / "out", seed)
    if base_rows is not None:
        (folder / "out" / ROWS_FOLDER).mkdir(parents=True)
        for file in base_rows.glob(f"{ROWS_FOLDER}/*.base*.jsonl"):
            shutil.copy(file, folder / "out" / ROWS_FOLDER)
    adapters = {} if adapter is None else {"adapted": adapter}
    # One thread: nano is so small that waiting for a second costs more than it brings.
    with aperto.load("nano", adapters=adapters, context=512, threads=1) as model:

        @contextlib.contextmanager
        def open_arm(arm: Arm) -> Iterator[aperto.LocalModel]:
            changed = arm is Arm.ADAPTED and adapter is not None
            yield model.variant("adapted") if changed else model

        asker = Asker(sources(), open_arm, seed=seed, max_tokens=120)
        return release, release.run(asker)
