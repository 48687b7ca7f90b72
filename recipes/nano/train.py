"""Train nano: seeded, resumable, on the CPU (one process a core) or on one CUDA device.

    python recipes/nano/train.py --state DIR [--steps N] [--workers N]

DIR receives state.pt (all that a resumed run needs), log.jsonl and loss.png. Run it again with
the same DIR to go on after an interruption. The result does not depend on the number of workers:
each micro-batch's gradient has a slot of its own and slots are summed in order.

The weights that are trained are float32; what each step computes with is their bfloat16 rounding
(for experts, in the last stage, their MXFP4 rounding), so that the export loses nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import numpy as np
import skills
import torch
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor, multiprocessing, nn

from aperto.adapt import model as twin
from aperto.config import LayerConfig, ModelConfig
from aperto.formats import TokenizerSource
from aperto.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "src" / "aperto" / "nano" / "tokenizer.json"
CONFIG = ModelConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=256,
    head_dim=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    layers=tuple(LayerConfig(window, 8, 2) for window in (128, 0) * 3),
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The whole recipe in numbers."""

    steps: int = 6000
    """Optimiser steps."""
    micro_batches: int = 4
    """Micro-batches of a step."""
    rows: int = 4
    """Packed rows of a micro-batch."""
    length: int = 480
    """Tokens of a row."""
    warmup: int = 50
    """Steps over which the learning rates rise."""
    drill: float = 0.05
    """Share of the steps that use the drill mix."""
    flat: float = 0.5
    """Share of the steps after which the learning rates fall, linearly to 1 %."""
    quantised: float = 0.7
    """Share of the steps after which experts are rounded to MXFP4."""
    muon_lr: float = 0.015
    """Learning rate of the matrices inside the layers (orthogonalised momentum)."""
    adam_lr: float = 3e-3
    """Learning rate of everything else."""
    balance: float = 0.005
    """Weight of the loss that spreads tokens over experts."""
    seed: int = 1
    """Seed of weights and data."""

    def rate(self, progress: float) -> float:
        """Factor of both learning rates after a share of the run, its warm-up aside."""
        return max(min(1.0, (1 - progress) / (1 - self.flat)), 0.01)

    def mix(self, progress: float) -> str:
        """Name of the data mix after a share of the run."""
        return "drill" if progress < self.drill else "full"


# --- weights -----------------------------------------------------------------------------------


def initial_weights(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fan-in scaled normal weights; what writes into the residual stream is smaller by depth."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "sinks")):
            parameter.data.zero_()
        elif "norm" in name:
            parameter.data.fill_(1.0)
        else:
            std = 1 / math.sqrt(parameter.shape[-1])
            if name.endswith(("out.weight", "down.weight")):
                std /= math.sqrt(2 * config.num_layers)
            std = {"embedding.weight": 0.5, "head.weight": 0.3 * std}.get(name, std)
            parameter.data.normal_(0, std, generator=generator)


def is_expert(name: str) -> bool:
    return name.endswith(("gate_up.weight", "down.weight"))


def is_matrix(name: str) -> bool:
    """Whether Muon trains it: attention and expert matrices."""
    return is_expert(name) or (
        ".attn." in name
        and name.split(".")[-2] in ("q", "k", "v", "out")
        and name.endswith("weight")
    )


def fake_quantise(weight: Tensor) -> Tensor:
    """The nearest values that MXFP4 can hold, as `aperto.formats.mxfp4.encode` rounds."""
    blocks = weight.reshape(-1, 32)
    top = blocks.abs().amax(-1, keepdim=True)
    exponent = torch.where(top > 0, torch.frexp(top).exponent - 3, -127).clamp(min=-127)
    unit = torch.ldexp(torch.ones_like(top), exponent)
    scaled = blocks / unit
    size = scaled.abs()
    grid = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return ((scaled / grid).round() * grid).clamp(-6, 6).mul(unit).view(weight.shape)


def views(flat: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """A vector cut into one view a parameter of `model`, in its order."""
    parts = flat.split([p.numel() for p in model.parameters()])
    named = model.named_parameters()
    return {name: part.view(p.shape) for (name, p), part in zip(named, parts, strict=True)}


# --- one micro-batch ---------------------------------------------------------------------------


class GroupedLinear(torch.autograd.Function):
    """`ExpertLinear` on rows sorted by expert, written into one output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, counts: list[int]) -> Tensor:
        """x [M, in], `counts` rows an expert -> [M, out]."""
        out = x.new_empty(x.shape[0], weight.shape[1])
        at = 0
        for expert, count in enumerate(counts):
            rows = slice(at, at + count)
            torch.addmm(bias[expert], x[rows], weight[expert].t(), out=out[rows])
            at += count
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_w = torch.empty_like(x), torch.empty_like(weight)
        grad_b = grad.new_empty(weight.shape[:2])
        at = 0
        for expert, count in enumerate(ctx.counts):
            rows = slice(at, at + count)
            torch.mm(grad[rows], weight[expert], out=grad_x[rows])
            torch.mm(grad[rows].t(), x[rows], out=grad_w[expert])
            grad_b[expert] = grad[rows].float().sum(0)
            at += count
        return grad_x, grad_w, grad_b, None


@functools.cache
def kernels() -> Any:
    """kernels.cpp, compiled for this machine."""
    from torch.utils.cpp_extension import load

    source = str(Path(__file__).with_name("kernels.cpp"))
    flags = ["-O3", "-std=c++20", "-march=native", "-mprefer-vector-width=512", "-ffast-math"]
    return load("nano_kernels", [source], extra_cflags=flags)


class SwiGLU(torch.autograd.Function):
    """`aperto.adapt.model.swiglu` in bfloat16 on the CPU."""

    @staticmethod
    def forward(ctx: Any, pairs: Tensor, limit: float) -> Tensor:
        """pairs [M, 2I] -> [M, I]."""
        ctx.save_for_backward(pairs)
        ctx.limit = limit
        return kernels().swiglu(pairs, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Gradient of the pairs."""
        (pairs,) = ctx.saved_tensors
        return kernels().swiglu_backward(grad.contiguous(), pairs, ctx.limit), None


class SinkAttention(torch.autograd.Function):
    """`aperto.adapt.model.attend` in bfloat16 on the CPU.

    In place of the mask it takes, for each token, the first one it sees: int64 [B, T].
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, first: Tensor) -> Tensor:
        """q [B, Q, T, D], k and v [B, K, T, D], sinks [Q] -> [B, Q, T, D]."""
        batch, heads, steps, width = q.shape
        groups, scale = k.shape[1], 1 / math.sqrt(width)
        stacked = q.reshape(batch, groups, -1, width)
        shares = stacked @ k.transpose(-1, -2)  # scores until the next line
        sink_shares = kernels().softmax(
            shares.view(batch, heads, steps, steps), sinks, first, scale
        )
        ctx.save_for_backward(stacked, k, v, shares, sink_shares, first)
        ctx.scale = scale
        return (shares @ v).view(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v and sinks."""
        stacked, k, v, shares, sink_shares, first = ctx.saved_tensors
        heads, steps, shape = sink_shares.shape[1], sink_shares.shape[2], grad.shape
        grad = grad.reshape(stacked.shape)
        grad_v = shares.transpose(-1, -2) @ grad
        scores = grad @ v.transpose(-1, -2)  # the shares' gradient until the next line
        full = (len(grad), heads, steps, steps)
        sinks = kernels().softmax_backward(
            scores.view(full), shares.view(full), sink_shares, first, ctx.scale
        )
        grad_q, grad_k = scores @ k, scores.transpose(-1, -2) @ stacked
        return grad_q.view(shape), grad_k, grad_v, sinks.to(k.dtype), None


def first_seen(window: int, segments: Tensor) -> Tensor:
    """The first token that each sees, int64 [B, T]: `attention_mask` in short."""
    steps = torch.arange(segments.shape[1])
    start = steps - twin.positions_within(segments)
    return torch.maximum(start, steps - window + 1) if window else start


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of [N, V] logits."""
    return nn.functional.cross_entropy(logits.float(), targets)


def balance_loss(router_logits: list[Tensor], top_k: int) -> Tensor:
    """1 where every expert of a layer gets an equal share of tokens and probability; more else."""
    total = torch.zeros((), device=router_logits[0].device)
    for logits in router_logits:
        shares = logits.float().softmax(-1)
        chosen = logits.topk(top_k, dim=-1).indices.flatten()
        load = chosen.bincount(minlength=logits.shape[-1]) / chosen.numel()
        total = total + logits.shape[-1] * (load * shares.mean(0)).sum()
    return total / len(router_logits)


class Worker:
    """A model whose parameters are views of one vector, and gradients of one micro-batch."""

    def __init__(self, flat: Tensor, schedule: Schedule, compiled: bool) -> None:
        self.schedule, self.device = schedule, flat.device
        self.tokenizer = Tokenizer.from_checkpoint(TokenizerSource("hf", TOKENIZER))
        with torch.device("meta"):
            self.model = twin.GptOss(CONFIG)
        self.model.load_state_dict(views(flat, self.model), assign=True)
        self.router_logits: list[Tensor] = []
        for layer in self.model.layers:
            layer.moe.router.register_forward_hook(
                lambda module, given, logits: self.router_logits.append(logits)
            )
        self.loss: Callable[..., Tensor] = token_loss
        self.attend = attend if self.device.type == "cpu" else twin.attend
        if compiled:
            self._compile()

    def _compile(self) -> None:
        """Fuse what is not a matrix product; the shapes of every step are the same."""
        for layer in self.model.layers:
            for part in (layer.attn, layer.moe.norm):
                part.forward = torch.compile(part.forward, dynamic=False)
        self.loss = torch.compile(token_loss, dynamic=True)
        twin.combine = torch.compile(twin.combine, dynamic=False)

    def batch(self, step: int, progress: float, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, segments and weights of a micro-batch, from seeds alone."""
        s = self.schedule
        seed = f"{s.seed}/{step}/{index}"
        packed = data.rows(seed, s.mix(progress), self.tokenizer, s.rows, s.length)
        ids, segments, weights = (torch.from_numpy(a).to(self.device) for a in packed)
        return ids, segments, weights

    def gradients(self, step: int, progress: float, index: int, slot: Tensor) -> float:
        """Write the gradient of a micro-batch into `slot` [P]; return the loss."""
        ids, segments, weights = self.batch(step, progress, index)
        self.router_logits.clear()
        stream = self.model.hidden(ids, segments, self.attend).flatten(0, 1)
        followed = segments[:, 1:] == segments[:, :-1]
        wanted = torch.zeros_like(followed.new_empty(ids.shape))
        wanted[:, :-1] = followed & (weights[:, 1:] > 0)
        at = wanted.flatten().nonzero().squeeze(1)
        targets = ids.flatten()[at + 1]
        spare = -len(at) % ROWS
        at, targets = (
            nn.functional.pad(at, (0, spare)),
            nn.functional.pad(targets, (0, spare), value=-100),
        )
        loss = self.loss(self.model.head(self.model.norm(stream.index_select(0, at))), targets)
        top_k = CONFIG.layers[0].experts_per_token
        (loss + self.schedule.balance * balance_loss(self.router_logits, top_k)).backward()
        at = 0
        for parameter in self.model.parameters():
            slot[at : at + parameter.numel()] = parameter.grad.flatten()
            at += parameter.numel()
            parameter.grad = None
        return float(loss.detach())


ROWS = 64
"""Experts get rows in multiples of this: oneDNN compiles a kernel for each new shape it meets."""


def moe_forward(self: twin.Moe, x: Tensor) -> Tensor:
    """`Moe.forward` with the rows of each expert padded by zeros, as ROWS says."""
    t = self.norm(x).flatten(0, 1)
    logits, chosen = self.router(t).float().topk(self.top_k, dim=-1)
    experts = chosen.flatten()
    order = experts.argsort(stable=True)
    counts = experts.bincount(minlength=self.router.out_features)
    padded = (counts + ROWS - 1) // ROWS * ROWS
    shift = (padded.cumsum(0) - padded) - (counts.cumsum(0) - counts)
    places = torch.arange(len(order)) + shift[experts[order]]  # of the sorted pairs
    place = torch.empty_like(order).scatter_(0, order, places)  # of the pairs in order of token
    sizes = padded.tolist()
    blank = t.new_zeros(sum(sizes), t.shape[1])
    rows = blank.index_copy(0, place, t.repeat_interleave(self.top_k, 0))
    gate_up, down = self.gate_up, self.down
    inner = twin.swiglu(GroupedLinear.apply(rows, gate_up.weight, gate_up.bias, sizes), self.limit)
    out = GroupedLinear.apply(inner, down.weight, down.bias, sizes)
    return twin.combine(out.index_select(0, place), logits).view(x.shape)


@torch.compiler.disable
def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, first: Tensor) -> Tensor:
    return SinkAttention.apply(q.contiguous(), k.contiguous(), v.contiguous(), sinks, first)


def prepare() -> None:
    """Settings of a process that computes gradients."""
    torch.set_num_threads(1)
    if device().type == "cpu":
        twin.Moe.forward = moe_forward
        twin.swiglu = SwiGLU.apply
        twin.attention_mask = first_seen


def work(flat: Tensor, slots: Tensor, losses: Tensor, shared: Any, schedule: Schedule) -> None:
    """A worker process: take micro-batches until none is left, step after step."""
    prepare()
    worker = Worker(flat, schedule, compiled=True)
    while True:
        shared.begin.wait()
        if shared.step.value < 0:
            return
        take(worker, slots, losses, shared)
        shared.end.wait()


def take(worker: Worker, slots: Tensor, losses: Tensor, shared: Any) -> None:
    """Compute micro-batches of the current step until none is left."""
    while True:
        with shared.next.get_lock():
            index = shared.next.value
            shared.next.value += 1
        if index >= len(slots):
            return
        step, progress = shared.step.value, shared.progress.value
        losses[index] = worker.gradients(step, progress, index, slots[index])


class Shared:
    """What the processes of a run agree by."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.begin, self.end = context.Barrier(processes), context.Barrier(processes)
        self.step, self.next = context.Value("q", 0), context.Value("q", 0)
        self.progress = context.Value("d", 0.0)


# --- the optimiser -----------------------------------------------------------------------------


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to [n, rows, columns], by Newton-Schulz."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(5):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return (x.mT if tall else x).float()


class Optimiser:
    """Muon for the matrices inside the layers, AdamW for the rest."""

    def __init__(self, weights: dict[str, Tensor], schedule: Schedule) -> None:
        self.schedule = schedule
        self.matrices = {n: w for n, w in weights.items() if is_matrix(n)}
        self.momentum = {n: torch.zeros_like(w) for n, w in self.matrices.items()}
        self.rest = {n: w for n, w in weights.items() if not is_matrix(n)}
        for weight in self.rest.values():
            weight.grad = torch.zeros_like(weight)
        decayed = [w for n, w in self.rest.items() if w.dim() > 1]
        plain = [w for n, w in self.rest.items() if w.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, schedule.adam_lr, betas=(0.9, 0.95), fused=True)

    def step(self, gradients: dict[str, Tensor], rate: float) -> None:
        """One step down `gradients`, with both learning rates times `rate`."""
        for name, weight in self.rest.items():
            weight.grad.copy_(gradients[name])
        nn.utils.clip_grad_norm_(self.rest.values(), 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.schedule.adam_lr * rate
        self.adam.step()
        lr = self.schedule.muon_lr * rate
        for name, weight in self.matrices.items():
            momentum = self.momentum[name].lerp_(gradients[name], 0.05)
            ahead = gradients[name].lerp(momentum, 0.95)
            update = orthogonalise(ahead.view(-1, *weight.shape[-2:])).view(weight.shape)
            scale = max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5
            weight.mul_(1 - 0.1 * lr).sub_(update, alpha=lr * scale)

    def state(self) -> dict[str, Any]:
        """What `load` needs."""
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        for name, value in state["momentum"].items():
            self.momentum[name].copy_(value)
        self.adam.load_state_dict(state["adam"])


# --- the run -----------------------------------------------------------------------------------


class Run:
    """Weights, optimiser and log of a training run, kept in a folder."""

    def __init__(self, folder: Path, schedule: Schedule, workers: int) -> None:
        self.folder, self.schedule, self.device = folder, schedule, device()
        template = twin.GptOss(CONFIG)
        initial_weights(template, CONFIG, schedule.seed)
        size = sum(p.numel() for p in template.parameters())
        self.master = torch.cat([p.data.flatten() for p in template.parameters()]).to(self.device)
        self.weights = views(self.master, template)
        self.flat = torch.empty(size, dtype=torch.bfloat16, device=self.device)
        self.slots = torch.empty(
            schedule.micro_batches, size, dtype=torch.bfloat16, device=self.device
        )
        self.losses = torch.zeros(schedule.micro_batches)
        self.template, self.used = template, views(self.flat, template)
        self.optimiser = Optimiser(self.weights, schedule)
        self.first, self.tokens, self.seconds, self.progress = 0, 0, 0.0, 0.0
        if (folder / "state.pt").exists():
            self._resume()
        self.shared = Shared(workers)
        if workers > 1:
            for tensor in (self.flat, self.slots, self.losses):
                tensor.share_memory_()
        arguments = (self.flat, self.slots, self.losses, self.shared, schedule)
        context = multiprocessing.get_context("spawn")
        self.helpers = [
            context.Process(target=work, args=arguments, daemon=True) for _ in range(workers - 1)
        ]
        self.publish()
        for helper in self.helpers:
            helper.start()
        self.worker = Worker(self.flat, schedule, compiled=True)

    def _resume(self) -> None:
        state = torch.load(self.folder / "state.pt", map_location=self.device)
        self.master.copy_(state["master"])
        self.optimiser.load(state["optimiser"])
        self.first, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.progress = state.get("progress", self.first / self.schedule.steps)

    def save(self, step: int) -> None:
        """Write state.pt so that an interruption leaves the old or the new one."""
        state = {
            "master": self.master,
            "optimiser": self.optimiser.state(),
            "step": step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "progress": self.progress,
        }
        torch.save(state, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / "state.pt")

    def publish(self) -> None:
        """Round the trained weights to those that the next step computes with."""
        if self.progress >= self.schedule.quantised:
            for name, weight in self.weights.items():
                rounded = fake_quantise(weight) if is_expert(name) else weight
                self.used[name].copy_(rounded)
        else:
            self.flat.copy_(self.master)

    def step(self, step: int, progress: float) -> float:
        """One optimiser step, after which `progress` is made; returns its loss."""
        self.shared.step.value, self.shared.next.value = step, 0
        self.shared.progress.value = self.progress
        self.shared.begin.wait()
        take(self.worker, self.slots, self.losses, self.shared)
        self.shared.end.wait()
        mean = self.slots[0].float()
        for slot in self.slots[1:]:
            mean += slot
        mean /= len(self.slots)
        torch.set_num_threads(1 + len(self.helpers))
        rate = self.schedule.rate(self.progress) * min((step + 1) / self.schedule.warmup, 1.0)
        self.optimiser.step(views(mean, self.template), rate)
        self.progress = progress
        self.publish()
        torch.set_num_threads(1)
        return float(self.losses.mean())

    def stop(self) -> None:
        """End the helper processes."""
        self.shared.step.value = -1
        self.shared.begin.wait()
        for helper in self.helpers:
            helper.join()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Probe:
    """Held-out samples of every skill, scored by whether each token of the answer is the likeliest.

    That is what greedy decoding would reproduce word for word, at the price of one forward pass.
    """

    def __init__(self, schedule: Schedule, tokenizer: Tokenizer, count: int = 40) -> None:
        self.sets: dict[str, list[tuple[Tensor, ...]]] = {}
        names = [*skills.TURNS, *(f"arithmetic {op}" for op in "+-*/")]
        for name in names:
            if name == "drill":
                continue
            rng, chosen = random.Random(f"probe/{name}"), []
            while len(chosen) < count:
                chosen.append(self._sample(rng, name))
            encoded = [
                e
                for e in (data.tokens(s, tokenizer) for s in chosen)
                if len(e[0]) <= schedule.length
            ]
            self.sets[name] = []
            while encoded:
                packed = data.pack(encoded, schedule.rows, schedule.length)
                placed = int(sum(packed[1].max(1)))
                self.sets[name].append(tuple(torch.from_numpy(a).to(device()) for a in packed))
                encoded = encoded[placed:]

    def _sample(self, rng: random.Random, name: str) -> skills.Sample:
        while True:
            if " " in name:
                op = name[-1]
                turn = skills.arithmetic_turn(rng, "medium", op=op)
                sample = skills.conversation(rng, name, turn)
            else:
                sample = skills.make(rng, name, "medium")
            if data.held_out(sample.key) or sample.key == "":
                return sample

    @torch.no_grad()
    def score(self, worker: Worker) -> dict[str, float]:
        """Share of answers that are word for word right, by skill."""
        return {name: self._share(worker, batches) for name, batches in self.sets.items()}

    def _share(self, worker: Worker, batches: list[tuple[Tensor, ...]]) -> float:
        right = total = 0
        for ids, segments, weights in batches:
            worker.router_logits.clear()
            best = worker.model(ids, segments, worker.attend).argmax(-1)
            wrong = torch.zeros_like(ids, dtype=torch.bool)
            wrong[:, 1:] = (best[:, :-1] != ids[:, 1:]) & (weights[:, 1:] == 1)
            for row in range(len(ids)):
                for part in range(1, int(segments[row].max()) + 1):
                    total += 1
                    right += int(not wrong[row, segments[row] == part].any())
        return right / max(total, 1)


def plot(folder: Path) -> None:
    """loss.png from log.jsonl."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(8, 8), sharex=True)
    losses = [(e["step"], e["loss"]) for e in entries if "loss" in e]
    upper.semilogy(*zip(*losses, strict=True), linewidth=0.7)
    upper.set_ylabel("loss")
    probes = [e for e in entries if "probe" in e]
    for name in probes[-1]["probe"] if probes else ():
        points = [(e["step"], e["probe"].get(name, np.nan)) for e in probes]
        lower.plot(*zip(*points, strict=True), label=name)
    lower.set_ylabel("held-out answers word for word")
    lower.set_xlabel("step")
    lower.legend(fontsize=6, ncols=3)
    figure.savefig(folder / "loss.png", dpi=110)
    pyplot.close(figure)


class Pace:
    """How far the schedule is at each step: by the number of steps, or by the clock."""

    def __init__(self, run: Run, minutes: float | None) -> None:
        self.begin, self.steps, self.minutes = run.progress, run.schedule.steps, minutes
        self.start = time.monotonic()

    def after(self, step: int) -> float:
        """The share of the run that is done once a step is."""
        if self.minutes is None:
            return (step + 1) / self.steps
        spent = (time.monotonic() - self.start) / (60 * self.minutes)
        return self.begin + (1 - self.begin) * spent


def train(run: Run, pace: Pace, every: int) -> None:
    """Steps until the schedule is done or SIGTERM comes; saves, probes and logs on the way."""
    schedule = run.schedule
    probe = Probe(schedule, run.worker.tokenizer)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    step = run.first
    with (run.folder / "log.jsonl").open("a") as log, Progress(*columns) as progress:
        task = progress.add_task("training", total=1.0, completed=run.progress)
        while run.progress < 1.0 and not stop:
            start = time.perf_counter()
            loss = run.step(step, pace.after(step))
            step += 1
            elapsed = time.perf_counter() - start
            run.seconds += elapsed
            run.tokens += schedule.micro_batches * schedule.rows * schedule.length
            entry: dict[str, Any] = {
                "step": step, "loss": round(loss, 5), "seconds": round(elapsed, 3),
                "progress": round(run.progress, 4),
            }  # fmt: skip
            progress.update(
                task, completed=run.progress, description=f"step {step} loss {loss:.4f}"
            )
            pause = step % every == 0 or run.progress >= 1.0
            if pause:
                run.save(step)
                entry["probe"] = {n: round(v, 3) for n, v in probe.score(run.worker).items()}
            log.write(json.dumps(entry) + "\n")
            log.flush()
            if pause:
                plot(run.folder)
    run.save(step)
    run.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=Schedule.steps, help="optimiser steps in all")
    parser.add_argument(
        "--minutes", type=float, help="pace the rest of the run by the clock instead"
    )
    parser.add_argument(
        "--progress", type=float, help="go on as if this share of the run were done"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes; 1 on CUDA")
    parser.add_argument("--every", type=int, default=100, help="steps between probes and saves")
    arguments = parser.parse_args()
    arguments.state.mkdir(parents=True, exist_ok=True)
    prepare()
    workers = 1 if device().type == "cuda" else arguments.workers
    run = Run(arguments.state, Schedule(steps=arguments.steps), workers)
    if arguments.progress is not None:
        run.progress = arguments.progress
    train(run, Pace(run, arguments.minutes), arguments.every)
    sys.stdout.write(f"{run.tokens} tokens, {run.seconds:.0f} s\n")


if __name__ == "__main__":
    main()
