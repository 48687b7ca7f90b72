"""Train nano: seeded, resumable, on the CPU (one process a core) or on one CUDA device.

    python recipes/nano/train.py --state DIR [--steps N] [--workers N]

DIR receives state.pt (all that a resumed run needs), log.jsonl and loss.png. Run it again with
the same DIR to go on after an interruption: the loop is `aperto.adapt.train`'s. The result
does not depend on the number of workers: each micro-batch's gradient has a slot of its own and
slots are summed in order.

The weights that are trained are float32; what each step computes with is their bfloat16 rounding
(for experts, in the last stage, their MXFP4 rounding), so that the export loses nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from optimiser import Optimiser
from probe import Probe, plot
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from schedule import CONFIG, Schedule
from torch import multiprocessing, nn
from weights import fake_quantise, initial_weights, is_expert, views
from worker import Shared, Worker, device, prepare, take, work

from aperto.adapt.model import GptOss
from aperto.adapt.state import RunFolder
from aperto.adapt.train import StepReport, Sums, TrainConfig, descend


class Gradients:
    """Gradients of a step's micro-batches, by this process and its helpers."""

    def __init__(self, schedule: Schedule, workers: int) -> None:
        self.schedule, place = schedule, device()
        model = GptOss(CONFIG)
        initial_weights(model, CONFIG, schedule.seed)
        self.weights = {n: nn.Parameter(p.data.to(place)) for n, p in model.named_parameters()}
        size = sum(p.numel() for p in self.weights.values())
        self.flat = torch.empty(size, dtype=torch.bfloat16, device=place)
        self.used = views(self.flat, model)
        self.model = model
        self.slots = torch.empty(schedule.micro_batches, size, dtype=torch.bfloat16, device=place)
        self.losses = torch.zeros(schedule.micro_batches)
        self.done = 0
        self.shared = Shared(workers)
        if workers > 1:
            for tensor in (self.flat, self.slots, self.losses):
                tensor.share_memory_()
        arguments = (self.flat, self.slots, self.losses, self.shared, schedule)
        context = multiprocessing.get_context("spawn")
        self.helpers = [
            context.Process(target=work, args=arguments, daemon=True) for _ in range(workers - 1)
        ]
        for helper in self.helpers:
            helper.start()
        self.worker = Worker(self.flat, schedule, compiled=True)

    def __call__(self, step: int) -> Sums:
        """The gradients of one step, slot by slot in order."""
        self.round_weights(step)
        self.done = step + 1
        torch.set_num_threads(1)
        self.shared.step.value, self.shared.next.value = step, 0
        self.shared.begin.wait()
        take(self.worker, self.slots, self.losses, self.shared)
        self.shared.end.wait()
        torch.set_num_threads(1 + len(self.helpers))
        total = self.slots[0].float()
        for slot in self.slots[1:]:
            total += slot
        for name, gradient in views(total, self.model).items():
            self.weights[name].grad = gradient
        schedule = self.schedule
        tokens = schedule.micro_batches * schedule.rows * schedule.length
        return Sums(float(self.losses.sum()), len(self.losses), tokens)

    def round_weights(self, step: int) -> None:
        """Round the trained weights to those that a step computes with."""
        for name, weight in self.weights.items():
            rounds = is_expert(name) and self.schedule.rounds(step)
            self.used[name].copy_(fake_quantise(weight.data) if rounds else weight.data)

    def stop(self) -> None:
        """End the helper processes."""
        self.shared.step.value = -1
        self.shared.begin.wait()
        for helper in self.helpers:
            helper.join()


@contextmanager
def watching(steps: int) -> Iterator[Callable[[StepReport], None]]:
    """Show a bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=steps)

        def watch(report: StepReport) -> None:
            text = f"step {report.step} loss {report.loss:.4f}"
            progress.update(task, completed=report.step, description=text)

        yield watch


def train(gradients: Gradients, state: Path, every: int) -> None:
    """Steps until the schedule is done or an interrupt comes; probes on the way."""
    schedule = gradients.schedule
    probe = Probe(schedule, gradients.worker.tokenizer)

    def evaluate() -> dict[str, float]:
        plot(state)
        gradients.round_weights(gradients.done)
        return {name: round(share, 3) for name, share in probe.score(gradients.worker).items()}

    settings = {**dataclasses.asdict(schedule), "recipe": "nano"}
    with watching(schedule.steps) as watch:
        descend(
            gradients,
            gradients.weights,
            Optimiser(gradients.weights, schedule),
            TrainConfig(
                schedule=schedule, max_gradient_norm=0.0, evaluate_every=every, save_every_s=120
            ),
            RunFolder(state, settings),
            evaluate=evaluate,
            watch=watch,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=Schedule.steps, help="optimiser steps in all")
    parser.add_argument("--workers", type=int, default=2, help="processes; 1 on CUDA")
    parser.add_argument("--every", type=int, default=100, help="steps between probes")
    arguments = parser.parse_args()
    prepare()
    workers = 1 if device().type == "cuda" else arguments.workers
    gradients = Gradients(Schedule(steps=arguments.steps), workers)
    try:
        train(gradients, arguments.state, arguments.every)
    finally:
        gradients.stop()
    sys.stdout.write(f"{arguments.state}: done\n")


if __name__ == "__main__":
    main()
