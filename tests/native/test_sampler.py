"""The sampler against its definition in NumPy, and its generator against published vectors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aperto import _native
from aperto.native import log_sum_exp, sample

U = 2.0**-24
CHUNK = 4096  # exponentials are added up in float32 in chunks of this many, then in double
NEARLY_ALL = 1 - 2.0**-40  # drops no token, but takes the path that sorts
counter_uniform = _native.counter_uniform
seeds = st.integers(0, 2**32)
property_test = settings(max_examples=60, deadline=None)


def no_ids() -> np.ndarray:
    return np.empty(0, np.int32)


@dataclasses.dataclass
class Row:
    """What the sampler reads of a sequence."""

    temperature: float = 1.0
    top_p: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bias_ids: np.ndarray = dataclasses.field(default_factory=no_ids)
    bias_values: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    count_ids: np.ndarray = dataclasses.field(default_factory=no_ids)
    counts: np.ndarray = dataclasses.field(default_factory=no_ids)
    mask: np.ndarray | None = None
    seed: int = 0
    position: int = 0
    num_top_logprobs: int = 0


def draw(logits: np.ndarray, row: Row) -> int:
    return int(sample(logits[None], [row])[0][0])


def bitmask(allowed: np.ndarray) -> np.ndarray:
    """One bit a token, least significant first, padded to whole words."""
    padded = np.zeros(-(-len(allowed) // 32) * 32, bool)
    padded[: len(allowed)] = allowed
    return np.packbits(padded, bitorder="little").view(np.uint32)


def adjusted(logits: np.ndarray, row: Row) -> np.ndarray:
    """Logits after penalties, bias and mask, by definition."""
    result = logits.astype(np.float64)
    for token, count in zip(row.count_ids, row.counts, strict=True):
        value = result[token]
        value = value / row.repetition_penalty if value > 0 else value * row.repetition_penalty
        if count > 0:
            value -= row.presence_penalty + row.frequency_penalty * count
        result[token] = np.float32(value)
    for token, value in zip(row.bias_ids, row.bias_values, strict=True):
        result[token] = np.float32(np.float32(result[token]) + value)
    if row.mask is not None:
        bits = np.unpackbits(row.mask.view(np.uint8), bitorder="little")[: len(result)]
        result[bits == 0] = -np.inf
    return result


def candidates(logits: np.ndarray, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(ids in the order of the draw, their weights): top-k, then top-p of the rest, then min-p."""
    weights = np.exp((logits - logits.max()) / row.temperature)
    if row.top_k == 0 and row.top_p >= 1 and row.min_p == 0:
        return np.arange(len(logits)), weights
    order = np.lexsort((np.arange(len(logits)), -logits))
    order = order[: row.top_k or len(logits)]
    mass_before = np.concatenate([[0.0], np.cumsum(weights[order])[:-1]]) / weights[order].sum()
    kept = (mass_before < row.top_p) & (weights[order] >= row.min_p)
    kept[0] = True
    return order[kept], weights[order[kept]]


def weight_error(logits: np.ndarray, temperature: float) -> float:
    """Relative error of a sum of weights.

    The difference to the maximum, 1 / temperature and their product each round once and move exp by
    their share of an exponent below 90; exp is within 2 u; a chunk adds up in 16 lanes.
    """
    finite = logits[np.isfinite(logits)]
    exponent = min(float(finite.max() - finite.min()) / temperature, 90.0)
    return 1.1 * U * (3 * exponent + 2 + min(len(logits), CHUNK) / 16 + 5)


def assert_draws(logits: np.ndarray, row: Row, num_draws: int = 40) -> None:
    """Each token drawn holds the number behind its draw in its share of the candidates."""
    values = adjusted(logits, row)
    ids, weights = candidates(values, row)
    ends = np.cumsum(weights) / weights.sum()
    error = 2 * weight_error(values, row.temperature) + len(ids) * 2.0**-126
    rows = [dataclasses.replace(row, position=position) for position in range(num_draws)]
    results = sample(np.repeat(logits[None], num_draws, axis=0), rows)
    for position, (token, _, _) in enumerate(results):
        uniform = counter_uniform(row.seed, position)
        rank = np.flatnonzero(ids == token)
        assert len(rank) == 1, f"{token} is none of the candidates {ids}"
        begin = ends[rank[0]] - weights[rank[0]] / weights.sum()
        assert weights[rank[0]] > 0
        assert begin - error <= uniform <= ends[rank[0]] + error


def tied_logits(rng: np.random.Generator, size: int) -> np.ndarray:
    """Many equal values, so that the order of ties matters."""
    return rng.integers(-8, 8, size).astype(np.float32) / 2


# --- greedy and draws ----------------------------------------------------------------------------


@property_test
@given(st.integers(1, 5000), seeds)
def test_temperature_0_takes_the_best_and_of_equals_the_first(size: int, seed: int) -> None:
    logits = tied_logits(np.random.default_rng(seed), size)
    row = Row(temperature=0.0, top_k=3, top_p=0.5, min_p=0.5, seed=seed)
    assert draw(logits, row) == int(np.argmax(logits))


@pytest.mark.parametrize("size", [1, 2, 37, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_draws_from_all(size: int, temperature: float) -> None:
    logits = (3 * np.random.default_rng(size).normal(size=size)).astype(np.float32)
    assert_draws(logits, Row(temperature=temperature, seed=7), 100)


@property_test
@given(seeds, st.integers(1, 700), st.integers(1, 800), st.sampled_from([0.3, 1.0, 2.0]))
def test_top_k(seed: int, size: int, top_k: int, temperature: float) -> None:
    logits = tied_logits(np.random.default_rng(seed), size)
    assert_draws(logits, Row(top_k=top_k, temperature=temperature, seed=seed))


@property_test
@given(seeds, st.integers(2, 700), st.data(), st.integers(0, 800))
def test_top_p(seed: int, size: int, data: st.DataObject, top_k: int) -> None:
    """With top_p between two partial sums, far from both, the set is exactly the definition's."""
    logits = tied_logits(np.random.default_rng(seed), size)
    _, weights = candidates(logits.astype(np.float64), Row(top_k=top_k or size))
    ends = np.cumsum(weights) / weights.sum()
    clear = np.flatnonzero(weights / weights.sum() > 8 * weight_error(logits, 1.0))
    last = data.draw(st.sampled_from(clear.tolist()))
    top_p = float(ends[last] - weights[last] / weights.sum() / 2)
    row = Row(top_p=top_p, top_k=top_k, seed=seed)
    assert len(candidates(logits.astype(np.float64), row)[0]) == last + 1
    assert_draws(logits, row)


@property_test
@given(seeds, st.integers(1, 700), st.integers(0, 31), st.booleans())
def test_min_p(seed: int, size: int, halves: int, with_top_p: bool) -> None:
    """min_p between the weights of two logits: multiples of 1/2, so at quarters below the best."""
    logits = tied_logits(np.random.default_rng(seed), size)
    min_p = float(np.exp(-(halves / 2 + 0.25)))
    assert_draws(logits, Row(min_p=min_p, top_p=NEARLY_ALL if with_top_p else 1.0, seed=seed))


@pytest.mark.parametrize("row", [Row(top_k=1), Row(top_p=1e-9), Row(min_p=1.0)])
def test_the_narrowest_settings_leave_the_best(row: Row) -> None:
    logits = np.random.default_rng(0).normal(size=300).astype(np.float32)
    for position in range(30):
        row.position = position
        assert draw(logits, row) == int(np.argmax(logits))


@property_test
@given(seeds, st.integers(1, 300), st.booleans())
def test_mask(seed: int, size: int, narrowed: bool) -> None:
    rng = np.random.default_rng(seed)
    logits = tied_logits(rng, size)
    allowed = rng.random(size) < 0.2
    allowed[rng.integers(size)] = True
    mask = bitmask(allowed)
    if size % 32:
        mask[-1] |= np.uint32(1 << 31)  # a bit past the vocabulary means nothing
    row = Row(mask=mask, top_p=NEARLY_ALL if narrowed else 1.0, seed=seed)
    assert_draws(logits, row)
    greedy = draw(logits, dataclasses.replace(row, temperature=0.0))
    assert allowed[greedy] and logits[greedy] == logits[allowed].max()


@property_test
@given(
    seeds,
    st.floats(-2, 2, width=16),
    st.floats(-2, 2, width=16),
    st.sampled_from([0.5, 1.0, 1.3]),
)
def test_penalties_and_bias(seed: int, presence: float, frequency: float, repeat: float) -> None:
    rng = np.random.default_rng(seed)
    logits = (2 * rng.normal(size=40)).astype(np.float32)
    count_ids = rng.permutation(40)[:15].astype(np.int32)
    row = Row(
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repeat,
        count_ids=count_ids,
        counts=rng.integers(0, 4, 15).astype(np.int32),
        bias_ids=rng.permutation(40)[:5].astype(np.int32),
        bias_values=rng.normal(size=5).astype(np.float32),
        seed=seed,
    )
    assert_draws(logits, row)
    # One at a time against the best of the others: the value itself, not only its rank.
    expected = adjusted(logits, row)
    greedy = dataclasses.replace(row, temperature=0.0)
    assert draw(logits, greedy) == int(np.argmax(expected))


def test_penalties_by_hand() -> None:
    logits = np.array([2.0, -2.0, 1.5, -3.0], np.float32)
    row = Row(
        temperature=0.0,
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        count_ids=np.array([0, 1], np.int32),
        counts=np.array([3, 0], np.int32),
    )
    assert adjusted(logits, row).tolist() == [2 / 2 - 0.25 - 1.5, -4.0, 1.5, -3.0]
    assert draw(logits, row) == 2


# --- logprobs ------------------------------------------------------------------------------------


@property_test
@given(seeds, st.integers(1, 9000), st.integers(0, 25), st.sampled_from([0.5, 5.0, 50.0]))
def test_logprobs(seed: int, size: int, num_top: int, spread: float) -> None:
    """Of the logits as they are, whatever penalties, temperature and mask say."""
    rng = np.random.default_rng(seed)
    logits = (spread * rng.normal(size=size)).astype(np.float32)
    if spread < 1:
        logits = np.round(logits)
    allowed = np.zeros(size, bool)
    allowed[rng.integers(size)] = True
    row = Row(
        mask=bitmask(allowed),
        temperature=3.0,
        bias_ids=np.zeros(1, np.int32),
        bias_values=np.ones(1, np.float32),
        num_top_logprobs=num_top,
    )
    ((token, logprob, top),) = sample(logits[None], [row])
    exact = logits.astype(np.float64)
    log_sum = np.log(np.exp(exact - exact.max()).sum()) + exact.max()
    truth = exact - log_sum
    # The log of a sum is off by the sum's relative error; the result rounds once.
    bound = weight_error(logits, 1.0) + size * np.exp(-87.0) + U * np.abs(truth)
    assert abs(logprob - truth[token]) <= bound[token]
    assert abs(log_sum_exp(logits) - log_sum) <= bound.min() + U
    order = np.lexsort((np.arange(size), -logits))[:num_top]
    assert [token for token, _ in top] == order.tolist()
    assert all(abs(value - truth[token]) <= bound[token] for token, value in top)


# --- the generator -------------------------------------------------------------------------------

# Known answers of philox4x32-10 as published with Random123: counter, key, result.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
        [0xFFFFFFFF] * 4,
        [0xFFFFFFFF] * 2,
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def philox(counter: list[int], key: list[int]) -> list[int]:
    a, b, c, d = counter
    for step in range(10):
        low, high = (
            (key[0] + step * 0x9E3779B9) % 2**32,
            (key[1] + step * 0xBB67AE85) % 2**32,
        )
        first, second = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (
            second >> 32 ^ b ^ low,
            second % 2**32,
            first >> 32 ^ d ^ high,
            first % 2**32,
        )
    return [a, b, c, d]


def to_uniform(words: list[int]) -> float:
    """The upper 53 bits of the first two words, in [0, 1)."""
    return float(((words[0] << 32 | words[1]) >> 11) * 2.0**-53)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: list[int], key: list[int], answer: list[int]
) -> None:
    assert philox(counter, key) == answer


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_the_core_draws_by_philox(seed: int, position: int) -> None:
    assert counter_uniform(0, 0) == to_uniform(KNOWN_ANSWERS[0][2])
    counter = [position % 2**32, position >> 32, 0, 0]
    expected = to_uniform(philox(counter, [seed % 2**32, seed >> 32]))
    assert counter_uniform(seed, position) == expected


@pytest.mark.parametrize("along", ["position", "seed"])
@pytest.mark.parametrize("row", [Row(), Row(top_p=NEARLY_ALL), Row(temperature=0.7)])
def test_frequencies(along: str, row: Row) -> None:
    """Pearson's statistic of 20,000 draws; the seeds are fixed, so the result is too."""
    num_draws, size = 20000, 50
    logits = np.random.default_rng(5).normal(size=size).astype(np.float32)
    rows = [dataclasses.replace(row, **{along: i}) for i in range(num_draws)]
    tokens = [token for token, _, _ in sample(np.broadcast_to(logits, (num_draws, size)), rows)]
    expected = np.exp(logits / row.temperature, dtype=np.float64)
    expected *= num_draws / expected.sum()
    assert expected.min() > 5
    statistic = ((np.bincount(tokens, minlength=size) - expected) ** 2 / expected).sum()
    # 49 degrees of freedom: mean 49, deviation sqrt(98); a right sampler passes 93 once in 7,000.
    assert statistic < 93


def test_a_draw_depends_on_its_own_row_alone() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(12, 500)).astype(np.float32)
    rows = [
        Row(
            seed=i // 2,
            position=i % 2,
            top_p=0.9 if i % 3 else 1.0,
            mask=bitmask(rng.random(500) < 0.5) if i % 4 == 0 else None,
            bias_ids=np.array([i], np.int32),
            bias_values=np.ones(1, np.float32),
            num_top_logprobs=i % 3,
        )
        for i in range(12)
    ]
    together = sample(logits, rows)
    assert [sample(logits[i : i + 1], [rows[i]])[0] for i in range(12)] == together
    assert sample(np.ascontiguousarray(logits[::-1]), rows[::-1])[::-1] == together
    padded = np.zeros((12, 512), np.float32)
    padded[:, :500] = logits
    assert sample(padded[:, :500], rows) == together


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row(mask=np.zeros(2, np.uint32)), "the mask allows no token"),
        (Row(mask=np.array([0, 1 << 31], np.uint32)), "the mask allows no token"),
        (Row(mask=np.ones(1, np.uint32)), "the mask has 32 bits; expected at least 40"),
        (Row(bias_ids=np.array([40], np.int32)), "differ in length"),
        (
            Row(bias_ids=np.array([40], np.int32), bias_values=np.ones(1, np.float32)),
            "logit bias for token 40 is out of range; the vocabulary has 40",
        ),
        (
            Row(bias_ids=np.array([-1], np.int32), bias_values=np.ones(1, np.float32)),
            "logit bias for token -1",
        ),
        (
            Row(count_ids=np.array([40], np.int32), counts=np.ones(1, np.int32)),
            "counted token 40 is out of range",
        ),
        (Row(count_ids=np.array([1], np.int32)), "differ in length"),
    ],
)
def test_bad_rows_are_refused(row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(np.zeros((1, 40), np.float32), [row])


def test_bad_logits_are_refused() -> None:
    with pytest.raises(ValueError, match="1 sample rows; expected 2"):
        sample(np.zeros((2, 40), np.float32), [Row()])
    with pytest.raises(ValueError, match="logits have 0 columns"):
        sample(np.zeros((1, 0), np.float32), [Row()])
    with pytest.raises(ValueError, match="contiguous"):
        sample(np.zeros((1, 40), np.float32)[:, ::2], [Row()])
    with pytest.raises(ValueError, match="no logits"):
        log_sum_exp(np.zeros(0, np.float32))


def test_logits_of_nan_are_survived() -> None:
    """Weights are checked, but a damaged model may still overflow: any token will do, no crash."""
    logits = np.full((3, 300), np.nan, np.float32)
    logits[1, ::2] = 1.0
    logits[2] = -np.inf
    for row in (Row(), Row(top_k=5), Row(top_p=0.5), Row(temperature=0.0, num_top_logprobs=5)):
        assert all(0 <= token < 300 for token, _, _ in sample(logits, [row] * 3))
