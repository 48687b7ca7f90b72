"""Reward-driven tuning: its formulas, what it moves, its errors, and runs that were stopped."""

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
from aperto.adapt.reward import (
    Attempt,
    RewardConfig,
    RewardJob,
    Rollout,
    advantages,
    attempt_of,
    distance,
    surrogate,
)
from aperto.adapt.reward_rows import RewardTask, read_tasks
from aperto.errors import ConfigError, DataError, TrainingError
from aperto.formats import open_checkpoint
from aperto.formats.lineage import Lineage, Parent
from aperto.harmony import Conversation
from aperto.harmony.messages import user
from aperto.tokenizer import Tokenizer

CONFIG = RewardConfig(
    steps=10, tasks_per_step=1, attempts=16, max_tokens=6, learning_rate=0.08,
    dtype="float32", warmup=0.0, schedule="constant",
)  # fmt: skip


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "tiny"
    return open_checkpoint(write_tiny(path, windows=(8, 0), tokenizer=True))


class TwinPolicy:
    """Draws from a twin of its own, a token at a time, by seed alone."""

    def __init__(self, stored, together):
        self._stored, self._together = stored, together

    def update(self, adapter):
        self._model = GptOss.from_checkpoint(self._stored, packed=True).eval()
        lora.load(self._model, adapter)

    def draw(self, prompts, seeds, max_tokens):
        """Answers to one prompt go through the model together."""
        found = []
        for begin in range(0, len(prompts), self._together):
            rows = slice(begin, begin + self._together)
            found += self._draw_rows(prompts[rows], seeds[rows], max_tokens)
        return found

    def _draw_rows(self, prompts, seeds, max_tokens):
        drawn = [np.random.default_rng(seed) for seed in seeds]
        ids, logs = torch.tensor(prompts), []
        for _ in range(max_tokens):
            with torch.inference_mode():
                shares = self._model(ids)[:, -1].double().log_softmax(-1).numpy()
            rows = enumerate(drawn)
            chosen = [int(d.choice(len(shares[i]), p=np.exp(shares[i]))) for i, d in rows]
            logs.append([shares[i, token] for i, token in enumerate(chosen)])
            ids = torch.cat((ids, torch.tensor(chosen)[:, None]), dim=1)
        answers = ids[:, len(prompts[0]) :].tolist()
        return [
            Rollout(tuple(answer), tuple(float(log[row]) for log in logs))
            for row, answer in enumerate(answers)
        ]


def job(stored, out, reward, config=CONFIG, **lora_options):
    tokenizer = Tokenizer.from_checkpoint(stored.tokenizer_source())
    tasks = [RewardTask(Conversation((user(t),)), {"text": t}, f"t:{t}", ()) for t in ("a", "b")]
    subject = Subject(
        source=stored,
        lineage=Lineage((Parent("tiny", "0" * 16),), ()),
        adapted=LoraConfig(rank=4, alpha=16.0, **lora_options),
    )
    return RewardJob(
        subject, tasks, reward, TwinPolicy(stored, config.attempts), tokenizer, config, out
    )


def test_advantages_are_deviations_from_a_groups_mean():
    found = advantages(np.array([[1.0, 3.0], [5.0, 5.0]]))
    np.testing.assert_allclose(found, [[-1, 1], [0, 0]])


def test_the_surrogate_is_ppos_and_stops_counting_beyond_the_clip():
    then = torch.zeros(4)
    now = torch.tensor([0.0, math.log(1.5), math.log(1.5), math.log(0.5)]).requires_grad_()
    advantage = torch.tensor([2.0, 1.0, -1.0, 1.0])
    found = surrogate(now, then, advantage, 0.2)
    torch.testing.assert_close(found, torch.tensor([-2.0, -1.2, 1.5, -0.5]))
    (gradient,) = torch.autograd.grad(found.sum(), now)
    torch.testing.assert_close(gradient, torch.tensor([-2.0, 0.0, 1.5, -0.5]))


def test_the_distance_is_nought_at_the_base_and_positive_elsewhere():
    now = torch.linspace(-3, 0, 7)
    assert torch.equal(distance(now, now), torch.zeros(7))
    assert (distance(now, now - 0.5) > 0).all() and (distance(now, now + 0.5) > 0).all()


def test_the_rewarded_becomes_likelier_and_the_gap_is_told(stored, tmp_path):
    """Answers with many even tokens are rewarded; half of the tokens are even to begin with."""
    reports = []
    wanted = set(range(0, 400, 2))

    class Policy(TwinPolicy):
        def draw(self, *asked):
            self.last = super().draw(*asked)
            return self.last

    work = job(stored, tmp_path / "out", None)
    policy = work._policy = Policy(stored, CONFIG.attempts)
    places = iter(range(10**6))

    def reward(task, attempt):
        rollout = policy.last[next(places) % len(policy.last)]
        return float(np.mean([token in wanted for token in rollout.token_ids]))

    work._reward = reward
    assert work.run(reports.append).finished
    first, last = (np.mean([r.measures["reward"] for r in reports[s]]) for s in
                   (slice(0, 3), slice(-3, None)))  # fmt: skip
    # Means of 288 tokens that are even or not: each within 0.03, one standard deviation.
    assert last > first + 0.15
    # The policy is the twin itself: what it drew with is what the twin says, but for the shapes of
    # its products: some ulps of logits of about 10.
    assert max(r.measures["largest gap"] for r in reports) < 1e-4
    assert {"reward", "gap", "decided", "answer tokens"} <= reports[0].measures.keys()


@pytest.mark.parametrize("base_weight", [0.0, 0.1])
def test_a_stopped_run_ends_in_the_bits_of_an_undisturbed_one(stored, tmp_path, base_weight):
    config = RewardConfig(
        steps=4, tasks_per_step=1, attempts=3, max_tokens=4, dtype="float32",
        base_weight=base_weight, learning_rate=0.01,
    )  # fmt: skip

    def reward(task, attempt):
        return float(len(attempt.final) + len(attempt.analysis)) + attempt.num_tokens % 3

    def by_length(task, attempt):
        return reward(task, attempt) + hash_of(attempt)

    def hash_of(attempt):
        return len(attempt.final.encode()) % 5

    whole = job(stored, tmp_path / "whole", by_length, config)
    whole.run()
    stop = lambda r: signal.raise_signal(signal.SIGINT) if r.step == 2 else None  # noqa: E731
    assert job(stored, tmp_path / "part", by_length, config).run(stop).step == 2
    again = job(stored, tmp_path / "part", by_length, config)
    assert again.run().resumed_at == 2
    for name, parameter in whole.trainable.items():
        assert torch.equal(parameter, again.trainable[name]), name


def test_a_reward_that_fails_names_the_row_and_keeps_the_state(stored, tmp_path):
    calls = []

    def reward(task, attempt):
        calls.append(task["text"])
        if len(calls) > 25:
            raise KeyError("wanted")
        return float(len(calls) % 2)

    work = job(stored, tmp_path / "out", reward)
    with pytest.raises(TrainingError, match=r"t:[ab]: the reward function raised KeyError"):
        work.run()
    assert work.folder.load()["step"] == 1
    nan = job(stored, tmp_path / "nan", lambda task, attempt: math.nan)
    with pytest.raises(TrainingError, match="the reward is nan"):
        nan.run()


def test_what_an_answer_is_to_a_reward_function():
    tokenizer = Tokenizer.bundled()
    ids = [tokenizer.special_id("<|channel|>"), *tokenizer.encode("analysis"),
           tokenizer.special_id("<|message|>"), *tokenizer.encode("Hm."),
           tokenizer.special_id("<|end|>"), tokenizer.special_id("<|start|>"),
           *tokenizer.encode("assistant"), tokenizer.special_id("<|channel|>"),
           *tokenizer.encode("final"), tokenizer.special_id("<|message|>"),
           *tokenizer.encode("Rye."), tokenizer.special_id("<|return|>")]  # fmt: skip
    assert attempt_of(ids, tokenizer) == Attempt("Rye.", "Hm.", (), len(ids), True)
    cut = attempt_of(ids[:5], tokenizer)
    assert cut.final == "" and not cut.is_complete


def test_tasks_and_their_problems(tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "Bread?"}], "wanted": "rye"}\n')
    (task,) = read_tasks(path)
    assert task.fields["wanted"] == "rye" and task.digests and task.source.endswith(":1")
    path.write_text(
        '{"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}\n'
        '{"prompt": "Bread?"}\n'
    )
    with pytest.raises(DataError) as caught:
        read_tasks(path)
    assert {line.split(": ")[0].rsplit(":", 1)[1] for line in caught.value.problems} == {"1", "2"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attempts": 1}, "attempts is 1; expected 2"),
        ({"clip": 1.0}, "clip is 1"),
        ({"base_weight": -1.0}, "base_weight is -1"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_out_of_range(fields, message):
    with pytest.raises(ConfigError, match=message):
        RewardConfig(**fields)


def test_what_cannot_be_left_out_is_refused(stored, tmp_path):
    config = RewardConfig(base_weight=0.1, dtype="float32")
    with pytest.raises(ConfigError, match="no sinks with base_weight"):
        job(stored, tmp_path / "out", None, config, in_full=("sinks",))
