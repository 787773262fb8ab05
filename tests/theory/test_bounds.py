"""The variational bound against openai/guided-diffusion and closed forms on Gaussians and mixtures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from bound_cases import FP64, GAUSSIAN, TWO, Mixture, Tensor, images, vp, with_variance
from ulam import Denoiser, bounds, schedules
from ulam.estimation.forward import add_noise
from ulam.noise import BOUND, normal_for


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
    with pytest.raises(ValueError, match=r"x_0: got numbers that are not finite"):
        bounds.vlb(denoiser, torch.full_like(x_0, torch.nan))
    with pytest.raises(ValueError, match=r"schedule: got .*, expected a vp schedule"):
        bounds.vlb(TWO.denoiser(schedules.flow(), "flow"), x_0)
