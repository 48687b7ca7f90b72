"""The training loop: it learns, stops and goes on, and loses nothing on the way."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from aperto.adapt import lora
from aperto.adapt.batches import RowBatches
from aperto.adapt.lora import LoraConfig
from aperto.adapt.model import GptOss
from aperto.adapt.optimiser import make_optimiser
from aperto.adapt.packing import Example, pack
from aperto.adapt.schedule import Schedule
from aperto.adapt.state import STATE, RunFolder
from aperto.adapt.train import TrainConfig, cross_entropy, fit, mean_loss
from aperto.config import LayerConfig, ModelConfig
from aperto.errors import ConfigError, DiskSpaceError, FormatError, TrainingError, UsageError

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    head_dim=16,
    num_attention_heads=2,
    num_key_value_heads=1,
    layers=(LayerConfig(8, 4, 2), LayerConfig(0, 4, 2)),
)


def rows(count=5, length=24, vocab=64):
    drawn = np.random.default_rng(0)
    examples = [
        Example(drawn.integers(0, vocab, length).astype(np.int32), np.ones(length, np.float32))
        for _ in range(count)
    ]
    return pack(examples, length)


def adapted(dropout=0.1):
    torch.manual_seed(5)
    model = GptOss(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    lora.attach(model, LoraConfig(rank=2, dropout=dropout))
    return model


def train(path, steps=8, optimiser="adamw", rate=1e-2, objective=cross_entropy, **hooks):
    model = adapted()
    trainable = lora.trainable(model)
    folder = RunFolder(path, {"steps": steps, "rate": rate})
    outcome = fit(
        model,
        trainable,
        RowBatches(rows(), rows_per_step=2, seed=3),
        objective,
        make_optimiser(optimiser, trainable.values()),
        TrainConfig(schedule=Schedule(steps=steps, peak=rate), save_every_s=0),
        folder,
        **hooks,
    )
    return outcome, {name: p.detach().clone() for name, p in trainable.items()}, folder


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


class Stop(Exception):
    """Ends a run between two steps, as a crash would."""


def stop_after(step):
    def watch(report):
        if report.step == step:
            raise Stop

    return watch


@pytest.mark.parametrize("optimiser", ["adamw", "adamw8bit"])
def test_loss_falls(tmp_path, optimiser):
    _, _, folder = train(tmp_path, steps=30, optimiser=optimiser, rate=3e-2)
    losses = [entry["loss"] for entry in folder.log()]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


@pytest.mark.parametrize("optimiser", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_run_ends_in_the_bits_of_an_undisturbed_one(tmp_path, optimiser, step):
    _, whole, folder = train(tmp_path / "whole", optimiser=optimiser)
    with pytest.raises(Stop):
        train(tmp_path / "cut", optimiser=optimiser, watch=stop_after(step))
    outcome, resumed, again = train(tmp_path / "cut", optimiser=optimiser)
    # The step after which it stopped was not saved: it is taken again.
    assert outcome.resumed_at == step - 1
    assert same(whole, resumed)
    timeless = ("step", "loss", "tokens", "learning_rate", "grad_norm")
    assert [[e[k] for k in timeless] for e in folder.log()] == [
        [e[k] for k in timeless] for e in again.log()
    ]


SCRIPT = """
import sys, pathlib
from tests.adapt.test_train import train
train(pathlib.Path(sys.argv[1]), steps=80, rate=1e-4)
"""


def test_a_killed_run_ends_in_the_bits_of_an_undisturbed_one(tmp_path):
    _, whole, _ = train(tmp_path / "whole", steps=80, rate=1e-4)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "cut")])
    log = tmp_path / "cut" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 10):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    outcome, resumed, folder = train(tmp_path / "cut", steps=80, rate=1e-4)
    assert 0 < outcome.resumed_at < 80
    assert same(whole, resumed)
    assert [entry["step"] for entry in folder.log()] == list(range(1, 81))


def test_an_interrupt_ends_after_the_step_and_keeps_it(tmp_path):
    def interrupt(report):
        if report.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    outcome, _, _ = train(tmp_path, watch=interrupt)
    assert (outcome.step, outcome.finished) == (3, False)
    assert train(tmp_path)[0].resumed_at == 3


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_what_was_reached(tmp_path):
    calls = []

    def broken(model, batch):
        calls.append(1)
        loss, weight = cross_entropy(model, batch)
        return loss * (float("nan") if len(calls) == 5 else 1.0), weight

    with pytest.raises(TrainingError, match=r"step 3: the loss is nan.*lower learning rate"):
        train(tmp_path, objective=broken)
    outcome, resumed, _ = train(tmp_path)
    assert outcome.resumed_at == 2
    assert same(train(tmp_path.with_name("whole"))[1], resumed)


def test_a_full_disk_keeps_the_state_before(tmp_path, monkeypatch):
    with pytest.raises(Stop):
        train(tmp_path, watch=stop_after(3))
    before = (tmp_path / STATE).read_bytes()

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DiskSpaceError, match=r"No space left.*resume"):
        train(tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.jsonl", "run.json", STATE]
    monkeypatch.undo()
    assert same(train(tmp_path)[1], train(tmp_path.with_name("whole"))[1])


def test_a_finished_run_is_not_trained_again(tmp_path):
    _, whole, folder = train(tmp_path)
    lines = folder.log()
    outcome, again, folder = train(tmp_path)
    assert outcome.resumed_at == 8
    assert same(whole, again)
    assert folder.log() == lines


def test_another_run_in_the_folder_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(UsageError, match=r"rate was 0\.01, asked for is 0\.5"):
        train(tmp_path, rate=0.5)
    (tmp_path / STATE).write_bytes(b"not a state")
    with pytest.raises(FormatError, match="cannot be read"):
        train(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        RunFolder(other, {})


def test_gradients_are_the_mean_over_the_step_whatever_its_batches(tmp_path):
    """One batch of two rows and two of one row give one gradient, up to rounding."""

    def norm(rows_per_batch):
        model = adapted(dropout=0.0)
        trainable = lora.trainable(model)
        reports = []
        fit(
            model,
            trainable,
            RowBatches(rows(), rows_per_step=4, rows_per_batch=rows_per_batch, seed=3),
            cross_entropy,
            make_optimiser("adamw", trainable.values()),
            TrainConfig(schedule=Schedule(steps=1), save_every_s=0),
            RunFolder(tmp_path / str(rows_per_batch), {}),
            watch=reports.append,
        )
        return reports[0].loss, reports[0].grad_norm

    (loss_1, norm_1), (loss_4, norm_4) = norm(1), norm(4)
    # Sums of 92 float32 terms in another order: 92 * 2^-24 each, and as much again in the model.
    assert loss_1 == pytest.approx(loss_4, rel=1e-5)
    assert norm_1 == pytest.approx(norm_4, rel=1e-4)


def test_evaluations_and_published_states(tmp_path):
    measured, published = [], []

    def evaluate():
        measured.append(1)
        return {"eval_loss": float(len(measured))}

    outcome, _, _ = train(tmp_path, evaluate=evaluate, publish=published.append)
    assert outcome.measures == {"eval_loss": 1.0}
    assert published == list(range(1, 9))
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["eval_loss"] == 1.0


def test_mean_loss_learns_nothing_and_drops_nothing():
    model = adapted(dropout=0.5)
    batches = list(RowBatches(rows(), rows_per_step=5)(0))
    model.train()
    first = mean_loss(model, batches, cross_entropy)
    assert first == mean_loss(model, batches, cross_entropy)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_every_row_is_learnt_once_an_epoch():
    batches = RowBatches(rows(7), rows_per_step=3, seed=1)
    assert batches.steps_per_epoch == 3
    epochs = [[i for s in range(3) for i in batches.rows_of(3 * e + s)] for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(7))] * 2
    assert epochs[0] != epochs[1]
    with pytest.raises(ConfigError, match="0 rows"):
        RowBatches([], rows_per_step=1)


def test_settings_out_of_range():
    with pytest.raises(ConfigError, match="max_gradient_norm is -1"):
        TrainConfig(schedule=Schedule(steps=1), max_gradient_norm=-1)
