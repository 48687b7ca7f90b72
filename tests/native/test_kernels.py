"""Every kernel of every instruction set equals the plain one bit for bit, which is near the truth.

Bounds against float64 use u = 2^-24, the relative error of one float32 operation, and
gamma(n) = n u / (1 - n u), that of n of them in a row; a result below 2^-126 may also be off by
half a denormal, 2^-150, for each operation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.native.matrices import KINDS, Product, activations, floats, value_kinds

from aperto import _native
from aperto.native import PAGE_TOKENS, isa_names

kernels = _native.kernels
U = 2.0**-24
TINY = 2.0**-150
E87 = float(np.exp(-87.0))  # the kernels' exp is exactly 0 below exp(-87)
REFERENCE = "reference"
OTHERS = [name for name in isa_names() if name != REFERENCE]

property_test = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32)


def gamma(n: int | np.ndarray) -> Any:
    return n * U / (1 - n * U)


def assert_same_bits(found: Any, expected: Any, what: str) -> None:
    """Equal bits; any NaN equals any NaN."""
    parts = expected if isinstance(expected, tuple) else (expected,)
    for a, b in zip(found if isinstance(found, tuple) else (found,), parts, strict=True):
        a, b = np.atleast_1d(a), np.atleast_1d(b)
        if b.dtype != np.float32:
            np.testing.assert_array_equal(a, b, err_msg=what)
            continue
        a, b = a.astype(np.float32), b.astype(np.float32)
        different = (a.view(np.uint32) != b.view(np.uint32)) & ~(np.isnan(a) & np.isnan(b))
        assert not different.any(), f"{what}: {a[different][:4]} != {b[different][:4]}"


def on_all(name: str, *args: Any) -> Any:
    """Result of the reference kernel, after every other set gave the same bits."""
    kernel = getattr(kernels, name)
    expected = kernel(REFERENCE, *args)
    for isa in OTHERS:
        assert_same_bits(kernel(isa, *args), expected, f"{name} of {isa}")
    return expected


def assert_near(found: np.ndarray, truth: np.ndarray, bound: Any, magnitude: Any = 0.0) -> None:
    """|found - truth| <= bound, unless the sizes summed come near float32's largest number."""
    bound = np.broadcast_to(bound, truth.shape)
    finite = np.maximum(np.abs(truth), magnitude) < 1e37
    error = np.abs(found.astype(np.float64) - truth)
    bad = finite & ~(error <= bound)
    assert not bad.any(), (found[bad][:4], truth[bad][:4], error[bad][:4], bound[bad][:4])


def wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)


@property_test
@given(st.integers(1, 40), value_kinds, seeds, st.sampled_from([1e-5, 1e-6, 0.5]))
def test_rmsnorm(lanes: int, kind: str, seed: int, eps: float) -> None:
    n = 16 * lanes
    rng = np.random.default_rng(seed)
    x, weight = floats(rng, kind, n), floats(rng, "normal", n)
    found = on_all("rmsnorm", x, weight, eps)
    exact_eps = float(np.float32(eps))
    truth = wide(x) / np.sqrt(np.mean(wide(x) ** 2) + exact_eps) * wide(weight)
    # The mean: n / 16 fused steps, 4 folds, a division and an addition, halved by the root; then
    # root, inverse and two products.
    steps = (lanes + 6) / 2 + 4
    assert_near(
        found, truth, 1.01 * gamma(steps) * np.abs(truth) + 2 * TINY + np.abs(wide(weight)) * TINY
    )


@property_test
@given(st.integers(1, 4), st.integers(1, 6), value_kinds, seeds, st.sampled_from([12, 128]))
def test_quantize_q8(rows: int, blocks: int, kind: str, seed: int, offset: int) -> None:
    x = floats(np.random.default_rng(seed), kind, rows, 32 * blocks)
    values, scales, starts = on_all("quantize_q8", x, offset)
    blocked = x.reshape(rows, blocks, 32)
    amax = np.abs(blocked).max(axis=-1)
    used = amax > np.float32(1e-30)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(used, np.float32(127) / amax, np.float32(0))
    with np.errstate(under="ignore"):
        expected = np.rint(blocked * inverse[..., None]).astype(np.int8)
    np.testing.assert_array_equal(values.reshape(blocked.shape), expected)
    np.testing.assert_array_equal(scales, np.where(used, amax / np.float32(127), np.float32(0)))
    np.testing.assert_array_equal(starts, -offset * expected.sum(axis=-1, dtype=np.int32))


def test_quantize_q8_rounds_halves_to_even() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = [127, 0.5, 1.5, -0.5, -1.5, -2.5]  # the scale is exactly 1
    values, scales, _ = on_all("quantize_q8", x, 12)
    assert values[0, :6].tolist() == [127, 0, 2, 0, -2, -2] and scales[0, 0] == 1


@pytest.mark.parametrize("kind", KINDS)
@property_test
@given(
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 3),
    value_kinds,
    value_kinds,
    seeds,
)
def test_matmul(
    kind: str,
    num_rows: int,
    blocks: int,
    tiles: int,
    weight_values: str,
    values: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    product = Product.random(rng, kind, 16 * tiles, 32 * blocks, weight_values)
    a = activations(rng, values, rng.integers(1, 50), 32 * blocks)
    rows = rng.integers(0, len(a), num_rows).astype(np.int32)
    found = on_all("matmul", *product.arguments(a, rows))
    _assert_product(product, found, a[rows])


def _assert_product(product: Product, found: np.ndarray, a: np.ndarray) -> None:
    """Against float64, with the kernels' own quantised activations where they have them."""
    blocks = product.k // 32
    weight = product.dequantized()
    if product.quantized:
        values, scales, _ = kernels.quantize_q8(REFERENCE, a, 12)
        a = wide(values) * np.repeat(wide(scales), 32, axis=-1)
    magnitude = np.abs(wide(a)) @ np.abs(weight).T
    if product.quantized:
        # Dot products of integers below 2^24 are exact; each block has a rounded product of scales
        # (whose denormal error meets a dot of at most 2^19) and one fused step.
        bound = gamma(blocks + 1) * magnitude + blocks * 2.0**20 * TINY
    else:
        # 32 fused steps in a block and one for each block; MXFP4 scales a block's denormal errors.
        bound = gamma(32 + blocks) * magnitude + blocks * (33 * product.largest_scale() + 1) * TINY
    # A product of scales may overflow where the block's values are zeros.
    magnitude = np.maximum(magnitude, np.abs(a).max() * product.largest_scale())
    assert_near(found, wide(a) @ weight.T, 1.000001 * bound, magnitude)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [-1, 1])
def test_matmul_of_the_largest_integers(kind: str, sign: int) -> None:
    """All activations at +-127 and all weights at their ends: no sum may saturate."""
    k = 256
    product = Product.extreme(kind, 32, k, sign)
    a = np.ones((9, k), np.float32)
    a[1::2] = -1
    a[4, ::2] = -1
    found = on_all("matmul", *product.arguments(a, np.arange(9, dtype=np.int32)))
    _assert_product(product, found, a)
    assert np.abs(found[0]).min() == np.abs(found).max() > 0


@property_test
@given(st.integers(1, 20), value_kinds, seeds, st.sampled_from([7.0, 0.5, 30.0]))
def test_swiglu(lanes: int, kind: str, seed: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    gate, up = floats(rng, kind, 16 * lanes), floats(rng, kind, 16 * lanes)
    gate[:6] = [0.0, -0.0, -1e4, 1e4, -51.2, -51.8]  # both ends of exp's range are near 51
    found = on_all("swiglu", gate, up, limit)
    g = np.minimum(wide(gate), limit)
    u = np.clip(wide(up), -limit, limit)
    argument = -g * float(np.float32(1.702))
    with np.errstate(over="ignore"):
        truth = g / (1 + np.exp(argument)) * (u + 1)
    # The rounded argument moves exp by |argument| u, its polynomial by 1 ulp = 2 u; sum, quotient,
    # u + 1 and product round once each. Beyond argument 88 exp is held at exp(88).
    relative = 1.01 * gamma(np.minimum(np.abs(argument), 90) + 6)
    held = np.abs(g) * E87 * np.abs(u + 1)
    assert_near(found, truth, relative * np.abs(truth) + held + (np.abs(u) + 2) * TINY)


@property_test
@given(st.integers(1, 20), value_kinds, value_kinds, seeds)
def test_axpy(lanes: int, x_kind: str, y_kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = floats(rng, x_kind, 16 * lanes), floats(rng, y_kind, 16 * lanes)
    scale = float(rng.normal())
    found = on_all("axpy", scale, x, y)
    truth = float(np.float32(scale)) * wide(x) + wide(y)
    # One rounding, and that of float64 itself.
    bound = U * np.abs(truth) + 2.0**-52 * (np.abs(wide(y)) + np.abs(wide(x) * scale)) + TINY
    assert_near(found, truth, bound)


@property_test
@given(st.sampled_from([8, 16, 24, 32, 64]), value_kinds, seeds, st.booleans())
def test_rope(half: int, kind: str, seed: int, scaled: bool) -> None:
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 1000, half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    scale = float(np.float32((2 * half) ** -0.5)) if scaled else 1.0
    x = floats(rng, kind, 2 * half)
    found = on_all("rope", cos, sin, scale, x)
    a, b, c, s = wide(x[:half]), wide(x[half:]), wide(cos), wide(sin)
    truth = np.concatenate([a * c - b * s, b * c + a * s]) * scale
    size = np.concatenate([np.abs(a * c) + np.abs(b * s), np.abs(b * c) + np.abs(a * s)])
    # A product, a fused step and the scaling.
    assert_near(found, truth, gamma(3) * size * scale + 3 * TINY)


@property_test
@given(
    st.sampled_from([1, 2, 3, 4, 5, 8, 16]),
    st.integers(1, 8),
    st.integers(0, PAGE_TOKENS - 1),
    st.integers(1, PAGE_TOKENS),
    st.booleans(),
    st.sampled_from([0.01, 0.3, 3.0]),
    seeds,
)
def test_attend(
    queries: int, sixteens: int, begin: int, count: int, half: bool, spread: float, seed: int
) -> None:
    """One page from any first to any last slot; what lies in the other slots must not be read."""
    head_dim, end = 16 * sixteens, min(begin + count, PAGE_TOKENS)
    rng = np.random.default_rng(seed)
    q = (spread * rng.normal(size=(queries, head_dim))).astype(np.float32)
    sinks = rng.normal(0, 3, queries).astype(np.float32)
    element = np.float16 if half else np.float32
    keys = rng.normal(size=(head_dim, PAGE_TOKENS)).astype(element)
    values = rng.normal(size=(PAGE_TOKENS, head_dim)).astype(element)
    hidden = np.ones(PAGE_TOKENS, bool)
    hidden[begin:end] = False
    keys[:, hidden] = np.nan
    values[hidden] = np.nan
    view = np.uint16 if half else np.float32
    name = "attend_f16" if half else "attend_f32"
    largest, total, out = on_all(name, q, sinks, keys.view(view), values.view(view), begin, end)
    assert np.isfinite(out).all()

    visible_keys, visible_values = wide(keys[:, begin:end]), wide(values[begin:end])
    scores = wide(q) @ visible_keys
    with_sink = np.concatenate([scores, wide(sinks)[:, None]], axis=1)
    top = with_sink.max(axis=1, keepdims=True)
    weights = np.exp(with_sink - top)
    weights, denominator = weights[:, :-1], weights.sum(axis=1, keepdims=True)
    truth = weights @ visible_values / denominator
    # A score has head_dim fused steps; score and maximum are each off by that, their difference
    # rounds once, exp is within 1 ulp. Every weight, above and below the fraction, is off by
    # `relative`; then at most 33 fused steps above, 8 additions below, and this test's division.
    score_error = gamma(head_dim) * (np.abs(wide(q)) @ np.abs(visible_keys)).max(axis=1)
    reach = (top[:, 0] - with_sink.min(axis=1)).clip(max=90)
    relative = (np.expm1(2 * score_error + U * reach) + 2 * U)[:, None]
    size = weights @ np.abs(visible_values) / denominator
    bound = 1.01 * (2 * relative + gamma(33 + 8 + 1)) * size + 40 * E87
    assert_near(out / total[:, None], truth, bound)
    # log(sum) + max is the log of the sum of exponentials, with the same errors.
    log_sum = np.log(denominator[:, 0]) + top[:, 0]
    error = 2 * score_error + 1.01 * (relative[:, 0] + gamma(8)) + 40 * E87
    assert_near(np.log(wide(total)) + wide(largest), log_sum, error)


def test_attend_keeps_a_sink_that_outweighs_the_page() -> None:
    q = np.ones((1, 16), np.float32)
    keys = np.full((16, PAGE_TOKENS), -10, np.float32)
    values = np.ones((PAGE_TOKENS, 16), np.float32)
    sinks = np.array([5], np.float32)
    largest, total, out = on_all("attend_f32", q, sinks, keys, values, 0, PAGE_TOKENS)
    assert largest[0] == 5 and total[0] == 1 and not out.any()


@property_test
@given(
    st.integers(1, 70) | st.sampled_from([1000, 4095, 4096, 5001]),
    st.sampled_from([0.1, 3.0, 60.0]),
    st.sampled_from([1.0, 0.7, 4.0]),
    seeds,
)
def test_exp_sum(count: int, spread: float, scale: float, seed: int) -> None:
    """The sampler uses nothing else of the kernels: equal sums here are equal draws there."""
    x = (spread * np.random.default_rng(seed).normal(size=count)).astype(np.float32)
    found = on_all("exp_sum", x, float(x.max()), scale)
    argument = (wide(x) - wide(x.max())) * float(np.float32(scale))
    truth = np.exp(argument).sum()
    # Difference and product move an exponent by 2 u of itself, exp is within 1 ulp; then
    # count / 16 additions a lane and 4 folds. Terms below exp(-87) count as 0.
    largest = min(float(np.abs(argument).max()), 90.0)
    bound = 1.01 * (gamma(2 * largest + 2) + gamma(count // 16 + 5)) * truth + count * E87
    assert_near(np.array([found]), np.array([truth]), bound)


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'sse9' is unknown .* expected one of:.* reference"):
        kernels.exp_sum("sse9", np.zeros(1, np.float32), 0.0, 1.0)
