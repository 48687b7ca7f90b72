"""The model that another one is made from, as its lineage names it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aperto.cli.progress import byte_progress

if TYPE_CHECKING:
    from aperto.formats import Checkpoint
    from aperto.formats.lineage import Parent


def parent_of(name: str, checkpoint: Checkpoint) -> Parent:
    """A model by its name and the hash of all its tensors; reads them, and shows how far it is."""
    from aperto.formats.lineage import Parent
    from aperto.measure.check import tensor_hashes, tensor_set_hash

    with byte_progress(f"hashing {name}") as progress:
        return Parent(name, tensor_set_hash(dict(tensor_hashes(checkpoint, progress))))
