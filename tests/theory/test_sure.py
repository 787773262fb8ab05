"""SURE and its forms for linear operators and counts: unbiased, exact on linear denoisers, and jumps are caught."""

from __future__ import annotations

import math

import pytest
import torch

from ulam import Denoiser, objectives, schedules, sure
from ulam.estimation.risk import STEP

VE = schedules.ve(0.01, 50.0)
B, N, SIGMA = 4000, 3, 0.5
X = torch.randn(B, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1.0, 0.0, 3.0])
Y = X + SIGMA * torch.randn(B, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
H = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
SEEN = X @ H.T + SIGMA * torch.randn(B, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
MEANS = 4 * torch.rand(B, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
GAIN = 0.5
COUNTS = GAIN * torch.poisson(MEANS / GAIN, generator=torch.Generator().manual_seed(4))


def soft(threshold: float):
    return lambda y: y.sign() * (y.abs() - threshold).relu()


def hard(threshold: float):
    return lambda y: y * (y.abs() > threshold)


def unbiased(values: torch.Tensor, errors: torch.Tensor) -> bool:
    apart = values.detach().double() - errors
    return abs(float(apart.mean())) <= 4 * float(apart.std()) / math.sqrt(len(apart))


def tanh_of(y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return torch.tanh(y / sigma[:, None])


@pytest.mark.parametrize(
    ("denoiser", "D"),
    [
        (soft(0.7), soft(0.7)),
        (tanh_of, lambda y: torch.tanh(y / SIGMA)),
        (Denoiser(lambda x, t: torch.tanh(x), VE, "x0"), torch.tanh),
        (Denoiser(lambda x, t: 0.3 * x, schedules.vp_linear()), None),
    ],
    ids=["soft", "with sigma", "denoiser", "variance preserving"],
)
@pytest.mark.parametrize("divergence", ["exact", "difference"])
def test_estimate_and_loss_are_unbiased(denoiser, D, divergence) -> None:
    if D is None:  # eps = 0.3 x_t at alpha = 1 / sqrt(1 + sigma^2), sigma_t = sigma alpha
        scale = 1 - 0.3 * SIGMA / math.sqrt(1 + SIGMA**2)
        D = lambda y: scale * y  # noqa: E731
    errors = (D(Y) - X).square().mean(1)
    assert unbiased(sure.estimate(denoiser, Y, SIGMA, divergence=divergence).per_chain, errors)
    assert unbiased(objectives.sure(denoiser, Y, SIGMA, step=3, divergence=divergence), errors)
    assert unbiased(sure.estimate(denoiser, Y, SIGMA, divergence=divergence, check=True).per_chain, errors)


def test_a_jump_is_caught_and_differences_see_it() -> None:
    D = hard(0.7)
    errors = (D(Y) - X).square().mean(1)
    assert not unbiased(sure.estimate(D, Y, SIGMA).per_chain, errors)
    for call in (
        lambda: sure.estimate(D, Y, SIGMA, check=True),
        lambda: objectives.sure(D, Y, SIGMA, step=0, check=True),
        lambda: sure.select({0.7: D}, Y, SIGMA, check=True),
        lambda: sure.projected(lambda y: D(y) @ H, SEEN, SIGMA, H, check=True),
        lambda: objectives.projected_sure(lambda y: D(y) @ H, SEEN, SIGMA, H, check=True, step=0),
    ):
        with pytest.raises(ValueError, match=r"^denoiser: got <lambda>, whose divergence .* without jumps") as told:
            call()
        assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=r"^net: got <lambda>, whose divergence"):
        sure.estimate(Denoiser(lambda x, t: D(x), VE, "x0"), Y, SIGMA, check=True)
    assert unbiased(sure.estimate(D, Y, SIGMA, divergence="difference").per_chain, errors)
    assert unbiased(objectives.sure(D, Y, SIGMA, step=0, divergence="difference"), errors)


@pytest.mark.parametrize("seed", range(10))
def test_the_check_refuses_no_continuous_denoiser(seed) -> None:
    """At thresholds and curvatures of many sizes, few chains, and both precisions."""
    y = Y[: 1 + 37 * seed].to(torch.float32 if seed % 2 else torch.float64)
    for D in (soft(0.1), soft(2.0), torch.relu, lambda y: y.clamp(-1, 1), lambda y: torch.sin(5 * y), lambda y: y**3):
        sure.estimate(D, y, SIGMA, seed=seed, check=True)


def test_the_difference_is_the_divergence_at_a_level_a_little_higher() -> None:
    """For D = y^3 the mean of v'(D(y + h v) - D(y)) / h over normal v is 3 |y|^2 + 3 n h^2, that of 3 |y + h v|^2."""
    found = sure.estimate(lambda y: y**3, Y[:1], SIGMA, samples=20_000, kind="gaussian", divergence="difference")
    h = STEP * SIGMA
    expected = 3 * float(Y[0].square().sum()) + 3 * N * h**2
    stderr = float(found.per_chain_stderr[0]) * N / (2 * SIGMA**2)
    assert abs(float(found.divergence[0]) - expected) <= 4 * stderr
    assert found.derivatives == "difference"


def test_the_loss_of_a_linear_denoiser_has_the_gradient_of_its_formula() -> None:
    """|A y - y|^2 / n - sigma^2 + 2 sigma^2 tr A / n, in A: exact where v' A v is averaged over many signs."""
    A = torch.randn(N, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(objectives.sure(lambda y: y @ A.T, Y, SIGMA, step=1, samples=4).mean(), A)
    off = Y @ A.detach().T - Y
    expected = 2 * (off.T @ Y / B + SIGMA**2 * torch.eye(N)) / N
    torch.testing.assert_close(found.diagonal(), expected.diagonal(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=5 * 2 * SIGMA**2 / N / math.sqrt(4 * B))


# -------------------------------------------------------------------------------- linear operators and counts


INVERSE = torch.linalg.pinv(H)


@pytest.mark.parametrize("operator", [H, (lambda x: x @ H.T, lambda v: v @ INVERSE.T)], ids=["matrix", "pair"])
@pytest.mark.parametrize("divergence", ["exact", "difference"])
def test_the_projected_error_is_estimated_through_an_operator(operator, divergence) -> None:
    W = torch.randn(2, N, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    f = lambda y: torch.tanh(y) @ W  # noqa: E731
    seen = torch.linalg.pinv(H) @ H
    errors = ((f(SEEN) - X) @ seen.T).square().mean(1)
    given = {"samples": 2, "divergence": divergence}
    assert unbiased(sure.projected(f, SEEN, SIGMA, operator, **given).per_chain, errors)
    assert unbiased(objectives.projected_sure(f, SEEN, SIGMA, operator, step=0, **given), errors)


def test_with_the_identity_it_is_sure() -> None:
    one = sure.projected(torch.tanh, Y, SIGMA, torch.eye(N, dtype=torch.float64)).per_chain
    torch.testing.assert_close(one, sure.estimate(torch.tanh, Y, SIGMA).per_chain, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("samples", [None, 1, 4])
def test_counts_are_unbiased_for_every_denoiser(samples) -> None:
    D = lambda y: (0.8 * y + 0.3 * y.roll(1, 1).sqrt()).round()  # noqa: E731  it jumps
    errors = (D(COUNTS) - MEANS).square().mean(1)
    assert unbiased(sure.poisson(D, COUNTS, gain=GAIN, samples=samples).per_chain, errors)
    assert unbiased(objectives.poisson_sure(D, COUNTS, gain=GAIN, samples=samples, step=2), errors)


def test_counts_of_one_element_sum_to_the_exact_risk() -> None:
    """E over Poisson(x) of the estimate is E(D - x)^2, both summed over the law."""
    x, k = 2.7, torch.arange(60, dtype=torch.float64)
    weights = torch.exp(k * math.log(x) - x - torch.lgamma(k + 1))
    D = lambda y: (y / (1 + y)) + (y > 2)  # noqa: E731
    estimates = sure.poisson(D, k[:, None]).per_chain
    exact = ((D(k) - x) ** 2 * weights).sum()
    assert float((estimates * weights).sum()) == pytest.approx(float(exact), rel=1e-10)


# ---------------------------------------------------------------------------------------------------- selection


def test_selection_finds_the_best_threshold() -> None:
    family = {t: soft(t) for t in (0.05, 0.2, 0.3, 0.5, 1.0)}
    found = sure.select(family, Y, SIGMA, samples=2)
    truth = {t: float((D(Y) - X).square().mean()) for t, D in family.items()}
    ranked = sorted(truth, key=truth.__getitem__)
    assert (found.best, found.runner_up) == tuple(ranked[:2])
    assert list(found.estimates) == list(family)
    assert abs(found.value - truth[found.best]) <= 4 * found.stderr
    assert abs(found.gap - (truth[found.runner_up] - truth[found.best])) <= 4 * found.gap_stderr
    assert found.gap_stderr < found.stderr  # the same noise in both
    alone = sure.select({0.3: soft(0.3)}, Y, SIGMA)
    assert alone.runner_up is None and math.isnan(alone.gap)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: sure.select([soft(1.0)], Y, SIGMA), "family: got .*, expected denoisers by"),
        (lambda: sure.select({}, Y, SIGMA), "family: got no denoiser"),
        (lambda: sure.select({1.0: 3}, Y, SIGMA), r"family\[1.0\]: got 3, expected"),
        (lambda: sure.select({1.0: lambda y: y / 0}, Y, 0.5, divergence="difference"), r"family\[1.0\]: got SURE nan"),
        (lambda: sure.estimate(lambda y: y[:, :1], Y, SIGMA), r"denoiser: got shape \[.*, 1\], expected"),
        (lambda: objectives.sure(lambda y: y[:, :1], Y, SIGMA, step=0), r"denoiser: got shape \[.*, 1\], expected"),
        (lambda: sure.poisson(torch.sqrt, COUNTS), "y: got numbers that are no counts of 1"),
        (lambda: objectives.poisson_sure(torch.sqrt, -COUNTS, gain=GAIN, step=0), "y: got numbers that are no counts"),
        (lambda: sure.projected(torch.tanh, Y, SIGMA, H), r"operator: got shape \[2, 3\] for y"),
        (lambda: sure.projected(torch.tanh, SEEN, SIGMA, H), r"denoiser: got shape"),
        (lambda: objectives.sure(torch.tanh, Y, SIGMA, step=0, divergence="hutch"), "divergence: got 'hutch'"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        call()


# ------------------------------------------------------------------------------------ score matching is SURE


def test_the_mean_over_probes_is_sliced_score_matching() -> None:
    """D = y + sigma^2 s: SURE = (2 sigma^4 / n) sliced score matching + sigma^2, direction by direction."""
    score = lambda y: (torch.tanh(y) - y) / SIGMA**2  # noqa: E731
    risk = objectives.sure(torch.tanh, Y, SIGMA, step=5, samples=3)
    sliced = objectives.sliced_score_matching(score, Y, step=5, samples=3)
    torch.testing.assert_close(risk, 2 * SIGMA**4 / N * sliced + SIGMA**2, rtol=1e-9, atol=1e-10)


def test_steps_and_samples_share_no_directions() -> None:
    """A score of which the loss is v' A v alone tells directions apart."""
    A = torch.randn(40, 40, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    y = torch.zeros(2, 40, dtype=torch.float64)
    seen = [objectives.sliced_score_matching(lambda y: y @ A.T, y, step=step).detach() for step in range(6)]
    pairs = [objectives.sliced_score_matching(lambda y: y @ A.T, y, step=s, samples=2).detach() for s in range(3)]
    singles = seen + [2 * both - one for both, one in zip(pairs, seen, strict=False)]
    assert len({round(float(value), 8) for values in singles for value in values}) == 2 * len(singles)
    ids = objectives.sliced_score_matching(lambda y: y @ A.T, y, step=0, chains=torch.tensor([1, 0])).detach()
    assert torch.equal(ids, seen[0].flip(0))
