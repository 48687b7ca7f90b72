"""Gradients of micro-batches, on as many processes as there are cores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import data
import fast
import torch
from schedule import CONFIG, TOKENIZER, Schedule
from torch import Tensor, multiprocessing, nn
from weights import views

from aperto.adapt import model as twin
from aperto.formats import TokenizerSource
from aperto.tokenizer import Tokenizer


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
        if self.device.type == "cpu":
            self.model.attend = fast.attend
        if compiled:
            self._compile()

    def _compile(self) -> None:
        """Fuse what is not a matrix product; the shapes of every step are the same."""
        for layer in self.model.layers:
            for part in (layer.attn, layer.moe.norm):
                part.forward = torch.compile(part.forward, dynamic=False)
        self.loss = torch.compile(token_loss, dynamic=True)
        twin.combine = torch.compile(twin.combine, dynamic=False)

    def batch(self, step: int, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, segments and weights of a micro-batch, from seeds alone."""
        s = self.schedule
        seed = f"{s.seed}/{step}/{index}"
        packed = data.rows(seed, s.mix(step), self.tokenizer, s.rows, s.length)
        ids, segments, weights = (torch.from_numpy(a).to(self.device) for a in packed)
        return ids, segments, weights

    def gradients(self, step: int, index: int, slot: Tensor) -> float:
        """Write the gradient of a micro-batch into `slot` [P]; return the loss."""
        ids, segments, weights = self.batch(step, index)
        self.router_logits.clear()
        stream = self.model.hidden(ids, segments).flatten(0, 1)
        followed = segments[:, 1:] == segments[:, :-1]
        wanted = torch.zeros_like(followed.new_empty(ids.shape))
        wanted[:, :-1] = followed & (weights[:, 1:] > 0)
        at = wanted.flatten().nonzero().squeeze(1)
        targets = ids.flatten()[at + 1]
        spare = -len(at) % fast.ROWS
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


def prepare() -> None:
    """Settings of a process that computes gradients."""
    torch.set_num_threads(1)
    if device().type == "cpu":
        fast.use()


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
        losses[index] = worker.gradients(shared.step.value, index, slots[index])


class Shared:
    """What the processes of a run agree by."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.begin, self.end = context.Barrier(processes), context.Barrier(processes)
        self.step, self.next = context.Value("q", 0), context.Value("q", 0)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
