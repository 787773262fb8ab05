"""The variational bound, the ODE likelihood and the hybrid loss against closed forms on Gaussians and mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ulam import Denoiser, bounds, objectives, schedules
from ulam.estimation.forward import add_noise
from ulam.noise import BOUND, TRAINING, normal, normal_for

Tensor = torch.Tensor
FP64 = torch.float64


class Mixture:
    """sum_k w_k N(mu_k, s_k^2), every element on its own, and its ideal network on any schedule, in the dtype of x."""

    def __init__(self, weights: list[float], means: list[float], stds: list[float]) -> None:
        self.weights, self.means, self.stds = (torch.tensor(v, dtype=FP64) for v in (weights, means, stds))

    def terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k N(x; alpha mu_k, v_k), x - alpha mu_k and v_k, with a last axis for k."""
        off, v = (
            x[..., None] - alpha[..., None] * self.means,
            (alpha[..., None] * self.stds) ** 2 + sigma[..., None] ** 2,
        )
        return self.weights.log() - (off**2 / v + (2 * math.pi * v).log()) / 2, off, v

    def x0(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        log, off, v = self.terms(x, alpha, sigma)
        return (torch.softmax(log, -1) * (self.means + alpha[..., None] * self.stds**2 / v * off)).sum(-1)

    def log_density(self, x: Tensor, alpha: float = 1.0, sigma: float = 0.0) -> Tensor:
        levels = (torch.tensor(level, dtype=FP64) for level in (alpha, sigma))
        return torch.logsumexp(self.terms(x.double(), *levels)[0], -1).flatten(1).sum(1)

    def sample(self, shape: tuple[int, ...], seed: int = 0) -> Tensor:
        rng = np.random.default_rng(seed)
        k = torch.from_numpy(rng.choice(len(self.weights), size=shape, p=self.weights.numpy()))
        return self.means[k] + self.stds[k] * torch.from_numpy(rng.normal(size=shape))

    def denoiser(self, schedule: schedules.Schedule, predicts: str = "eps") -> Denoiser:
        def net(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (level.view(-1, *[1] * (x.dim() - 1)) for level in torch_levels(schedule, t.double()))
            D = self.x0(x.double(), alpha, sigma)
            eps = (x - alpha * D) / sigma
            return {"x0": D, "eps": eps, "v": alpha * eps - sigma * D, "flow": eps - D}[predicts].to(x.dtype)

        return Denoiser(net, schedule, predicts)


def torch_levels(schedule: schedules.Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) as torch operations, which a derivative in forward mode can go through."""
    if schedule.kind == "flow":
        return 1 - t, t
    if schedule.kind == "ve":
        return torch.ones_like(t), t
    if schedule.kind == "subvp":
        log_alpha = -t * (schedule.beta_min / 2 + t * (schedule.beta_max - schedule.beta_min) / 4)
        return log_alpha.exp(), -torch.expm1(2 * log_alpha)
    ratios = torch.from_numpy(np.append(schedule.ratios, schedule.ratios[-1]))
    below = t.floor().long()
    ratio = ratios[below] + (t - below) * (ratios[below + 1] - ratios[below])
    return 1 / torch.hypot(torch.ones_like(t), ratio), ratio / torch.hypot(torch.ones_like(t), ratio)


GAUSSIAN = Mixture([1.0], [0.3], [0.7])
TWO = Mixture([0.3, 0.7], [-0.8, 0.6], [0.15, 0.3])


def vp(steps: int) -> schedules.Schedule:
    """The process of DDPM's betas cut into any number of steps."""
    rate = 0.1 + 19.9 * (np.arange(steps) + 0.5) / steps
    return schedules.from_betas(-np.expm1(-rate / steps))


def with_variance(denoiser: Denoiser, value: Callable[[Tensor], Tensor]) -> Denoiser:
    return Denoiser(lambda x, t: torch.cat([denoiser.net(x, t), value(x)], 1), denoiser.schedule, denoiser.predicts)


# ------------------------------------------------------------------------------------------------------ the bound


class GuidedDiffusion:
    """The definitions of openai/guided-diffusion's GaussianDiffusion, from its betas, in float64."""

    def __init__(self, schedule: schedules.Schedule) -> None:
        betas = schedule.betas
        self.cumprod = np.cumprod(1 - betas)
        previous = np.append(1.0, self.cumprod[:-1])
        variance = betas * (1 - previous) / (1 - self.cumprod)
        self.small = np.log(np.append(variance[1], variance[1:]))
        self.large = np.log(np.append(variance[1], betas[1:]))
        self.log_betas = np.log(betas)
        self.coef1 = betas * np.sqrt(previous) / (1 - self.cumprod)
        self.coef2 = (1 - previous) * np.sqrt(1 - betas) / (1 - self.cumprod)

    def term(self, t: int, x_0: Tensor, x_t: Tensor, out: Tensor, variance: str, clip: bool) -> Tensor:
        """_vb_terms_bpd of an eps-predicting network's output."""
        eps, v = out[:, : x_0.shape[1]], out[:, x_0.shape[1] :]
        D = (x_t - math.sqrt(1 - self.cumprod[t]) * eps) / math.sqrt(self.cumprod[t])
        D = D.clamp(-1, 1) if clip else D
        fraction = (v + 1) / 2
        full = torch.full_like(x_0, 1.0)
        log_variance = {
            "posterior": full * self.small[t], "beta": full * self.large[t], "learned": v,
            "learned_range": fraction * self.log_betas[t] + (1 - fraction) * self.small[t],
        }[variance]  # fmt: skip
        true, mean = (self.coef1[t] * x + self.coef2[t] * x_t for x in (x_0, D))
        if t > 0:
            d = self.small[t] - log_variance
            nats = 0.5 * (-1.0 - d + d.exp() + (true - mean) ** 2 * (-log_variance).exp())
        else:
            cdf = lambda y: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))  # noqa: E731
            above, below = (cdf((x_0 - mean + side / 255) * (-log_variance / 2).exp()) for side in (1, -1))
            safe = lambda p: p.clamp(min=1e-12).log()  # noqa: E731
            nats = -torch.where(
                x_0 < -0.999, safe(above), torch.where(x_0 > 0.999, safe(1 - below), safe(above - below))
            )
        return nats.flatten(1).mean(1) / math.log(2)

    def prior(self, x_0: Tensor) -> Tensor:
        mean, variance = math.sqrt(self.cumprod[-1]) * x_0, 1 - self.cumprod[-1]
        return (0.5 * (-1.0 - math.log(variance) + variance + mean**2)).flatten(1).mean(1) / math.log(2)


def images(dtype: torch.dtype, chains: int = 4) -> Tensor:
    level = torch.randint(0, 256, (chains, 2, 3, 5), generator=torch.Generator().manual_seed(3))
    level[0, 0], level[1, 1] = 0, 255
    return (level / 127.5 - 1).to(dtype)


def crude(x: Tensor, t: Tensor) -> Tensor:
    """A network with a variance, far from ideal."""
    return torch.cat([0.8 * x + 0.1 * torch.sin(3 * x), 0.7 * torch.cos(x)], 1)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned", "learned_range"])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_terms_are_those_of_guided_diffusion(variance: str, clip: tuple[float, float] | None) -> None:
    schedule = vp(12)
    theirs = GuidedDiffusion(schedule)
    for dtype, close in ((FP64, {"rtol": 1e-9, "atol": 1e-9}), (torch.float32, {"rtol": 2e-5, "atol": 1e-6})):
        x_0 = images(dtype)
        bound = bounds.vlb(Denoiser(crude, schedule), x_0, variance=variance, clip=clip, cdf="tanh", seed=5)
        expected = []
        for t in range(12):
            z = normal_for(BOUND, x_0.shape[1:], seed=5, chains=len(x_0), row=t).to(x_0.dtype)
            x_t = add_noise(x_0, t, schedule, noise=z).x_t.double()
            expected.append(theirs.term(t, x_0.double(), x_t, crude(x_t, x_t), variance, clip is not None))
        torch.testing.assert_close(bound.terms, torch.stack(expected), **close)
        torch.testing.assert_close(bound.prior, theirs.prior(x_0.double()), **close)
        torch.testing.assert_close(bound.per_chain, theirs.prior(x_0.double()) + sum(expected), **close)
        assert bound.t.tolist() == [[t] * 4 for t in range(12)] and (bound.weight == 1).all()


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_terms_have_the_exact_mean_on_gaussian_data(variance: str) -> None:
    """D = a x_t + c, so a KL's mean over the noise is closed; inside 4 standard errors of 1000 repeats of 24."""
    schedule, log_learned = vp(20), -3.0
    denoiser = GAUSSIAN.denoiser(schedule)
    if variance == "learned":
        denoiser = with_variance(denoiser, lambda x: torch.full_like(x, log_learned))
    x_0 = GAUSSIAN.sample((1, 2, 12)).float().expand(500, 2, 12).contiguous()
    bound = bounds.vlb(denoiser, x_0, variance=variance, decoder="gaussian", samples=2)
    t, mean, stderr = bound.by_step()
    abar, betas = schedule.alphas_cumprod, schedule.betas
    assert t.tolist() == list(range(20))
    x = x_0[0].double().flatten()
    for k in range(20):
        alpha, sigma2, previous = math.sqrt(abar[k]), 1 - abar[k], abar[k - 1] if k else 1.0
        a = alpha * 0.49 / (alpha**2 * 0.49 + sigma2)
        c = 0.3 * (1 - a * alpha)
        squares = ((a * alpha - 1) * x + c) ** 2 + a**2 * sigma2  # mean of (D - x_0)^2
        small = betas[k] * (1 - previous) / sigma2
        model = {"posterior": small, "beta": betas[k], "learned": math.exp(log_learned)}[variance]
        if k == 0:
            model = model if variance == "learned" else sigma2 / alpha**2
            nats = (squares / model + math.log(2 * math.pi * model)) / 2
        else:
            weight = previous * betas[k] ** 2 / sigma2**2
            nats = (weight * squares / model + small / model - 1 - math.log(small / model)) / 2
        expected = float(nats.mean()) / math.log(2)
        assert abs(float(mean[k]) - expected) < 4 * float(stderr[k]) + 1e-6 * expected, k
    assert bound.stderr == pytest.approx(float((stderr**2).sum().sqrt()), rel=0.2)
    assert float(bound.per_chain_stderr.square().mean()) == pytest.approx(500 * bound.stderr**2, rel=0.3)


def gap(mixture: Mixture, steps: int, variance: str, x_0: Tensor) -> tuple[Tensor, Tensor]:
    """Bound less exact negative log-likelihood, and the error of a chain's bound, in bits a dimension."""
    bound = bounds.vlb(mixture.denoiser(vp(steps)), x_0, variance=variance, decoder="gaussian", samples=2)
    exact = -mixture.log_density(x_0) / (x_0[0].numel() * math.log(2))
    return bound.per_chain - exact, bound.per_chain_stderr.square().mean().sqrt()


@pytest.mark.parametrize("mixture", [GAUSSIAN, TWO], ids=["gaussian", "mixture"])
def test_bound_lies_above_the_exact_likelihood_and_comes_down_to_it(mixture: Mixture) -> None:
    """For data with a density: under beta the gap falls like 1 / T, under beta~ it stays above it."""
    x_0 = mixture.sample((100, 1, 400)).float()
    means = []
    for steps in (6, 18, 54):
        over, error = gap(mixture, steps, "beta", x_0)
        assert (over > -5 * error).all()
        means.append(float(over.mean()))
    smaller, error = gap(mixture, 54, "posterior", x_0)
    assert (smaller > -5 * error).all() and float(smaller.mean()) > means[0]
    assert means[0] > 1.5 * means[1] > 2.25 * means[2] > 0 and means[2] < 0.15, means


def test_bound_of_discrete_data_comes_down_to_their_entropy() -> None:
    """Atoms on levels of four bits: the exact probability of an example is its weight."""
    weights, levels = [0.5, 0.3, 0.2], [0, 8, 15]
    atoms = Mixture(weights, [level / 7.5 - 1 for level in levels], [0.0, 0.0, 0.0])
    x_0 = (atoms.means[:, None].expand(3, 400)).float().contiguous()
    exact = -atoms.weights.log2()
    previous = torch.full((3,), math.inf)
    for steps in (20, 60, 180):
        bound = bounds.vlb(atoms.denoiser(vp(steps), "x0"), x_0, samples=4, bins=16)
        assert (bound.per_chain > exact - 4 * bound.per_chain_stderr).all()
        assert (bound.per_chain < previous).all()
        previous = bound.per_chain
    assert ((previous - exact) < 0.2).all()


def test_sampled_steps_are_unbiased() -> None:
    """A network that always says 0 has terms that depend on the step alone; each chain draws its own steps."""
    schedule = vp(30)
    denoiser = Denoiser(lambda x, t: torch.zeros_like(x), schedule, "x0")
    x_0 = torch.full((2000, 4), 0.5)
    options: dict[str, Any] = {"variance": "beta", "decoder": "gaussian"}
    whole = bounds.vlb(denoiser, x_0[:1], **options)
    for sampled in (1, 7, 29):
        part = bounds.vlb(denoiser, x_0, sampled=sampled, samples=2, **options)
        assert len(part.terms) == 2 * (sampled + 1) and (part.t[0] == 0).all()
        if sampled < 29:
            assert abs(part.value - whole.value) < 4 * part.stderr and part.t[1].unique().numel() > 3
        else:  # one part a step: nothing is random
            torch.testing.assert_close(part.per_chain, whole.per_chain.expand(2000), rtol=1e-12, atol=0)
        t, mean, _ = part.by_step()
        torch.testing.assert_close(mean, whole.terms[t, 0], rtol=1e-10, atol=0)


def test_respaced_bound_is_that_of_the_sampler_on_its_steps() -> None:
    """Betas recomputed from what is left of abar: the bound of another schedule with just these steps."""
    schedule, steps = vp(40), [3, 11, 12, 30, 39]
    abar = schedule.alphas_cumprod[steps]
    other = schedules.from_betas(1 - abar / np.append(1.0, abar[:-1]))
    x_0 = images(FP64)
    crude_x0 = lambda x, t: torch.cat([torch.tanh(x), torch.cos(x)], 1)  # noqa: E731
    for variance in ("posterior", "beta", "learned_range"):
        ours = bounds.vlb(Denoiser(crude_x0, schedule, "x0"), x_0, variance=variance, timesteps=steps[::-1])
        theirs = bounds.vlb(Denoiser(crude_x0, other, "x0"), x_0, variance=variance)
        torch.testing.assert_close(ours.terms, theirs.terms, rtol=1e-9, atol=1e-12)
        assert ours.t[:, 0].tolist() == steps
    one = bounds.vlb(Denoiser(crude_x0, schedule, "x0"), x_0, timesteps=[39], variance="beta", sampled=1)
    assert one.terms.shape == (1, 4) and one.per_chain.isfinite().all()


def test_a_chain_has_its_bound_in_any_batch() -> None:
    x_0, denoiser = images(torch.float32, 9), TWO.denoiser(vp(15))
    for sampled in (None, 5):
        whole = bounds.vlb(denoiser, x_0, sampled=sampled, seed=2)
        part = bounds.vlb(denoiser, x_0[[7, 1]], sampled=sampled, seed=2, chains=torch.tensor([7, 1]))
        assert torch.equal(part.per_chain, whole.per_chain[[7, 1]])
        assert torch.equal(part.terms, whole.terms[:, [7, 1]])


def test_wrong_arguments_of_the_bound() -> None:
    denoiser, x_0 = TWO.denoiser(vp(15)), images(torch.float32)
    for options, message in (
        ({"variance": "fixed"}, "variance: got 'fixed', expected one of posterior"),
        ({"decoder": "laplace"}, "decoder: got 'laplace', expected one"),
        ({"samples": 0}, "samples: got 0, expected 1 to"), ({"sampled": 15}, "sampled: got 15, expected 1 to the 14"),
        ({"timesteps": [3, 3]}, "timesteps: got .*, expected .*different"), ({"timesteps": [15]}, "from 0 to 14"),
        ({"variance": "learned"}, r"net: got shape \[4, 2, 3, 5\], expected \[4, 4, 3, 5\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            bounds.vlb(denoiser, x_0, **options)
    with pytest.raises(ValueError, match=r"x_0: got .*, expected numbers in \[-1, 1\]"):
        bounds.vlb(denoiser, 2 * x_0)
    with pytest.raises(ValueError, match=r"x_0: got nan in size, expected numbers in \[-1, 1\]"):
        bounds.vlb(denoiser, torch.full_like(x_0, torch.nan))
    with pytest.raises(ValueError, match=r"schedule: got .*, expected a vp schedule"):
        bounds.vlb(TWO.denoiser(schedules.flow(), "flow"), x_0)


# ------------------------------------------------------------------------------------------------- the likelihood

POINTS = torch.tensor([[[0.4, -0.9]], [[1.1, 0.2]], [[-0.5, 0.65]]], dtype=FP64)


@pytest.mark.parametrize("mixture", [GAUSSIAN, TWO], ids=["gaussian", "mixture"])
def test_likelihood_is_the_exact_density(mixture: Mixture) -> None:
    """From noise far below the data's smallest scale to far above their largest."""
    denoiser = mixture.denoiser(schedules.ve(2e-4, 1e5), "x0")
    for options in ({"steps": 500}, {"solver": "adaptive", "rtol": 1e-8, "atol": 1e-8}):
        found = bounds.likelihood(denoiser, POINTS, trace="exact", **options)
        torch.testing.assert_close(found.log_prob, mixture.log_density(POINTS), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.per_chain, -found.log_prob / (2 * math.log(2)), rtol=1e-12, atol=0)
        assert (found.per_chain_stderr == 0).all() and found.value == pytest.approx(float(found.per_chain.mean()))


@pytest.mark.parametrize(
    ("schedule", "predicts"),
    [(vp(1000), "eps"), (schedules.vp_cosine(), "v"), (schedules.flow(), "flow"), (schedules.sub_vp(), "x0")],
    ids=["vp", "cosine", "flow", "subvp"],
)
def test_likelihood_between_two_levels_of_any_schedule(schedule: schedules.Schedule, predicts: str) -> None:
    """With the exact density as the prior: that of y = x + sigma_min z."""
    low, high = 0.02, 8.0
    alpha, sigma = schedule.levels(schedule.t_of_sigma(np.array([high])))
    prior = lambda x: TWO.log_density(x, float(alpha[0]), float(sigma[0]))  # noqa: E731
    found = bounds.likelihood(
        TWO.denoiser(schedule, predicts), POINTS, trace="exact", steps=400, sigma_min=low, sigma_max=high, prior=prior
    )
    torch.testing.assert_close(found.log_prob, TWO.log_density(POINTS, 1.0, low), rtol=0, atol=1e-5)
    single = bounds.likelihood(
        TWO.denoiser(schedule, predicts), POINTS.float(), steps=200, sigma_min=low, sigma_max=high, prior=prior
    )  # independent elements: signs give the trace exactly
    torch.testing.assert_close(single.log_prob, found.log_prob, rtol=0, atol=2e-3)


def test_default_prior_and_range_are_those_of_the_sampler() -> None:
    """VP: x_T ~ N(0, I), so for data of mean 0 the error is about alpha_T^2 = 4e-5 a dimension."""
    schedule, centred = vp(1000), Mixture([1.0], [0.0], [0.7])
    found = bounds.likelihood(centred.denoiser(schedule), POINTS, trace="exact", steps=300)
    low = float(schedule.ratios[0])
    torch.testing.assert_close(found.log_prob, centred.log_density(POINTS, 1.0, low), rtol=0, atol=1e-4)
    assert found.nfe == 1200


@pytest.mark.parametrize(("solver", "order"), [("rk4", 4), ("heun", 2)])
def test_solvers_have_their_order(solver: str, order: int) -> None:
    schedule = schedules.ve(0.05, 20.0)
    prior = lambda x: TWO.log_density(x, 1.0, 20.0)  # noqa: E731
    errors = []
    for steps in (64, 128, 256):
        options: dict[str, Any] = {"solver": solver, "steps": steps, "trace": "exact", "prior": prior}
        found = bounds.likelihood(TWO.denoiser(schedule, "x0"), POINTS, **options)
        errors.append(float((found.log_prob - TWO.log_density(POINTS, 1.0, 0.05)).abs().max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > order - 0.3).all(), orders


def correlated(schedule: schedules.Schedule) -> tuple[Denoiser, Tensor]:
    """Gaussian data in five dimensions with a full covariance, and their ideal denoiser."""
    root = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=FP64)
    covariance = root @ root.mT / 5 + 0.05 * torch.eye(5, dtype=FP64)

    values, vectors = torch.linalg.eigh(covariance)

    def net(x: Tensor, t: Tensor) -> Tensor:
        return (x @ vectors * (values / (values + t[:, None] ** 2))) @ vectors.mT

    return Denoiser(net, schedule, "x0"), covariance


def test_hutchinson_is_inside_its_error_and_exact_without() -> None:
    denoiser, covariance = correlated(schedules.ve(1e-4, 3000.0))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=FP64)
    expected = torch.distributions.MultivariateNormal(torch.zeros(5, dtype=FP64), covariance).log_prob(x)
    exact = bounds.likelihood(denoiser, x, trace="exact", steps=500)
    torch.testing.assert_close(exact.log_prob, expected, rtol=0, atol=1e-5)
    for kind, most in (("rademacher", 0.5), ("gaussian", 3.0)):
        options: dict[str, Any] = {"steps": 30, "sigma_min": 0.05, "sigma_max": 20.0}
        found = bounds.likelihood(denoiser, x, samples=40, kind=kind, **options)
        same = bounds.likelihood(denoiser, x, trace="exact", **options)
        nats = found.per_chain_stderr * 5 * math.log(2)
        assert ((found.log_prob - same.log_prob).abs() < 4 * nats).all() and (nats < most).all() and (nats > 0.01).all()
    with torch.inference_mode():
        one = bounds.likelihood(denoiser, x, steps=20)
    assert one.per_chain_stderr.isnan().all() and one.log_prob.isfinite().all()
    constant = bounds.likelihood(
        Denoiser(lambda x, t: torch.zeros_like(x), schedules.ve(0.1, 10.0), "x0"), x, steps=100
    )
    scale = torch.distributions.Normal(torch.zeros((), dtype=FP64), 0.1)  # the flow of D = 0 scales N(0, 100 I) to this
    torch.testing.assert_close(constant.log_prob, scale.log_prob(x).sum(1), rtol=1e-6, atol=1e-5)


def test_likelihood_of_a_chain_does_not_depend_on_its_batch() -> None:
    denoiser, _ = correlated(schedules.ve(1e-2, 50.0))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=FP64)
    whole = bounds.likelihood(denoiser, x, samples=2, steps=10, levels=256)
    part = bounds.likelihood(denoiser, x[:2], samples=2, steps=10, levels=256)
    torch.testing.assert_close(part.log_prob, whole.log_prob[:2], rtol=1e-12, atol=0)


def test_dequantised_likelihood_bounds_the_bits_of_a_level() -> None:
    """log_prob is the density at x + (u - 1/2) / 127.5; the mean of the bits is at least -log2 of the level's mass."""
    levels = 16
    cell = 2 / (levels - 1)
    x = (2 * torch.randint(3, 13, (200, 8), generator=torch.Generator().manual_seed(5)) / (levels - 1) - 1).double()
    found = bounds.likelihood(
        GAUSSIAN.denoiser(schedules.ve(1e-3, 300.0), "x0"), x, steps=150, levels=levels, seed=7,
        prior=lambda end: GAUSSIAN.log_density(end, 1.0, 300.0),
    )  # fmt: skip
    uniform = torch.special.ndtr(normal((8,), seed=7, chains=200, tag=5).double())
    moved = x + cell * (uniform - 0.5)
    torch.testing.assert_close(found.log_prob, GAUSSIAN.log_density(moved), rtol=0, atol=2e-4)
    expected = -(GAUSSIAN.log_density(moved) / 8 + math.log(cell)) / math.log(2)
    torch.testing.assert_close(found.per_chain, expected, rtol=0, atol=1e-4)
    mass = torch.special.ndtr((x + cell / 2 - 0.3) / 0.7) - torch.special.ndtr((x - cell / 2 - 0.3) / 0.7)
    assert found.value >= float(-mass.log2().mean()) - 4 * found.stderr


def test_wrong_arguments_of_the_likelihood() -> None:
    denoiser = TWO.denoiser(schedules.ve(0.01, 50.0), "x0")
    for options, message in (
        ({"solver": "euler"}, "solver: got 'euler', expected one of rk4"),
        ({"trace": "none"}, "trace: got 'none', expected one of"),
        ({"samples": 0}, "samples: got 0, expected 1 to"), ({"steps": 0}, "steps: got 0, expected 1 to"),
        ({"levels": 1}, "levels: got 1, expected 2 to"), ({"kind": "cauchy"}, "kind: got .cauchy., expected one of"),
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min, sigma_max: got 2, 1, expected 0 < sigma_min < sigma_max"),
        ({"prior": lambda x: x, "steps": 1}, r"prior: got log densities of shape .*, expected \[3\], one a chain"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            bounds.likelihood(denoiser, POINTS, **options)
    with pytest.raises(ValueError, match=r"x: got a tensor of torch.int64 .*, expected a float tensor"):
        bounds.likelihood(denoiser, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="range of sigma/alpha"):
        bounds.likelihood(TWO.denoiser(vp(10)), POINTS, sigma_max=1e4)


# ------------------------------------------------------------------------------------------------ the hybrid loss


class Learned(torch.nn.Module):
    """eps and v of the elements, with parameters of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.spread = (torch.nn.Parameter(torch.tensor(v)) for v in (0.7, 0.4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([self.mean * x + 0.1 * torch.sin(3 * x), self.spread * torch.cos(x)], 1)


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_hybrid_loss_is_the_simple_loss_and_the_bounds_term(variance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "BOUND", TRAINING)  # both see the same x_t
    schedule, net, x_0 = vp(10), Learned(), images(torch.float32)
    denoiser = Denoiser(net, schedule)
    bound = bounds.vlb(denoiser, x_0, variance=variance, cdf="tanh", seed=3)
    for t in range(10):
        simple = objectives.denoising(denoiser, x_0, t, seed=3, step=t)
        loss = objectives.hybrid(denoiser, x_0, t, variance=variance, weight=0.02, seed=3, step=t)
        expected = simple.detach().double() + 0.02 * 10 * bound.terms[t]
        torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-4, atol=1e-5)
    mixed = objectives.hybrid(denoiser, x_0, torch.tensor([0, 5, 9, 1]), variance=variance, weight=0.02, seed=3, step=4)
    single = [objectives.hybrid(denoiser, x_0, t, variance=variance, weight=0.02, seed=3, step=4) for t in (0, 5, 9, 1)]
    torch.testing.assert_close(mixed, torch.stack([loss[b] for b, loss in enumerate(single)]))


def test_gradients_of_the_hybrid_loss_are_apart() -> None:
    """The bound teaches the variance alone: the mean's gradient is that of the simple loss, the variance's is right."""
    net, x_0, t = Learned(), images(torch.float32), torch.tensor([0, 5, 9, 1])
    denoiser = Denoiser(net, vp(10))

    def loss() -> Tensor:
        return objectives.hybrid(denoiser, x_0, t, weight=0.5, seed=3).mean()

    simple = torch.autograd.grad(objectives.denoising(denoiser, x_0, t, seed=3).mean(), net.mean)[0]
    of_mean, of_spread = torch.autograd.grad(loss(), [net.mean, net.spread])
    torch.testing.assert_close(of_mean, simple, rtol=1e-6, atol=0)
    with torch.no_grad():
        value, step = net.spread.item(), 1e-2
        sides = [loss().double() for side in (1, -1) if net.spread.fill_(value + side * step) is not None]
        net.spread.fill_(value)
    assert float(of_spread) == pytest.approx(float(sides[0] - sides[1]) / (2 * step), rel=2e-3)


def test_wrong_arguments_of_the_hybrid_loss() -> None:
    x_0 = images(torch.float32)
    with pytest.raises(ValueError, match="variance: got 'beta', expected one of learned"):
        objectives.hybrid(Denoiser(Learned(), vp(10)), x_0, 1, variance="beta")
    with pytest.raises(ValueError, match=r"net: got shape \[.*\], expected \[.*\], the mean, then the variance"):
        objectives.hybrid(TWO.denoiser(vp(10)), x_0, 1)
    with pytest.raises(ValueError, match=r"t: got 1\.5, expected whole training steps"):
        objectives.hybrid(Denoiser(Learned(), vp(10)), x_0, 1.5)
