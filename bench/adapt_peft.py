"""The same optimiser steps as bench/adapt.py, taken by transformers and PEFT on this machine.

    python bench/adapt_peft.py FOLDER [--tokens 1024] [--steps 5] [--rank 16]

transformers holds the experts in bfloat16 on a CPU (39 GiB for gpt-oss-20b), so a small machine
runs a model with fewer layers of the same widths: `bench/synthetic.py --shape 20b --layers 3`.
Run it and bench/adapt.py in turns on the same folder. Prints tokens/s and the peak memory.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Mxfp4Config


def main() -> None:
    """Print the figures of one run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1024, help="of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model,
        dtype=torch.bfloat16,
        quantization_config=Mxfp4Config(dequantize=True),
        attn_implementation="eager",  # the one with sinks on a CPU
    )
    model.config.use_cache = False
    model.gradient_checkpointing_enable({"use_reentrant": False})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    settings = LoraConfig(r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=targets)
    model = get_peft_model(model, settings)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    ids = torch.randint(0, vocabulary, (1, arguments.tokens), generator=generator)
    seconds, losses = [], []
    for _ in range(arguments.steps):
        begin = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
        losses.append(float(loss.detach()))
        print(f"step {len(seconds)}: {seconds[-1]:.1f} s, loss {losses[-1]:.4f}", flush=True)
    step_s = statistics.median(seconds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{sum(p.numel() for p in parameters) / 1e6:.1f} M trained of {arguments.model}")
    print(f"step {step_s:.1f} s, {arguments.tokens / step_s:.1f} tokens/s")
    print(f"peak memory {memory:.1f} GiB, loss {losses[0]:.3f} -> {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
