"""How fast, and in how much memory, a model is fine-tuned on this machine.

    python bench/adapt.py MODEL [--tokens 1024] [--steps 20] [--rank 16] [--experts 0]

Takes optimiser steps on random tokens with adapters on attention, and with --experts N on the N
most used experts of each layer too. Prints tokens/s, the arithmetic done against the machine's
bfloat16 GEMM peak, which is measured before and after, and the process's peak memory.
`bench/limited.sh 16G` in front of it holds the memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from typing import Literal

import torch

from aperto.adapt import lora
from aperto.adapt.attention import blocked_attend
from aperto.adapt.batches import Batch
from aperto.adapt.lora import LoraConfig
from aperto.adapt.model import GptOss
from aperto.adapt.routing import hottest_experts
from aperto.config import ModelConfig
from aperto.formats import open_checkpoint, quantize_experts
from aperto.formats.hub import resolve_model


def gemm_peak() -> float:
    """Best GFLOP/s of a bfloat16 product large enough to be limited by arithmetic alone."""
    a, b = (torch.randn(2880, 2880, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(8):
        begin = time.perf_counter()
        a @ b
        best = max(best, 2 * 2880**3 / (time.perf_counter() - begin) / 1e9)
    return best


def forward_flops(config: ModelConfig) -> float:
    """Floating-point operations of one token's matrices."""
    hidden, inner = config.hidden_size, config.intermediate_size
    attention = 2 * hidden * (2 * config.q_size + 2 * config.kv_size)
    experts = sum(layer.experts_per_token * 6 * hidden * inner for layer in config.layers)
    return attention * config.num_layers + experts + 2 * hidden * config.vocab_size


def main() -> None:
    """Print the figures of one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--experts", type=int, default=0, help="adapted experts of a layer")
    arguments = parser.parse_args()
    peak = gemm_peak()
    checkpoint = open_checkpoint(resolve_model(arguments.model))
    source = quantize_experts(checkpoint)
    model = GptOss.from_checkpoint(source, dtype=torch.bfloat16, packed=True)
    model.recompute = True
    model.attend = blocked_attend
    generator = torch.Generator().manual_seed(0)
    shape = (1, arguments.tokens)
    ids = torch.randint(0, checkpoint.config.vocab_size, shape, generator=generator)
    experts: Literal["none"] | dict[int, tuple[int, ...]] = "none"
    if arguments.experts:
        batch = Batch(ids, torch.ones(shape), torch.zeros_like(ids), arguments.tokens)
        experts = hottest_experts(model, [batch], arguments.experts)
    lora.attach(model, LoraConfig(rank=arguments.rank, experts=experts))
    parameters = list(lora.trainable(model).values())
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    seconds, losses = [], []
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        loss = model.loss(ids, torch.ones(shape)) / (arguments.tokens - 1)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
        losses.append(float(loss.detach()))
        print(f"step {len(seconds)}: {seconds[-1]:.1f} s, loss {losses[-1]:.4f}", flush=True)
    peak = max(peak, gemm_peak())
    step_s = statistics.median(seconds)
    # Forward, again for the gradient, and the gradient of the inputs; none of the frozen weights.
    done = 3 * forward_flops(checkpoint.config) * arguments.tokens / step_s / 1e9
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{sum(p.numel() for p in parameters) / 1e6:.1f} M trained of {arguments.model}")
    print(f"step {step_s:.1f} s, {arguments.tokens / step_s:.1f} tokens/s")
    print(f"{done:.0f} GFLOP/s, {done / peak:.0%} of the GEMM peak of {peak:.0f}")
    print(f"peak memory {memory:.1f} GiB, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
