"""The reference's binary32 arithmetic against exact rational numbers."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from ulam_kernels.reference.arithmetic import Float32Array, exp, fma, mul, sqrt, sub

MIN_DENORMAL, MIN_NORMAL = 2.0**-149, 2.0**-126
MAX = float.fromhex("0x1.fffffep+127")


def round_to_float32(exact: Fraction) -> np.float32:
    """The binary32 number nearest to a rational one, ties to even, from the definition. Zero is +0."""
    magnitude = abs(exact)
    if magnitude == 0:
        return np.float32(0)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude >= Fraction(2) ** exponent:
        exponent += 1  # now 2^(exponent - 1) <= magnitude < 2^exponent
    unit = Fraction(2) ** max(exponent - 24, -149)  # 24 bits, fewer for denormals
    rounded = round(magnitude / unit) * unit  # Python rounds a Fraction half to even
    value = math.inf if rounded >= Fraction(2) ** 128 else float(rounded)
    return np.float32(math.copysign(value, exact))


def expected_fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact != 0:
        return round_to_float32(exact)
    # An exact zero: the sign is that of IEEE addition, which the (here harmless) float64 sum has.
    return np.float32(float(a) * float(b) + float(c))


def assert_fma_exact(a: Float32Array, b: Float32Array, c: Float32Array) -> None:
    got = fma(a, b, c)
    assert got.dtype == np.float32
    expected = np.array([expected_fma(*abc) for abc in zip(a, b, c, strict=True)], dtype=np.float32)
    wrong = np.flatnonzero(got.view(np.uint32) != expected.view(np.uint32))
    detail = [[float(array[i]).hex() for array in (a, b, c, got, expected)] for i in wrong[:5]]
    assert len(wrong) == 0, f"{len(wrong)} of {len(a)} wrong (a, b, c, got, expected): {detail}"


def random_floats(generator: np.random.Generator, count: int, low: int, high: int) -> Float32Array:
    """Random signs and mantissas, exponents uniform in [low, high]."""
    mantissa = generator.integers(1 << 23, 1 << 24, count) * generator.choice([-1, 1], count)
    exponent = generator.integers(low, high + 1, count)
    return np.ldexp(mantissa.astype(np.float64), exponent - 23).astype(np.float32)


@pytest.mark.parametrize(
    ("low", "high"), [(-2, 2), (-60, 60), (-80, -55), (60, 64), (-149, 127)], ids=lambda value: str(value)
)
def test_fma_on_random_numbers(low: int, high: int) -> None:
    generator = np.random.default_rng([abs(low), abs(high)])
    a, b = (random_floats(generator, 1000, low, high) for _ in range(2))
    near = np.ldexp(generator.choice([-1.0, 1.0], 1000) * np.abs(a.astype(np.float64) * b), 0)
    with np.errstate(over="ignore"):
        near = near * np.ldexp(1.0, generator.integers(-50, 51, 1000))  # so that the addend often matters
        c = np.where(np.isfinite(near.astype(np.float32)), near.astype(np.float32), a)
    assert_fma_exact(a, b, c)


def test_fma_just_beside_a_tie() -> None:
    """Sums on a tie of the result, and a hair to either side of it."""
    generator = np.random.default_rng(1)
    count = 2000
    big = random_floats(generator, count, 0, 0)
    # c + half an ulp is the tie; the product is half an ulp, times 1 or 1 +- 2^-23.
    half_ulp = np.float32(2.0**-24)
    push = (1 + generator.choice([-1, 0, 1], count) * 2.0**-23).astype(np.float32)
    sign = generator.choice([-1.0, 1.0], count).astype(np.float32)
    assert_fma_exact(push * sign, np.full(count, half_ulp), big)
    # The product on or near the tie (25 bits), the addend the push, down to the smallest denormal.
    odd = (2.0 + (2 * generator.integers(0, 1 << 22, count) + 1) * 2.0**-22).astype(np.float32)
    pushes = np.ldexp(sign, -generator.integers(20, 150, count)).astype(np.float32)
    assert_fma_exact(odd, np.full(count, 1.5, dtype=np.float32), pushes)


def test_fma_where_rounding_twice_goes_wrong() -> None:
    """(1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 lies on a tie; float64 has no room for an addend that breaks it."""
    a = np.full(4, 1 + 2.0**-12, dtype=np.float32)
    c = np.array([2.0**-100, -(2.0**-100), MIN_DENORMAL, 0], dtype=np.float32)
    assert_fma_exact(a, a, c)
    up, down = np.float32(1 + 2.0**-11 + 2.0**-23), np.float32(1 + 2.0**-11)
    np.testing.assert_array_equal(fma(a, a, c), [up, down, up, down])


def test_fma_in_the_denormal_range() -> None:
    generator = np.random.default_rng(2)
    count = 2000
    a = random_floats(generator, count, -75, -60)
    b = random_floats(generator, count, -90, -70)
    c = (generator.integers(-64, 65, count) * MIN_DENORMAL).astype(np.float32)
    assert_fma_exact(a, b, c)
    # Ties of the denormal grid: an odd number of half units, and the same pushed by nothing at all.
    half_units = np.ldexp(2.0 * generator.integers(0, 1 << 20, count) + 1, -75).astype(np.float32)
    assert_fma_exact(half_units, np.full(count, 2.0**-75, dtype=np.float32), c)
    edge = np.full(count, MIN_NORMAL, dtype=np.float32)
    assert_fma_exact(half_units, np.full(count, -(2.0**-75), dtype=np.float32), edge)


def test_fma_at_overflow() -> None:
    half_ulp = np.float32(2.0**103)  # half the last place of the largest number: from there on, infinity
    a = np.array([1, 1, 1, 1, 2, -1, 1.5], dtype=np.float32)
    b = np.array([MAX, MAX, MAX, MAX, MAX, MAX, MAX], dtype=np.float32)
    c = np.array([half_ulp, np.nextafter(half_ulp, np.float32(0)), -half_ulp, 1, -MAX, -half_ulp, -MAX])
    assert_fma_exact(a, b, c.astype(np.float32))
    assert fma(a, b, c.astype(np.float32))[0] == np.inf
    assert fma(a, b, c.astype(np.float32))[1] == np.float32(MAX)


def test_fma_on_infinities_nan_and_signed_zeros() -> None:
    inf, nan = np.inf, np.nan
    rows = [
        (inf, 1, 1, inf), (-inf, 2, 1, -inf), (1, 1, -inf, -inf), (inf, 1, -inf, nan), (inf, 0, 1, nan),
        (nan, 1, 1, nan), (1, nan, 1, nan), (1, 1, nan, nan), (MAX, MAX, -inf, -inf), (MAX, MAX, 0, inf),
        (0, 1, 0, 0.0), (-0.0, 1, -0.0, -0.0), (-0.0, 1, 0.0, 0.0), (1, 1, -1, 0.0), (0, -1, -0.0, -0.0),
    ]  # fmt: skip
    a, b, c, expected = np.array(rows, dtype=np.float32).T.copy()
    got = fma(a, b, c)
    np.testing.assert_array_equal(got, expected)
    zeros = expected == 0
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))


def test_mul_sub_and_sqrt_round_once() -> None:
    generator = np.random.default_rng(3)
    a, b = (random_floats(generator, 1000, -70, 60) for _ in range(2))
    for x, y, product, difference in zip(a, b, mul(a, b), sub(a, b), strict=True):
        exact_x, exact_y = Fraction(float(x)), Fraction(float(y))
        assert product == round_to_float32(exact_x * exact_y)
        assert difference == round_to_float32(exact_x - exact_y)
    for x, root in zip(np.abs(a), sqrt(np.abs(a)), strict=True):
        up, down = (np.nextafter(root, np.float32(side)) for side in (np.inf, 0))
        upper, lower = ((Fraction(float(root)) + Fraction(float(other))) / 2 for other in (up, down))
        assert lower**2 < Fraction(float(x)) < upper**2


def test_exp_is_within_one_ulp() -> None:
    """Measured on every binary32 number: 0.892 ulp at most, at -0x1.765026p+2."""
    generator = np.random.default_rng(4)
    parts = [
        generator.uniform(-86, 88, 200_000),
        generator.uniform(-1, 1, 200_000),
        np.arange(-124, 127) * math.log(2) / 2,  # the seams of the argument reduction
        np.ldexp(generator.choice([-1.0, 1.0], 300), -generator.integers(1, 150, 300)),
        [-86.0, 88.0, 0.0, -0.0, float.fromhex("-0x1.765026p+2")],
    ]
    x = np.concatenate(parts).astype(np.float32)
    got = exp(x)
    assert got.dtype == np.float32
    true = np.array([math.exp(value) for value in x.tolist()])
    ulp = np.ldexp(1.0, np.frexp(true)[1] - 24)
    error = np.abs(got.astype(np.float64) - true) / ulp
    assert error.max() <= 0.892, f"{error.max()} ulp at {float(x[error.argmax()]).hex()}"


def test_exp_at_its_edges() -> None:
    x = np.array([0.0, -0.0, MIN_DENORMAL, 1.0, -86.0, -87.0, -np.inf, 88.0, 89.0, np.inf], dtype=np.float32)
    low, high = math.exp(-86), math.exp(88)
    expected = np.array([1, 1, 1, 2.7182817, low, low, low, high, high, high], dtype=np.float32)
    got = exp(x)
    assert np.all(got >= MIN_NORMAL)
    np.testing.assert_allclose(got, expected, rtol=2e-7)
    np.testing.assert_array_equal(got[:4], expected[:4])
    assert len(set(got[4:7].tolist())) == len(set(got[7:].tolist())) == 1  # saturated


def test_exp_keeps_nan_whatever_its_payload() -> None:
    bits = np.array([0x7FC00000, 0x7FC00001, 0xFFC001FF, 0x7FC0015A, 0x7F800001], dtype=np.uint32)
    assert np.isnan(exp(bits.view(np.float32))).all()
