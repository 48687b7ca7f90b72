"""`check_model`: whether a checkpoint is what it claims to be and runs as it should."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aperto.config import PRECISIONS, EngineConfig, Precision
from aperto.engine.core import CoreModel
from aperto.engine.load import isa_names, load_model
from aperto.errors import ApertoError
from aperto.formats import Checkpoint, DType, mxfp4
from aperto.harmony import Conversation, render
from aperto.measure.references import (
    MANIFEST,
    REFERENCES,
    Logits,
    ReferenceCase,
    read_manifest,
    read_references,
    tensor_sha256,
)
from aperto.tokenizer import Tokenizer

Status = Literal["PASS", "FAIL", "SKIPPED"]
Forward: TypeAlias = Callable[[Precision, str, Sequence[int], Sequence[int]], NDArray[np.float32]]
"""(precision, instruction set or "", prompt ids, positions) to the logits [positions, vocab]."""

_PROBE_TOKENS = 6  # enough for rope, sinks and routing; the plain kernels need seconds a token
_SAMPLED_ROWS = 4
_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True)
class CheckResult:
    """One thing that was checked."""

    name: str
    """What it was."""
    status: Status
    """How it ended."""
    detail: str
    """What was found, and for a failure what was expected."""


def check_model(
    checkpoint: Checkpoint,
    *,
    forward: Forward | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[CheckResult]:
    """Check a checkpoint, one result after the other.

    `forward` runs the model, see `loader`; without it what needs it is skipped. `progress` takes
    (bytes hashed, bytes in all). Errors of the checkpoint become failures; nothing deliberate is
    raised.
    """
    steps: tuple[tuple[str, Callable[[], CheckResult]], ...] = (
        ("tensors", lambda: _check_tensors(checkpoint, progress)),
        ("dequantising", lambda: _check_dequantising(checkpoint)),
        ("template", lambda: _check_template(checkpoint)),
        ("sampling defaults", lambda: _check_sampling(checkpoint)),
        ("logits", lambda: _check_logits(checkpoint, forward)),
        ("instruction sets", lambda: _check_isas(checkpoint, forward)),
    )
    for name, step in steps:
        try:
            result = step()
        except ApertoError as error:
            result = CheckResult(name, "FAIL", str(error))
        yield result


def _passed(name: str, detail: str, problems: Sequence[str] = ()) -> CheckResult:
    """PASS with the detail, or FAIL with the first problems."""
    if not problems:
        return CheckResult(name, "PASS", detail)
    more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return CheckResult(name, "FAIL", "; ".join(problems[:_SHOWN]) + more)


def tensor_hashes(
    checkpoint: Checkpoint, progress: Callable[[int, int], None]
) -> Iterator[tuple[str, str]]:
    """(canonical name, SHA-256) of every tensor, in the order of the model."""
    sizes = {name: checkpoint.info(name).nbytes for name in checkpoint.names()}
    done, total = 0, sum(sizes.values())
    for name, size in sizes.items():
        yield name, tensor_sha256(checkpoint.tensor(name))
        done += size
        progress(done, total)


def _check_tensors(checkpoint: Checkpoint, progress: Callable[[int, int], None]) -> CheckResult:
    manifest = read_manifest(checkpoint.path)
    found = dict(tensor_hashes(checkpoint, progress))
    if manifest is None:
        combined = tensor_set_hash(found)
        detail = f"no {MANIFEST}; {len(found)} tensors are readable, together {combined}"
        return CheckResult("tensors", "SKIPPED", detail)
    problems = [
        f"{name} has {found.get(name, 'no tensor')[:12]}, the manifest {hash_[:12]}"
        for name, hash_ in manifest.items()
        if found.get(name) != hash_
    ]
    problems += [f"{name} is not in the manifest" for name in found if name not in manifest]
    return _passed("tensors", f"{len(found)} SHA-256 as in {MANIFEST}", problems)


def tensor_set_hash(hashes: dict[str, str]) -> str:
    """One hash over those of all tensors, shortened: the same model prints the same."""
    lines = "\n".join(f"{name} {hash_}" for name, hash_ in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _e2m1(nibbles: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Values of FP4 codes as defined: sign, two exponent bits (bias 1), one of mantissa."""
    sign = np.where(nibbles & 8, -1.0, 1.0)
    exponent, mantissa = ((nibbles >> 1) & 3).astype(np.int64), (nibbles & 1) / 2.0
    return sign * np.where(exponent == 0, mantissa, (1 + mantissa) * 2.0 ** (exponent - 1))


def _defined_values(blocks: NDArray[Any], scales: NDArray[Any]) -> NDArray[np.float64]:
    """MXFP4 from the definition: [..., K/32, 16] and [..., K/32] to [..., K]."""
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = _e2m1(nibbles) * 2.0 ** (scales.astype(np.int64) - 127)[..., None]
    return values.reshape(*blocks.shape[:-2], -1)


def _check_dequantising(checkpoint: Checkpoint) -> CheckResult:
    """The codec against the definition, on all codes and on rows of each expert matrix."""
    problems = []
    num_scales = mxfp4.MAX_SCALE + 1
    codes = np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16), (num_scales, 1, 1))
    scales = np.repeat(np.arange(num_scales, dtype=np.uint8), 16).reshape(num_scales, 16)
    if not _decodes_as_defined(codes, scales):
        problems.append("the MXFP4 codec differs from the format's definition")
    names = [n for n in checkpoint.names() if checkpoint.info(n).dtype is DType.MXFP4]
    for name in names:
        tensor = checkpoint.tensor(name)
        assert tensor.scales is not None
        experts, rows = tensor.shape[:2]
        picked = np.linspace(0, rows - 1, _SAMPLED_ROWS).astype(int)
        blocks, own = tensor.data[experts - 1][picked], tensor.scales[experts - 1][picked]
        if not _decodes_as_defined(blocks, own):
            problems.append(f"{name} is not decoded as the format defines")
        values = mxfp4.decode(blocks, own)
        if not np.array_equal(mxfp4.decode(*mxfp4.encode(values)), values):
            problems.append(f"{name} changes when it is quantised again")
    if not names:
        return CheckResult("dequantising", "SKIPPED", "no tensor is stored as MXFP4")
    return _passed("dequantising", f"all codes, and rows of {len(names)} MXFP4 tensors", problems)


def _decodes_as_defined(blocks: NDArray[Any], scales: NDArray[Any]) -> bool:
    return np.array_equal(mxfp4.decode(blocks, scales), _defined_values(blocks, scales))


def _pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str | bytes]:
    """Special tokens by name, and the bytes between them: comparable across vocabularies."""
    names = {token_id: name for name, token_id in tokenizer.special.items()}
    pieces: list[str | bytes] = []
    for token_id in ids:
        if token_id in names:
            pieces.append(names[token_id])
            continue
        last = pieces.pop() if pieces and isinstance(pieces[-1], bytes) else b""
        assert isinstance(last, bytes)
        pieces.append(last + tokenizer.decode_bytes([token_id]))
    return pieces


def template_goldens() -> list[dict[str, Any]]:
    """Conversations with their o200k_harmony ids, as openai-harmony renders them."""
    file = importlib.resources.files("aperto.measure") / "template_goldens.json"
    goldens: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return goldens


def _check_template(checkpoint: Checkpoint) -> CheckResult:
    tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
    bundled = Tokenizer.bundled()
    is_o200k = (
        tokenizer.ranks == bundled.ranks
        and dict(tokenizer.special).items()
        >= {
            name: bundled.special[name] for name in ("<|start|>", "<|message|>", "<|return|>")
        }.items()
    )
    problems = []
    goldens = template_goldens()
    for golden in goldens:
        ids = render(Conversation.from_dict(golden["conversation"]), tokenizer)
        same = (
            ids == golden["ids"]
            if is_o200k
            else (_pieces(tokenizer, ids) == _pieces(bundled, golden["ids"]))
        )
        if not same:
            problems.append(f"conversation {golden['name']!r} is rendered differently")
    how = "token for token" if is_o200k else "byte for byte, in the model's own vocabulary"
    return _passed("template", f"{len(goldens)} harmony conversations, {how}", problems)


def _check_sampling(checkpoint: Checkpoint) -> CheckResult:
    stated = checkpoint.generation_config
    if not stated:
        return CheckResult(
            "sampling defaults", "SKIPPED", "no generation_config; temperature 1, top-p 1 are used"
        )
    special = Tokenizer.from_checkpoint(checkpoint.tokenizer_source()).special
    problems = []
    for key in ("temperature", "top_p"):
        if stated.get(key, 1.0) != 1.0:
            problems.append(f"{key} is {stated[key]}; gpt-oss and aperto use 1.0")
    if stated.get("do_sample") is False:
        problems.append("do_sample is false; gpt-oss and aperto sample")
    eos = stated.get("eos_token_id")
    ends = set(eos if isinstance(eos, list) else [eos])
    for name in ("<|return|>", "<|call|>"):
        if eos is not None and special.get(name) not in ends:
            problems.append(f"eos_token_id {eos} lacks {name} ({special.get(name)})")
    return _passed("sampling defaults", "temperature 1, top-p 1, stop tokens", problems)


def _check_logits(checkpoint: Checkpoint, forward: Forward | None) -> CheckResult:
    cases = read_references(checkpoint.path)
    if cases is None:
        return CheckResult("logits", "SKIPPED", f"no {REFERENCES} beside the checkpoint")
    if forward is None:
        return CheckResult("logits", "SKIPPED", "the model was not loaded")
    problems = [
        f"case {index}, {precision}: {problem}"
        for precision in PRECISIONS
        for index, case in enumerate(cases)
        if precision in case.logits and (problem := _differs(case, precision, forward))
    ]
    precisions = ", ".join(p for p in PRECISIONS if any(p in case.logits for case in cases))
    return _passed("logits", f"{len(cases)} cases bit for bit ({precisions})", problems)


def _differs(case: ReferenceCase, precision: Precision, forward: Forward) -> str:
    """How the logits differ from the reference; empty where they are the same bits."""
    values = forward(precision, "", case.prompt_ids, case.positions)
    expected = case.logits[precision]
    if Logits.of(values).sha256 == expected.sha256:
        return ""
    distance = max(
        abs(float(values[row, token_id]) - logit) if token_id < values.shape[1] else np.inf
        for row, top in enumerate(expected.top)
        for token_id, logit in top
    )
    return f"the top logits are up to {distance:.3g} away; expected the same bits"


def _check_isas(checkpoint: Checkpoint, forward: Forward | None) -> CheckResult:
    """The same prompt on every instruction set of this CPU."""
    name, isas = "instruction sets", isa_names()
    if forward is None:
        return CheckResult(name, "SKIPPED", "the model was not loaded")
    ids = [i * 7919 % checkpoint.config.vocab_size for i in range(1, _PROBE_TOKENS + 1)]
    hashes = {isa: Logits.of(forward("q8", isa, ids, range(_PROBE_TOKENS))).sha256 for isa in isas}
    problems = [f"{isa} differs from {isas[0]}" for isa in isas if hashes[isa] != hashes[isas[0]]]
    return _passed(name, f"{', '.join(isas)}: the same bits", problems)


def loader(
    checkpoint: Checkpoint,
    cache_dir: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    confirm: Callable[[str], bool] | None = None,
) -> Forward:
    """Run a checkpoint on the real kernels; the model that was used last stays loaded.

    `progress` and `confirm` are those of `aperto.formats.packed.open_packed`.
    """

    @functools.lru_cache(maxsize=1)
    def load(precision: Precision, isa: str) -> CoreModel:
        return load_model(
            checkpoint,
            precision=precision,
            isa=isa,
            cache_dir=cache_dir,
            progress=progress,
            confirm=confirm,
        )

    return lambda precision, isa, ids, positions: run_prompt(load(precision, isa), ids, positions)


def make_references(
    forward: Forward, prompts: Sequence[Sequence[int]], precisions: Sequence[Precision]
) -> list[ReferenceCase]:
    """Reference logits of prompts at their first, middle and last position."""
    cases = []
    for ids in prompts:
        positions = tuple(sorted({0, len(ids) // 2, len(ids) - 1}))
        logits = {p: Logits.of(forward(p, "", ids, positions)) for p in precisions}
        cases.append(ReferenceCase(tuple(ids), positions, logits))
    return cases


def reference_prompts(checkpoint: Checkpoint) -> list[list[int]]:
    """The golden conversations as this checkpoint's tokenizer writes them."""
    tokenizer = Tokenizer.from_checkpoint(checkpoint.tokenizer_source())
    return [
        render(Conversation.from_dict(golden["conversation"]), tokenizer)
        for golden in template_goldens()
    ]


def run_prompt(
    model: CoreModel, prompt_ids: Sequence[int], positions: Sequence[int]
) -> NDArray[np.float32]:
    """Logits [positions, vocab] of one prompt, fed to the model a batch at a time."""
    ids, size = np.asarray(prompt_ids, np.int32), EngineConfig().max_batch_tokens
    num_pages = -(-len(ids) // model.page_tokens)
    cache = model.new_cache([num_pages] * len(model.window_groups))
    tables = [np.arange(num_pages, dtype=np.int32)[None]] * len(model.window_groups)
    logits = np.empty((len(positions), model.config.vocab_size), np.float32)
    wanted = np.asarray(positions, np.int32)
    for first in range(0, len(ids), size):
        batch = ids[first : first + size]
        rows = (wanted >= first) & (wanted < first + len(batch))
        logits[rows] = model.forward(
            cache,
            batch,
            np.arange(first, first + len(batch), dtype=np.int32),
            np.zeros(len(batch), np.int32),
            tables,
            wanted[rows] - np.int32(first),
        )
    return logits
