"""How far a run is: held-out answers on the way, and a plot of its log."""

from __future__ import annotations

import json
import random
from pathlib import Path

import data
import numpy as np
import skills
import torch
from schedule import Schedule
from sums import arithmetic_turn
from torch import Tensor
from turn import Sample
from worker import Worker, device

from aperto.tokenizer import Tokenizer


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

    def _sample(self, rng: random.Random, name: str) -> Sample:
        while True:
            if " " in name:
                op = name[-1]
                turn = arithmetic_turn(rng, "medium", op=op)
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
            best = worker.model(ids, segments).argmax(-1)
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
    probes = [e for e in entries if "loss" not in e]
    for name in sorted({*probes[-1]} - {"step"}) if probes else ():
        points = [(e["step"], e.get(name, np.nan)) for e in probes]
        lower.plot(*zip(*points, strict=True), label=name)
    lower.set_ylabel("held-out answers word for word")
    lower.set_xlabel("step")
    lower.legend(fontsize=6, ncols=3)
    figure.savefig(folder / "loss.png", dpi=110)
    pyplot.close(figure)
