"""Write a run's weights as the checkpoint that aperto ships: Hugging Face layout, MXFP4 experts.

    python recipes/nano/export.py --state DIR [--out src/aperto/nano]

Replaces the tensors and configurations in OUT; its tokenizer and model card stay. Of experts
trained with MXFP4 rounding (the last stage) nothing changes: the same rounding is stored.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from schedule import CONFIG, TOKENIZER
from weights import is_expert

from aperto.config import ModelConfig
from aperto.formats import DType, Tensor, TensorInfo, TokenizerSource, mxfp4, write_checkpoint
from aperto.formats.names import all_names, tensor_shapes
from aperto.formats.tensor import float32_to_bf16, num_bytes
from aperto.tokenizer import Tokenizer

ENDS = ("<|return|>", "<|endoftext|>", "<|call|>")


class Trained:
    """The float32 weights of a run as a source of canonical tensors."""

    def __init__(self, weights: Mapping[str, torch.Tensor], tokenizer: Path) -> None:
        vocabulary = Tokenizer.from_checkpoint(TokenizerSource("hf", tokenizer))
        self.config: ModelConfig = dataclasses.replace(
            CONFIG,
            eos_token_ids=tuple(vocabulary.special_id(name) for name in ENDS),
            pad_token_id=vocabulary.special_id("<|endoftext|>"),
        )
        self.generation_config: dict[str, Any] = {"do_sample": True, "temperature": 1.0}
        self._weights, self._tokenizer = weights, tokenizer

    def names(self) -> tuple[str, ...]:
        """Canonical names, in order."""
        return tuple(row.canonical for row in all_names(self.config))

    def info(self, name: str) -> TensorInfo:
        """Type and shape: experts MXFP4, all else BF16."""
        shape = tensor_shapes(self.config)[name]
        dtype = DType.MXFP4 if is_expert(name) else DType.BF16
        return TensorInfo(name, dtype, shape, num_bytes(dtype, shape), None)

    def tensor(self, name: str) -> Tensor:
        """Round a tensor to its stored type."""
        info, values = self.info(name), self._weights[name].numpy()
        if info.dtype is DType.MXFP4:
            return Tensor(name, info.dtype, info.shape, *mxfp4.encode(values))
        return Tensor(name, info.dtype, info.shape, float32_to_bf16(values))

    def tokenizer_source(self) -> TokenizerSource:
        """The vocabulary that training read."""
        return TokenizerSource("hf", self._tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="folder of the run")
    parser.add_argument("--out", type=Path, default=TOKENIZER.parent)
    arguments = parser.parse_args()
    state = torch.load(arguments.state / "state.pt", map_location="cpu")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "nano"
        write_checkpoint(Trained(state["parameters"], TOKENIZER), written, "hf")
        for file in written.iterdir():
            shutil.copyfile(file, arguments.out / file.name)
    sys.stdout.write(f"step {state['step']} -> {arguments.out}\n")


if __name__ == "__main__":
    main()
