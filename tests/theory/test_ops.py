"""The conversions against their papers' formulas to 1e-6 of the terms' size, and every bad argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ulam import ops, schedules

SCHEDULES = {"linear": schedules.vp_linear(), "cosine": schedules.vp_cosine(1000)}
PREDICTS = ("eps", "x0", "v", "score", "flow")
OPS: dict[str, Callable[..., torch.Tensor]] = {
    "x0": ops.predict_x0,
    "eps": ops.predict_eps,
    "v": ops.predict_v,
    "score": ops.score,
    "mean": ops.posterior_mean,
}
TIMES = torch.tensor([0, 1, 2, 250, 500, 998, 999])
Pair = tuple[Any, Any]
X, LINEAR = torch.zeros(2, 3), SCHEDULES["linear"]


def x0_and_eps(predicts: str, a: Any, s: Any) -> tuple[Pair, Pair]:
    """(coefficients of x, m) of x_0 and of eps, from x = a x_0 + s eps and what m is; a^2 + s^2 = 1."""
    zero = 0 * a
    return {
        "eps": ((1 / a, -s / a), (zero, zero + 1)),
        "x0": ((zero, zero + 1), (1 / s, -a / s)),
        "v": ((a, -s), (s, a)),
        "score": ((1 / a, s**2 / a), (zero, -s)),
        "flow": ((1 / (a + s), -s / (a + s)), (1 / (a + s), a / (a + s))),
    }[predicts]


def reference(op: str, predicts: str, t: np.ndarray, schedule: schedules.VariancePreserving) -> Pair:
    """Coefficients (of x_t, of m), [B], written from betas and abar alone."""
    abar, beta = schedule.alphas_cumprod[t], schedule.betas[t]
    before = np.where(t == 0, 1.0, schedule.alphas_cumprod[np.maximum(t - 1, 0)])
    a, s = np.sqrt(abar), np.sqrt(1 - abar)
    x0, eps = x0_and_eps(predicts, a, s)
    on_x0, on_x = np.sqrt(before) * beta / (1 - abar), np.sqrt(1 - beta) * (1 - before) / (1 - abar)
    pairs = {
        "x0": x0,
        "eps": eps,
        "v": tuple(a * e - s * d for e, d in zip(eps, x0, strict=True)) if predicts != "v" else (0 * a, 0 * a + 1),
        "score": tuple(-e / s for e in eps),
        "mean": (on_x + on_x0 * x0[0], on_x0 * x0[1]),
    }
    return pairs[op]


def close(actual: torch.Tensor, x: torch.Tensor, m: torch.Tensor, pair: Pair, tolerance: float) -> None:
    a, b = (torch.from_numpy(np.asarray(c)).reshape(-1, *[1] * (x.ndim - 1)) for c in pair)
    exact, size = a * x.double() + b * m.double(), (a * x.double()).abs() + (b * m.double()).abs()
    smallest = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps
    assert ((actual.double() - exact).abs() <= tolerance * size + smallest).all()


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_conversions_equal_the_papers_formulas(name: str, op: str, predicts: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, m = torch.randn(2, len(TIMES), 3, 5, 7, generator=generator)
    pair = reference(op, predicts, TIMES.numpy(), SCHEDULES[name])
    tolerances = {torch.float32: 1e-6, torch.float64: 1e-11, torch.float16: 2e-3, torch.bfloat16: 1e-2}
    for dtype, tolerance in tolerances.items():
        if dtype == torch.float16 and max(abs(c).max() for c in pair) > 1e3:
            continue  # beyond what float16 can hold
        x_t, model = x.to(dtype), m.to(dtype)
        result = OPS[op](x_t, model, TIMES, SCHEDULES[name], predicts)
        assert result.dtype == dtype
        close(result, x_t, model, pair, tolerance)


def test_posterior_mean_of_eps_is_ho_2020_eq_11() -> None:
    schedule = SCHEDULES["linear"]
    x, eps = torch.randn(2, 1000, 4, generator=torch.Generator().manual_seed(1))
    beta, abar = schedule.betas, schedule.alphas_cumprod
    pair = 1 / np.sqrt(1 - beta), -beta / np.sqrt(1 - abar) / np.sqrt(1 - beta)
    close(ops.posterior_mean(x, eps, torch.arange(1000), schedule), x, eps, pair, 1e-6)


def test_posterior_variance_is_beta_tilde() -> None:
    schedule = SCHEDULES["cosine"]
    beta, abar = schedule.betas, schedule.alphas_cumprod
    exact = (1 - np.append(1.0, abar[:-1])) / (1 - abar) * beta
    x = torch.zeros(1000, 2, dtype=torch.float64)
    variance = ops.posterior_variance(x, x, torch.arange(1000), schedule)
    np.testing.assert_allclose(variance.numpy(), exact, rtol=1e-10)
    assert variance[0] == 0 and variance.shape == (1000,)
    assert ops.posterior_variance(x.half(), x.half(), 5, schedule).dtype == torch.float16


@pytest.mark.parametrize(
    ("schedule", "t", "s"),
    [
        (SCHEDULES["linear"], (999.0, 700.5, 3.0), (998.0, 12.25, 0.0)),
        (schedules.zero_terminal_snr(SCHEDULES["linear"]), (999.0, 700.5, 3.0), (500.5, 12.25, 2.0)),
        (schedules.ve(0.01, 50), (40.0, 1.0, 0.1), (0.02, 0.9, 0.0)),
        (schedules.flow(), (1.0, 0.5, 0.1), (0.9, 0.001, 0.0)),
        (schedules.sub_vp(), (1.0, 0.5, 0.1), (0.3, 0.499, 0.0)),
    ],
    ids=["vp", "zero_snr", "ve", "flow", "sub_vp"],
)
def test_the_posterior_of_any_earlier_time_conditions_a_gaussian(
    schedule: schedules.Schedule, t: tuple[float, ...], s: tuple[float, ...]
) -> None:
    """Given x_0 the pair (x_s, x_t) is Gaussian with Cov = (alpha_t / alpha_s) sigma_s^2: its regression on x_t."""
    x, m = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    (a, v), (b, w) = ((level[0], level[1] ** 2) for level in map(schedule.levels, (t, s)))
    covariance = a / b * w
    slope = covariance / v
    mean = ops.posterior_mean(x, m, np.array(t), schedule, "x0", s=torch.tensor(s, dtype=x.dtype))
    close(mean, x, m, (slope, b - slope * a), 1e-11)
    variance = ops.posterior_variance(x, m, np.array(t), schedule, "x0", s=np.array(s))
    np.testing.assert_allclose(variance.numpy(), w - covariance * slope, rtol=1e-9, atol=1e-13)
    one = ops.posterior_mean(x, m, t[1], schedule, "v", s=s[1])
    each = ops.posterior_mean(
        x, m, torch.tensor([t[1]] * 3, dtype=x.dtype), schedule, "v", s=torch.tensor([s[1]] * 3, dtype=x.dtype)
    )
    assert torch.equal(one, each)


def test_the_previous_step_is_the_earlier_time_by_default() -> None:
    x, m = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(9))
    t = torch.tensor([1, 500, 999])
    for op in (ops.posterior_mean, ops.posterior_variance):
        assert torch.equal(op(x, m, t, LINEAR), op(x, m, t, LINEAR, s=t - 1))


def test_a_time_that_is_not_earlier_is_refused() -> None:
    for op in (ops.posterior_mean, ops.posterior_variance):
        for s, got in ((7, "7"), (torch.tensor([6.0, 7.5]), "7.5"), (torch.tensor([6.0, torch.nan]), "nan")):
            with pytest.raises(ValueError, match=rf"^s: got {got} at t = 7, expected an earlier time"):
                op(X, X, 7, LINEAR, s=s)
        with pytest.raises(ValueError, match=r"^s: got -1.0, expected numbers in \[0, 999\]"):
            op(X, X, 7, LINEAR, s=-1)
        with pytest.raises(ValueError, match=r"^s: got shape \[3\], expected a number or \[2\]"):
            op(X, X, 7, LINEAR, s=torch.zeros(3))
        with pytest.raises(TypeError, match=r"^s: got '3', expected a number"):
            op(X, X, 7, LINEAR, s="3")
        with pytest.raises(ValueError, match=r"^t: got one with sigma 0, expected sigma above 0"):
            op(X, X, 0.0, schedules.flow(), "flow", s=0.0)


@pytest.mark.parametrize("op", OPS)
def test_one_t_for_all_equals_the_same_t_per_chain(op: str) -> None:
    x, m = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    schedule = SCHEDULES["linear"]
    for t in (0, 417, 999):
        each = OPS[op](x, m, torch.full((4,), t), schedule)
        assert torch.equal(OPS[op](x, m, t, schedule), each)
        assert torch.equal(OPS[op](x, m, torch.full((4,), float(t)), schedule), each)
        assert torch.equal(OPS[op](x, m, np.int64(t), schedule), each)


@pytest.mark.parametrize("op", OPS)
def test_a_chain_does_not_depend_on_its_neighbours_or_layout(op: str) -> None:
    x, m = torch.randn(2, len(TIMES), 3, 4, 5, generator=torch.Generator().manual_seed(3))
    whole = OPS[op](x, m, TIMES, SCHEDULES["linear"])
    for i in range(len(TIMES)):
        assert torch.equal(OPS[op](x[i : i + 1], m[i : i + 1], TIMES[i : i + 1], SCHEDULES["linear"])[0], whole[i])
    last = m.to(memory_format=torch.channels_last)
    assert torch.equal(OPS[op](x, last, TIMES, SCHEDULES["linear"]), whole)


def test_mixed_dtypes_promote_and_round_once() -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16)
    m = torch.tensor([[0.5, 0.25]], dtype=torch.float32)
    pair = reference("x0", "eps", np.array([300]), SCHEDULES["linear"])
    result = ops.predict_x0(x, m, 300, SCHEDULES["linear"])
    assert result.dtype == torch.float32
    close(result, x, m, pair, 1e-6)


@pytest.mark.parametrize("op", OPS)
def test_empty_batches_and_bare_chains(op: str) -> None:
    empty = torch.empty(0, 3, 4)
    assert OPS[op](empty, empty, torch.empty(0, dtype=torch.int64), SCHEDULES["linear"]).shape == (0, 3, 4)
    assert OPS[op](empty, empty, 3, SCHEDULES["linear"]).shape == (0, 3, 4)
    assert OPS[op](torch.ones(5, 0), torch.ones(5, 0), 3, SCHEDULES["linear"]).shape == (5, 0)
    x, m = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    pair = reference(op, "eps", np.array([7, 8]), SCHEDULES["linear"])
    close(OPS[op](x, m, torch.tensor([7, 8]), SCHEDULES["linear"]), x, m, pair, 1e-6)


def test_identities_return_the_output_itself_even_beside_nan() -> None:
    m, nan = torch.randn(3, 4, generator=torch.Generator().manual_seed(4)), torch.full((3, 4), float("nan"))
    t, schedule = torch.tensor([0, 500, 999]), SCHEDULES["cosine"]
    assert torch.equal(ops.predict_eps(nan, m, t, schedule, "eps"), m)
    assert torch.equal(ops.predict_x0(nan, m, t, schedule, "x0"), m)
    assert torch.equal(ops.predict_v(nan, m, t, schedule, "v"), m)
    assert torch.equal(ops.score(nan, m, t, schedule, "score"), m)


def test_continuous_schedules_and_fractional_times() -> None:
    x, m = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(5))
    sigma = torch.tensor([0.1, 1.0, 40.0], dtype=torch.float64)
    s = sigma.numpy()
    close(ops.predict_x0(x, m, sigma, schedules.ve(0.01, 50)), x, m, (1 + 0 * s, -s), 1e-6)
    c_skip, c_out = 0.09 / (s**2 + 0.09), s * 0.3 / np.sqrt(s**2 + 0.09)
    close(ops.predict_x0(x, m, sigma, schedules.edm(sigma_data=0.3), "raw"), x, m, (c_skip, c_out), 1e-6)
    close(ops.predict_x0(x, m, 0.25, schedules.flow(), "flow"), x, m, (np.ones(3), -0.25 * np.ones(3)), 1e-6)
    close(ops.score(x, m, 0.25, schedules.flow(), "flow"), x, m, (-4 * np.ones(3), -3 * np.ones(3)), 1e-6)
    schedule = SCHEDULES["linear"]
    ratio = 0.5 * sum(schedule.sigma(t) / schedule.alpha(t) for t in (10, 11))
    close(
        ops.predict_x0(x, m, 10.5, schedule),
        x,
        m,
        ((1 + ratio**2) ** 0.5 * np.ones(3), -ratio * np.ones(3)),
        1e-6,
    )


def test_zero_terminal_snr() -> None:
    schedule = schedules.from_betas([0.1, 0.5, 1.0])
    x, m = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(6))
    assert torch.equal(ops.predict_x0(x, m, 2, schedule, "v"), -m)
    assert torch.equal(ops.predict_eps(x, m, 2, schedule, "v"), x)
    assert torch.equal(ops.predict_eps(x, m, 2, schedule, "eps"), m)
    with pytest.raises(ValueError, match="predicts: got 'eps', which says nothing about x_0 where alpha is 0"):
        ops.predict_x0(x, m, 2, schedule)


def test_gradients_flow_where_they_are_asked_for() -> None:
    x, m = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).unbind()
    t = torch.tensor([0, 10, 999])
    for op in OPS.values():
        inputs = x.clone().requires_grad_(), m.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda x_t, out, op=op: op(x_t, out, t, SCHEDULES["linear"], "v"), inputs)
        with torch.no_grad():
            plain = op(*inputs, t, SCHEDULES["linear"], "v")
        torch.testing.assert_close(op(*inputs, t, SCHEDULES["linear"], "v").detach(), plain, rtol=1e-12, atol=1e-12)


BAD: dict[str, tuple[type[Exception], tuple[Any, ...]]] = {
    r"m: got shape \[2, 4\], expected \[2, 3\] like x_t .chains first.": (
        ValueError,
        (X, torch.zeros(2, 4), 0, LINEAR),
    ),
    r"m: got shape \[\], expected \[\] like x_t": (ValueError, (torch.zeros(()), torch.zeros(()), 0, LINEAR)),
    "m: got a tensor on the meta device": (ValueError, (X, X.to("meta"), 0, LINEAR)),
    "x_t: got torch.int64, expected a float dtype": (TypeError, (X.long(), X, 0, LINEAR)),
    "m: got torch.bool, expected a float dtype": (TypeError, (X, X.bool(), 0, LINEAR)),
    "x_t: got .*, expected a tensor": (TypeError, ([0.0], X, 0, LINEAR)),
    "m: got None, expected a tensor": (TypeError, (X, None, 0, LINEAR)),
    r"t: got shape \[3\], expected a number or \[2\]": (
        ValueError,
        (X, X, torch.zeros(3), LINEAR),
    ),
    r"t: got shape \[2, 1\], expected a number or \[2\]": (
        ValueError,
        (X, X, torch.zeros(2, 1), LINEAR),
    ),
    "t: got torch.bool, expected integers or floats": (TypeError, (X, X, torch.zeros(2).bool(), LINEAR)),
    "t: got '3', expected a number or a tensor of one a chain": (TypeError, (X, X, "3", LINEAR)),
    "t: got True, expected a number or a tensor of one a chain": (TypeError, (X, X, True, LINEAR)),
    "t: got 1000.0, expected numbers in .0, 999.": (ValueError, (X, X, 1000, LINEAR)),
    "t: got -1.0, expected numbers in .0, 999.": (ValueError, (X, X, torch.tensor([4, -1]), LINEAR)),
    "t: got nan, expected numbers in .0, 999.": (ValueError, (X, X, torch.tensor([4, torch.nan]), LINEAR)),
    "schedule: got 'linear', expected a ulam schedule": (TypeError, (X, X, 0, "linear")),
    "predicts: got 'noise', expected one of ": (ValueError, (X, X, 0, LINEAR, "noise")),
    "schedule: got .* under predicts='raw' .*, expected edm": (ValueError, (X, X, 0, LINEAR, "raw")),
}


@pytest.mark.parametrize("message", BAD)
@pytest.mark.parametrize("op", [*OPS.values(), ops.posterior_variance])
def test_bad_input(op: Callable[..., torch.Tensor], message: str) -> None:
    error, arguments = BAD[message]
    with pytest.raises(error, match=message):
        op(*arguments)


@pytest.mark.parametrize("op", [ops.posterior_mean, ops.posterior_variance])
def test_the_posterior_needs_a_previous_training_step(op: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(ValueError, match=r"t: got 1.5, expected whole training steps"):
        op(X, X, 1.5, LINEAR)
    with pytest.raises(ValueError, match=r"schedule: got flow.*, expected a vp schedule"):
        op(X, X, 0.5, schedules.flow(), "flow")


def test_no_score_without_noise() -> None:
    with pytest.raises(ValueError, match=r"t: got .*, expected sigma above 0"):
        ops.score(X, X, 0.0, schedules.flow(), "flow")


def test_a_scalar_tensor_is_a_number():
    expected = ops.posterior_mean(X, X, 7, LINEAR)
    assert torch.equal(ops.posterior_mean(X, X, torch.tensor(7), LINEAR), expected)


def test_the_time_that_requires_grad_is_named() -> None:
    x, time = torch.ones(3, 2), torch.tensor(2.0, requires_grad=True)
    for given in ({"t": time}, {"t": 5, "s": time}):
        with pytest.raises(RuntimeError, match=f"^{list(given)[-1]}: got a tensor that requires grad"):
            ops.posterior_mean(x, x, schedule=schedules.vp_linear(10), **given)
