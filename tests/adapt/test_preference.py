"""Preference tuning: the loss, its gradient, what it moves, and runs that were killed."""

import dataclasses
import math
import signal

import numpy as np
import pytest
import torch
from tests.tiny import write_tiny

from aperto.adapt import lora
from aperto.adapt.job import Subject
from aperto.adapt.lora import LoraConfig
from aperto.adapt.model import GptOss
from aperto.adapt.packing import Example
from aperto.adapt.pairs import Pair, PairSet
from aperto.adapt.preference import (
    REFERENCE,
    Preference,
    PreferenceConfig,
    answer_log_probabilities,
    preference_loss,
    side_by_side,
)
from aperto.errors import ConfigError, UsageError
from aperto.formats import open_checkpoint
from aperto.formats.lineage import Lineage, Parent

CONFIG = PreferenceConfig(
    steps=8, pairs_per_step=3, learning_rate=1e-2, dtype="float32", warmup=0.0, beta=0.2
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return open_checkpoint(write_tiny(tmp_path_factory.mktemp("m") / "tiny", windows=(8, 0)))


def pairs(count=7, held_out=2):
    drawn = np.random.default_rng(3)

    def side(prompt, length):
        ids = np.concatenate((prompt, drawn.integers(0, 384, length))).astype(np.int32)
        weights = np.concatenate((np.zeros(len(prompt)), np.ones(length))).astype(np.float32)
        return Example(ids, weights)

    made = []
    for index in range(count + held_out):
        prompt = drawn.integers(0, 384, 5)
        made.append(Pair(side(prompt, 6), side(prompt, 9), f"a:{index}", ()))
    return PairSet(tuple(made[:count]), tuple(made[count:]))


def job(stored, out, config=CONFIG, adapted=LoraConfig(rank=2, alpha=4.0), **options):  # noqa: B008
    lineage = Lineage((Parent("tiny", "0" * 16),), ())
    subject = Subject(source=stored, lineage=lineage, adapted=adapted, **options)
    return Preference(subject, pairs(), config, out)


def test_the_loss_is_the_papers():
    """Values by hand: sigma(0.1 * 2) = 0.549834, sigma(-0.2) = 0.450166."""
    margins = torch.tensor([2.0, -2.0, 0.0])
    found = preference_loss(margins, 0.1)
    expected = [-math.log(0.549834), -math.log(0.450166), math.log(2)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)
    smoothed = preference_loss(margins, 0.1, 0.25)
    mixed = 0.75 * expected[0] + 0.25 * expected[1]
    np.testing.assert_allclose(smoothed.numpy()[0], mixed, rtol=2e-6)


def test_the_preferred_answer_is_held_up_by_its_own_loss(stored, tmp_path):
    """Without it both answers may become less likely; with it the preferred one becomes more so."""
    found = {}
    for weight in (0.0, 1.0):
        config = dataclasses.replace(CONFIG, sft_weight=weight)
        work = job(stored, tmp_path / str(weight), config)
        reports = []
        work.run(reports.append)
        before = np.load(tmp_path / str(weight) / "run" / REFERENCE)[:7, 0].mean()
        with torch.no_grad():
            now = [
                float(answer_log_probabilities(work.model, side_by_side([p.chosen], "cpu"))[0])
                for p in pairs().train
            ]
        found[weight] = np.mean(now) - before
        answer_s_loss = -before / 6 if weight else 0.0  # an answer has six tokens
        assert reports[0].loss == pytest.approx(math.log(2) + answer_s_loss, rel=0.1)
    assert found[1.0] > max(found[0.0], 0)


def test_log_probabilities_are_those_of_the_logits(stored, tmp_path):
    work = job(stored, tmp_path / "out")
    pair = pairs().train[0]
    found = answer_log_probabilities(work.model, side_by_side([pair.chosen, pair.rejected], "cpu"))
    for row, side in enumerate((pair.chosen, pair.rejected)):
        ids = torch.from_numpy(side.token_ids.astype(np.int64))[None]
        logs = work.model(ids)[0].log_softmax(-1)
        said = logs[4:-1].gather(1, ids[0, 5:, None]).sum()  # the prompt has 5 tokens
        torch.testing.assert_close(found[row], said, rtol=1e-5, atol=1e-5)


def test_preferences_move_the_model_and_the_rest_is_told(stored, tmp_path):
    reports, scored = [], []
    work = job(stored, tmp_path / "out")
    outcome = work.run(reports.append, lambda *at: scored.append(at))
    assert outcome.finished and scored[-1] == (9, 9)
    # Before the first update the model is its own reference: no margin, and a loss of log 2.
    assert reports[0].loss == pytest.approx(math.log(2), abs=1e-5)
    assert abs(reports[0].measures["margin"]) < 1e-4
    assert reports[-1].loss < 0.6 and reports[-1].measures["accuracy"] == 1.0
    assert outcome.measures.keys() == {"eval_loss", "eval_margin", "eval_accuracy"}
    assert {"margin", "accuracy"} == work.folder.log()[0]["measures"].keys()


def test_gradients_are_those_of_finite_differences(stored):
    """In float64, where a central difference of step h errs by h^2 and by eps / h."""
    model = GptOss.from_checkpoint(stored).double()
    lora.attach(model, LoraConfig(rank=2, experts={0: (0, 1, 2, 3)}))
    model.double()
    pair = pairs().train[1]
    batch = side_by_side([pair.chosen, pair.rejected], "cpu")
    before = answer_log_probabilities(model, batch).detach()
    generator = torch.Generator().manual_seed(0)
    trainable = lora.trainable(model)
    with torch.no_grad():
        for name, parameter in trainable.items():
            if name.endswith(".b"):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    def loss():
        now = answer_log_probabilities(model, batch)
        return preference_loss((now - before)[0] - (now - before)[1], 0.5)

    loss().backward()
    rng, step = np.random.default_rng(0), 1e-5
    for name, parameter in trainable.items():
        flat, place = parameter.data.view(-1), int(rng.integers(parameter.numel()))
        kept, sides = float(flat[place]), []
        for sign in (1, -1):
            flat[place] = kept + sign * step
            with torch.no_grad():
                sides.append(float(loss()))
        flat[place] = kept
        difference = (sides[0] - sides[1]) / (2 * step)
        found = float(parameter.grad.view(-1)[place])
        # Log probabilities of about 50 are exact to 1e-14, over the step: 1e-9.
        assert abs(found - difference) < 1e-5 * abs(difference) + 1e-8, name


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_an_interrupted_run_ends_in_the_bits_of_an_undisturbed_one(stored, tmp_path, dropout):
    adapted = LoraConfig(rank=2, alpha=4.0, dropout=dropout)
    whole = job(stored, tmp_path / "whole", adapted=adapted)
    whole.run()

    def stop(report):
        if report.step == 4:
            signal.raise_signal(signal.SIGINT)

    part = job(stored, tmp_path / "part", adapted=adapted)
    assert part.run(stop).step == 4
    assert (tmp_path / "part" / "run" / REFERENCE).exists()
    again = job(stored, tmp_path / "part", adapted=adapted)
    assert again.run().resumed_at == 4
    for name, parameter in whole.trainable.items():
        assert torch.equal(parameter, again.trainable[name]), name


def test_other_pairs_in_the_folder_are_refused(stored, tmp_path):
    job(stored, tmp_path / "out", dataclasses.replace(CONFIG, steps=1)).run()
    with pytest.raises(UsageError, match=r"beta was 0\.2"):
        job(stored, tmp_path / "out", dataclasses.replace(CONFIG, steps=1, beta=0.3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"beta": 0.0}, "beta is 0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
        ({"pairs_per_step": 0}, "pairs_per_step is 0"),
        ({"epochs": 0.0}, "epochs is 0"),
        ({"sft_weight": -1.0}, "sft_weight is -1"),
    ],
)
def test_out_of_range(fields, message):
    with pytest.raises(ConfigError, match=message):
        PreferenceConfig(**fields)
