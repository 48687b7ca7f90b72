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
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from optimiser import Optimiser
from probe import Probe, plot
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from schedule import CONFIG, Schedule
from torch import multiprocessing
from weights import fake_quantise, initial_weights, is_expert, views
from worker import Shared, Worker, device, prepare, take, work

from aperto.adapt import model as twin


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
