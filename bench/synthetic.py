"""Write a full-size gpt-oss checkpoint of random weights, to measure speed and memory on.

    python bench/synthetic.py --shape 20b --layout hf --out DIR
    python bench/synthetic.py --shape 20b --layout gguf --out FILE.gguf

Both layouts hold the same weights: experts MXFP4, the rest BF16; in GGUF the dense matrices are
Q8_0, as in published files. Nothing about speed depends on the values as long as tokens spread
over the experts, so the weights are raw random bits: every tensor comes from a counter-based
generator keyed by (seed, its place in the list), the residual stream keeps mostly the token's own
embedding, and the router sees it through independent rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress, TransferSpeedColumn

from aperto.config import LayerConfig, ModelConfig
from aperto.errors import ApertoError
from aperto.formats import Layout, TokenizerSource, names, write_checkpoint
from aperto.formats.q8 import BLOCK_BYTES, encode_q8_0
from aperto.formats.tensor import BLOCK, DType, Tensor, TensorInfo, bf16_to_float32, num_bytes
from aperto.tokenizer import write_bundled

Q8_CHUNK_VALUES = 1 << 23
"""Values re-quantised at a time, to bound the temporaries."""

# A BF16 weight is a random sign, a random mantissa and one of two neighbouring exponents:
# magnitudes in [2^e, 2^(e + 2)), root mean square 2.42 * 2^e.
EXPONENTS = {
    "embedding.weight": -1,  # 1.2 an element: what later layers add stays below it
    "head.weight": -7,  # 1 / sqrt(2880): logits of variance about 1
    "attn.q.weight": -7,
    "attn.k.weight": -7,
    "attn.v.weight": -7,
    "attn.out.weight": -10,
    "moe.router.weight": -6,
    "attn.sinks": -2,
}
BIAS_EXPONENT = -9

# E8M0 scales of the experts, each block one of two: gate and up keep the variance, down shrinks it.
SCALES = {"moe.gate_up.weight": 119, "moe.down.weight": 117}


def shape(
    *,
    num_layers: int,
    num_experts: int,
    experts_per_token: int = 4,
    hidden_size: int = 2880,
    intermediate_size: int = 2880,
    vocab_size: int = 201088,
) -> ModelConfig:
    """Return a gpt-oss configuration with windowed and full layers in turn."""
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        head_dim=64,
        num_attention_heads=64,
        num_key_value_heads=8,
        layers=tuple(
            LayerConfig(
                window=0 if index % 2 else 128,
                num_experts=num_experts,
                experts_per_token=experts_per_token,
            )
            for index in range(num_layers)
        ),
        eos_token_ids=(200002, 199999, 200012) if vocab_size == 201088 else (),
        pad_token_id=199999 if vocab_size == 201088 else None,
    )


class RandomWeights:
    """Random tensors of a model, made when asked for; each is the same every time."""

    generation_config: Mapping[str, Any] = {}

    def __init__(self, config: ModelConfig, seed: int, dense: DType) -> None:
        self.config = config
        self._seed = seed
        self._dense = dense
        self._shapes = names.tensor_shapes(config)
        self._places = {name: place for place, name in enumerate(self._shapes)}

    def names(self) -> tuple[str, ...]:
        """Every canonical tensor name, in storage order."""
        return tuple(self._shapes)

    def info(self, name: str) -> TensorInfo:
        """Type and size of a tensor, without making it."""
        dtype, dims = self._dtype(name), self._shapes[name]
        return TensorInfo(name, dtype, dims, num_bytes(dtype, dims), None)

    def tokenizer_source(self) -> TokenizerSource:
        """Name the vocabulary: none of its own."""
        return TokenizerSource("bundled")

    def tensor(self, name: str) -> Tensor:
        """Make a tensor."""
        dims = self._shapes[name]
        if names.is_expert_weight(name):
            return self._experts(name, dims)
        bits = self._bf16(name, dims)
        if self._dtype(name) is DType.Q8_0:
            return Tensor(name, DType.Q8_0, dims, requantize(bits))
        return Tensor(name, DType.BF16, dims, bits)

    def _dtype(self, name: str) -> DType:
        if names.is_expert_weight(name):
            return DType.MXFP4
        return self._dense if names.is_matrix(name) else DType.BF16

    def _random(self, name: str) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._seed, self._places[name]]))

    def _bf16(self, name: str, dims: tuple[int, ...]) -> NDArray[np.uint16]:
        random = self._random(name).integers(0, 1 << 16, dims, dtype=np.uint16)
        suffix = suffix_of(name)
        if suffix.endswith("norm.weight"):  # 1 to 1.25: the five upper mantissa bits stay
            return np.uint16(127 << 7) + (random & np.uint16(0x1F))
        exponent = EXPONENTS.get(suffix, BIAS_EXPONENT)
        random &= np.uint16(0x80FF)
        random += np.uint16((127 + exponent) << 7)
        return random

    def _experts(self, name: str, dims: tuple[int, ...]) -> Tensor:
        random = self._random(name)
        blocks = (*dims[:-1], dims[-1] // BLOCK)
        codes = random.integers(0, 256, (*blocks, BLOCK // 2), dtype=np.uint8)
        scales = random.integers(0, 2, blocks, dtype=np.uint8) + np.uint8(SCALES[suffix_of(name)])
        return Tensor(name, DType.MXFP4, dims, codes, scales)


def suffix_of(name: str) -> str:
    """Return a canonical name without its layer: "layers.3.attn.sinks" -> "attn.sinks"."""
    return name.split(".", 2)[2] if name.startswith("layers.") else name


def requantize(bits: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Quantise BF16 bits [rows, K] to Q8_0 blocks [rows, K/32, 34], some rows at a time."""
    rows, width = bits.shape
    blocks = np.empty((rows, width // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    step = max(1, Q8_CHUNK_VALUES // width)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        blocks[part] = encode_q8_0(bf16_to_float32(bits[part]))
    return blocks


def write(config: ModelConfig, layout: Layout, out: Path, seed: int) -> None:
    """Write the checkpoint with a progress bar, tensor by tensor.

    Raises DiskSpaceError before anything is written, UsageError where `out` exists.
    """
    weights = RandomWeights(config, seed, DType.Q8_0 if layout == "gguf" else DType.BF16)
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*Progress.get_default_columns(), TransferSpeedColumn()) as bar,
    ):
        task = bar.add_task(out.name)
        write_checkpoint(
            weights,
            out,
            layout,
            tokenizer_from=write_bundled(Path(folder), config.vocab_size),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=["20b", "120b", "custom"], default="20b")
    parser.add_argument("--layout", choices=["hf", "gguf"], default="hf")
    parser.add_argument("--out", type=Path, required=True, help="folder (hf) or file (gguf)")
    parser.add_argument("--layers", type=int, help="fewer or more layers than the shape has")
    parser.add_argument("--experts", type=int, help="experts of a layer (custom: 32)")
    parser.add_argument("--experts-per-token", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=2880, help="multiple of 32")
    parser.add_argument("--vocab", type=int, default=201088)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    layers, experts = {"20b": (24, 32), "120b": (36, 128), "custom": (24, 32)}[args.shape]
    try:
        config = shape(
            num_layers=args.layers or layers,
            num_experts=args.experts or experts,
            experts_per_token=args.experts_per_token,
            hidden_size=args.hidden,
            intermediate_size=args.hidden,
            vocab_size=args.vocab,
        )
        write(config, args.layout, args.out, args.seed)
    except ApertoError as error:
        print(f"synthetic.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
