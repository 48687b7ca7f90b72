"""Two models tensor by tensor: what is the same, what differs and how far.

Tensors are mapped, and compared some rows at a time; nothing of a model's size is in memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aperto import native
from aperto.config import ModelConfig
from aperto.formats.checkpoint import TensorSource
from aperto.formats.tensor import BLOCK, DType, Tensor

Status = Literal["identical", "same values", "changed", "other shape", "only in A", "only in B"]
_CHUNK = 1 << 16  # values widened at a time by a thread: they stay in the CPU's cache


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """One tensor of two models."""

    name: str
    """Canonical name."""
    status: Status
    """identical: the same bytes; same values: other bytes or types that mean the same."""
    types: str
    """Its type, or both: "BF16", "BF16, Q8_0"."""
    nbytes: int
    """Bytes in A, or in B where A has none."""
    max_abs: float = 0.0
    """Largest difference of two values."""
    relative: float = 0.0
    """Length (L2) of the difference over that of A, or of B where all of A is zero."""
    cosine: float = 1.0
    """Cosine of the angle between the two."""
    changed_blocks: float = 0.0
    """Share of the blocks of 32 values in which a value differs."""


def differences(
    a: TensorSource,
    b: TensorSource,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[Difference]:
    """Compare two models, one tensor after the other; `progress` takes bytes of both."""
    names_a, names_b = dict.fromkeys(a.names()), dict.fromkeys(b.names())
    sizes = dict.fromkeys((*names_a, *names_b), 0)
    for source, own in ((a, names_a), (b, names_b)):
        for name in own:
            sizes[name] += source.info(name).nbytes
    done, total = 0, sum(sizes.values())
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name in sizes:
            if name not in names_b:
                yield _alone(a, name, "only in A")
            elif name not in names_a:
                yield _alone(b, name, "only in B")
            else:
                yield _compared(a, b, name, pool)
            done += sizes[name]
            progress(done, total)


def _alone(holder: TensorSource, name: str, status: Status) -> Difference:
    info = holder.info(name)
    return Difference(name, status, str(info.dtype), info.nbytes)


def config_differences(a: ModelConfig, b: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: name to (in A, in B); a layer's as "layers.3.window"."""
    own, other = _flat(dataclasses.asdict(a)), _flat(dataclasses.asdict(b))
    return {
        name: (own.get(name), other.get(name))
        for name in {**own, **other}
        if own.get(name) != other.get(name)
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their path; plain lists, such as ids, stay whole."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, tuple) and value and isinstance(value[0], dict):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return {prefix: value}
    return {
        key: leaf
        for name, item in items
        for key, leaf in _flat(item, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def as_json(found: list[Difference], settings: dict[str, tuple[Any, Any]]) -> str:
    """Both as one JSON object."""
    return json.dumps({"config": settings, "tensors": [dataclasses.asdict(d) for d in found]})


@dataclasses.dataclass(slots=True)
class _Sums:
    """What is added up over the chunks of a tensor."""

    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    max_abs: float = 0.0
    blocks: int = 0


def _compared(a: TensorSource, b: TensorSource, name: str, pool: ThreadPoolExecutor) -> Difference:
    one, two = a.tensor(name), b.tensor(name)
    types = str(one.dtype) if one.dtype is two.dtype else f"{one.dtype}, {two.dtype}"
    if one.shape != two.shape:
        return Difference(name, "other shape", types, one.nbytes)
    parts = list(_parts(one.shape))
    if one.dtype is two.dtype and all(pool.map(lambda part: _same(one, two, part), parts)):
        return Difference(name, "identical", types, one.nbytes)
    rows = list(pool.map(lambda part: _sums(one, two, part), parts))
    aa, bb, ab, dd = (math.fsum(getattr(r, key) for r in rows) for key in ("aa", "bb", "ab", "dd"))
    largest = max(row.max_abs for row in rows)
    per_row = math.prod(one.shape[:-1]) * -(-one.shape[-1] // BLOCK)
    return Difference(
        name=name,
        status="changed" if largest else "same values",
        types=types,
        nbytes=one.nbytes,
        max_abs=largest,
        relative=math.sqrt(dd / (aa or bb)) if dd else 0.0,
        cosine=ab / math.sqrt(aa * bb) if aa and bb else 0.0 if aa or bb else 1.0,
        changed_blocks=sum(row.blocks for row in rows) / per_row,
    )


def _parts(shape: tuple[int, ...]) -> Iterator[tuple[int | slice, ...]]:
    """Indices that cut a tensor into some rows at a time, of one expert each."""
    if len(shape) == 1:
        yield (slice(None),)
        return
    step = max(1, _CHUNK // shape[-1])
    for begin in range(0, shape[-2], step):
        rows = slice(begin, begin + step)
        if len(shape) == 2:
            yield (rows,)
        else:
            yield from ((expert, rows) for expert in range(shape[0]))


def _same(a: Tensor, b: Tensor, part: tuple[int | slice, ...]) -> bool:
    same = np.array_equal(_bytes(a.data[part]), _bytes(b.data[part]))
    if a.scales is None or b.scales is None:
        return same
    return same and np.array_equal(a.scales[part], b.scales[part])


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).view(np.uint8)


def _sums(a: Tensor, b: Tensor, part: tuple[int | slice, ...]) -> _Sums:
    one, two = _values(a, part), _values(b, part)
    if one.shape[-1] % BLOCK:  # the last block is shorter
        pad = [(0, 0)] * (one.ndim - 1) + [(0, -one.shape[-1] % BLOCK)]
        one, two = np.pad(one, pad), np.pad(two, pad)
    x, y = one.reshape(-1), two.reshape(-1)
    aa = float(np.dot(x, x))
    difference = x - y
    if not difference.any():
        return _Sums(aa, aa, aa)
    dd = float(np.dot(difference, difference))
    np.abs(difference, out=difference)
    largest = difference.reshape(-1, BLOCK).max(axis=1)
    return _Sums(
        aa,
        float(np.dot(y, y)),
        float(np.dot(x, y)),
        dd,
        float(largest.max()),
        int(np.count_nonzero(largest)),
    )


def _values(tensor: Tensor, part: tuple[int | slice, ...]) -> NDArray[np.float32]:
    """Some rows as float32."""
    data = tensor.data[part]
    if tensor.dtype is DType.MXFP4 and tensor.scales is not None:
        values = np.empty((len(data), tensor.shape[-1]), np.float32)
        blocks = np.ascontiguousarray(data)
        native.decode_mxfp4(blocks, np.ascontiguousarray(tensor.scales[part]), values)
        return values
    shape = (*data.shape[:-2], tensor.shape[-1]) if tensor.dtype is DType.Q8_0 else data.shape
    return dataclasses.replace(tensor, data=np.ascontiguousarray(data), shape=shape).to_float32()
