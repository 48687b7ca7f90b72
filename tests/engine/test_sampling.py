import dataclasses

import numpy as np
import pytest
from tests.fakes import sample

from aperto.engine import Request, SamplingParams
from aperto.engine.sampling import SampleRow
from aperto.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1; expected a number in \[0, inf\)"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, r"top_p is 0\.0; expected a number in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": "1"}, "top_p is '1'"),
        ({"min_p": 2.0}, r"min_p is 2\.0; expected a number in \[0, 1\]"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": True}, "top_k is True"),
        ({"seed": 1.5}, r"seed is 1\.5"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias has '5'"),
        ({"logit_bias": {5: float("inf")}}, "logit_bias has 5: inf"),
    ],
)
def test_sampling_params_refuse(options, message):
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**options)


def test_unknown_settings_are_refused():
    with pytest.raises(TypeError, match="temprature"):
        SamplingParams(temprature=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": []}, "prompt is empty"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"num_top_logprobs": 21}, r"num_top_logprobs is 21; expected 0\.\.20"),
    ],
)
def test_request_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        Request(**{"prompt": [1], "max_tokens": 1, **options})


def test_params_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().seed = 3


def test_a_missing_seed_is_drawn_anew():
    prompt = np.array([1], np.int32)
    seeds = {SampleRow(SamplingParams(), prompt, 0).seed for _ in range(10)}
    assert len(seeds) == 10
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_counts_hold_the_prompt_for_repetition_and_drawn_tokens_for_all():
    row = SampleRow(SamplingParams(repetition_penalty=1.2), np.array([5, 3, 5], np.int32), 0)
    for token in (9, 3, 9):
        row.count(token)
    assert dict(zip(row.count_ids.tolist(), row.counts.tolist(), strict=True)) == {3: 1, 5: 0, 9: 2}
    row = SampleRow(SamplingParams(presence_penalty=1.0), np.array([5, 3, 5], np.int32), 0)
    row.count(9)
    assert row.count_ids.tolist() == [9]
    row = SampleRow(SamplingParams(), np.array([5], np.int32), 0)
    row.count(9)
    assert not row.count_ids.size


def test_the_plain_sampler_keeps_its_rules():
    """The fake's sampler is a twin of the native one; its own rules, by hand."""
    logits = np.log(np.array([[0.5, 0.25, 0.15, 0.1]], dtype=np.float32))

    def draws(**options):
        row = SampleRow(SamplingParams(seed=7, **options), np.array([0], np.int32), 2)
        found = set()
        for position in range(200):
            row.position = position
            (result,) = sample(logits, [row])
            found.add(result[0])
            assert result[1] == pytest.approx(float(logits[0, result[0]]), abs=1e-6)
            assert [i for i, _ in result[2]] == [0, 1]
        return found

    assert draws() == {0, 1, 2, 3}
    assert draws(temperature=0.0) == {0}
    assert draws(top_k=2) == {0, 1}
    assert draws(top_p=0.7) == {0, 1}
    assert draws(min_p=0.25) == {0, 1, 2}
    assert draws(temperature=0.0, logit_bias={3: 5.0}) == {3}
