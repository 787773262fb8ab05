"""Training objectives: the fused forward process, and score matching against its identities on Gaussians."""

from __future__ import annotations

import math

import pytest
import torch

import ulam
from ulam import Denoiser, noise, objectives, schedules
from ulam.estimation.forward import add_noise
from ulam.noise import TRAINING

VP = schedules.vp_linear()
T = torch.tensor([0, 250, 999])


# ------------------------------------------------------------------------------------------- the forward process


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("schedule", [VP, schedules.ve(0.01, 50.0), schedules.flow()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_noising_is_its_formula_on_noise_v1(predicts, schedule, dtype) -> None:
    x = torch.randn(3, 2, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    t = T if schedule is VP else torch.tensor([0.05, 0.4, 0.9])
    z = noise.normal((2, 5, 3), seed=7, chains=[4, 9, 2], row=11, stage=TRAINING.stage).double()
    batch = add_noise(x, t, schedule, predicts, seed=7, step=11, chains=[4, 9, 2])
    alpha, sigma = (v.view(3, 1, 1, 1) for v in schedule.levels(t))
    wide = x.double()
    targets = {"eps": z, "x0": wide, "v": alpha * z - sigma * wide, "score": -z / sigma, "flow": z - wide}
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 8e-3}
    assert batch.x_t.dtype == batch.target.dtype == dtype
    torch.testing.assert_close(batch.x_t.double(), alpha * wide + sigma * z, **close)
    torch.testing.assert_close(batch.target.double(), targets[predicts], **close)
    assert batch.t.tolist() == pytest.approx(t.tolist())
    again = add_noise(x[1:2], t[1:2], schedule, predicts, seed=7, step=11, chains=[9])
    assert torch.equal(again.x_t, batch.x_t[1:2]) and torch.equal(again.target, batch.target[1:2])


def test_gradients_flow_to_the_data() -> None:
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    z = torch.randn(3, 2, 4, dtype=torch.float64)

    def both(x: torch.Tensor) -> torch.Tensor:
        batch = add_noise(x, T, VP, "v", noise=z, backend="reference")
        return batch.x_t * 2 + batch.target**2

    assert torch.autograd.gradcheck(both, (x,))


# ------------------------------------------------------------------------------------------------ denoising losses


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "flow", "score"])
def test_weightings_weigh_the_error_of_x0(predicts) -> None:
    schedule, x = schedules.vp_cosine(), torch.randn(3, 2, 5, dtype=torch.float64)
    net = lambda x, t: 0.3 * x + 0.1  # noqa: E731
    t = torch.tensor([20, 400, 900])
    with torch.no_grad():
        batch = add_noise(x, t, schedule, predicts, seed=1, step=3)
        D = ulam.ops.predict_x0(batch.x_t, net(batch.x_t, t), t, schedule, predicts)
    error = (D - x).pow(2).flatten(1).mean(1)
    snr = batch.snr
    denoiser = Denoiser(net, schedule, predicts)
    for weighting, weight in (("snr", snr), ("min-snr", snr.clamp(max=5.0)), ("x0", torch.ones_like(snr))):
        loss = objectives.denoising(denoiser, x, t, weighting=weighting, seed=1, step=3)
        torch.testing.assert_close(loss.double(), weight * error, rtol=1e-4, atol=1e-7)
    simple = objectives.denoising(denoiser, x, t, seed=1, step=3)
    own = (net(batch.x_t, t) - batch.target).pow(2).flatten(1).mean(1)
    torch.testing.assert_close(simple.double(), own, rtol=1e-5, atol=1e-7)


def test_edm_weighting_is_karras_lambda() -> None:
    schedule = schedules.edm()
    x, sigma = torch.randn(3, 2, 5), torch.tensor([0.1, 1.0, 30.0])
    net = lambda x, t: torch.sin(x)  # noqa: E731
    loss = objectives.edm(Denoiser(net, schedule, "raw"), x, sigma, seed=2, step=0)
    noisy = add_noise(x, sigma, schedule, "x0", seed=2, step=0).x_t
    s, data = sigma.view(3, 1, 1), 0.5
    D = data**2 / (s**2 + data**2) * noisy + s * data / (s**2 + data**2).sqrt() * net(
        noisy / (s**2 + data**2).sqrt(), 0
    )
    weight = (sigma**2 + data**2) / (sigma * data) ** 2
    torch.testing.assert_close(loss, weight * (D - x).pow(2).flatten(1).mean(1), rtol=1e-4, atol=1e-5)


def test_the_losses_train_a_network() -> None:
    """For Gaussian data the ideal eps network is linear in x: its slope is found by the simple loss."""
    generator = torch.Generator().manual_seed(0)
    slope = torch.nn.Parameter(torch.zeros(()))
    x = 0.5 * torch.randn(4000, 1, generator=generator)
    t, (alpha, sigma) = 400, (float(v) for v in VP.levels(400))
    optimiser = torch.optim.LBFGS([slope])

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = objectives.denoising(Denoiser(lambda x, t: slope * x, VP), x, t, step=0).mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    ideal = sigma / (alpha**2 * 0.25 + sigma**2)
    assert float(slope.detach()) == pytest.approx(ideal, abs=4 / math.sqrt(4000))


# ------------------------------------------------------------------------------------------------- score matching

MATRIX = torch.tensor(
    [[1.3, 0.4, 0.0], [0.4, 0.9, -0.2], [0.0, -0.2, 0.6]], dtype=torch.float64
)  # precision of the data
N = 40_000


def data(n: int = N) -> torch.Tensor:
    root = torch.linalg.cholesky(torch.linalg.inv(MATRIX))
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ root.T


def wrong(x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    return -x @ W.T


W0 = torch.tensor([[1.0, 0.1, 0.3], [-0.2, 1.4, 0.0], [0.2, 0.1, 0.5]], dtype=torch.float64)


def explicit(W: torch.Tensor) -> torch.Tensor:
    """E|s - grad log p|^2 / 2 for s = -W x and data N(0, P^-1)."""
    off = W - MATRIX
    return (off @ torch.linalg.inv(MATRIX) * off).sum() / 2


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def test_implicit_and_sliced_equal_explicit_up_to_the_known_constant() -> None:
    """The constant is E|grad log p|^2 / 2 = tr(P) / 2 [Hyvarinen 2005]."""
    x, constant = data(), float(MATRIX.trace()) / 2
    expected = float(explicit(W0)) - constant
    losses = {
        "implicit": objectives.implicit_score_matching(lambda x: wrong(x, W0), x),
        "sliced": objectives.sliced_score_matching(lambda x: wrong(x, W0), x, reduced=False, samples=2, step=0),
        "reduced": objectives.sliced_score_matching(lambda x: wrong(x, W0), x, samples=2, step=0),
    }
    for name, loss in losses.items():
        mean, error = mean_and_error(loss.detach())
        assert abs(mean - expected) <= 4 * error, name


SIGMA = 0.5
NOISED = torch.linalg.inv(torch.linalg.inv(MATRIX) + SIGMA**2 * torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "start", [W0, MATRIX, NOISED], ids=["elsewhere", "at the minimiser", "at the noised minimiser"]
)
def test_all_three_have_the_same_gradient_in_expectation(start: torch.Tensor) -> None:
    """In W that of explicit score matching, 0 at the data's precision; denoising has that of the noised density."""
    x, sigma = data(), SIGMA
    clean = (start - MATRIX) @ torch.linalg.inv(MATRIX)
    noisy = (start - NOISED) @ torch.linalg.inv(NOISED)

    def gradient(loss) -> torch.Tensor:
        parts = []
        for part in x.split(N // 40):
            W = start.clone().requires_grad_()
            (found,) = torch.autograd.grad(loss(part, W, len(parts)).mean(), W)
            parts.append(found)
        return torch.stack(parts)

    cases = {
        "implicit": (lambda x, W, _: objectives.implicit_score_matching(lambda x: wrong(x, W), x), clean),
        "sliced": (lambda x, W, k: objectives.sliced_score_matching(lambda x: wrong(x, W), x, step=k), clean),
        "denoising": (
            lambda x, W, k: objectives.denoising_score_matching(
                lambda x, _: wrong(x, W), x, torch.full((len(x),), sigma, dtype=x.dtype), step=k
            ) / sigma**2,
            noisy,
        ),
    }  # fmt: skip
    for name, (loss, expected) in cases.items():
        found = gradient(loss)
        error = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - expected).abs() <= 4.5 * error).all(), name


def test_contrastive_divergence_has_the_gradient_of_the_likelihood() -> None:
    """For E = a |x|^2 / 2 it is E_data|x|^2 / 2 - E_model|x|^2 / 2."""
    a = torch.tensor(0.7, requires_grad=True)
    x, y = torch.randn(50, 3), 2 * torch.randn(60, 3)
    loss = objectives.contrastive_divergence(lambda x: a * x.pow(2).sum(1) / 2, x, y)
    (found,) = torch.autograd.grad(loss, a)
    assert float(found) == pytest.approx(float(x.pow(2).sum(1).mean() - y.pow(2).sum(1).mean()) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda d, x: objectives.denoising(d, x, 5, weighting="best", step=0),
            "weighting: got 'best', expected one of",
        ),
        (lambda d, x: objectives.denoising(d, x, 5.0e9, step=0), "t: got .*, expected numbers in"),
        (lambda d, x: objectives.denoising(d, x, 5, step=0, chains=range(2)), "chains: got 2 ids, expected 3"),
        (lambda d, x: objectives.edm(d, x, 5, step=0), "denoiser: got .*, expected 'raw'"),
        (
            lambda d, x: objectives.denoising_score_matching(d.net, x, torch.ones(2), step=0),
            r"sigma: got shape \[2\], expected \[3\]",
        ),
        (
            lambda d, x: objectives.implicit_score_matching(lambda x: x.sum(1), x),
            r"score: got shape \[3\], expected \[3, 2\] like its input",
        ),
        (lambda d, x: objectives.contrastive_divergence(lambda x: x, x, x), "energy: got energies of shape"),
        (
            lambda d, x: objectives.contrastive_divergence(lambda x: x.sum(1), x, x[:, :1]),
            r"model: got shape \[3, 1\], expected \[B, 2\] like data",
        ),
        (
            lambda d, x: objectives.contrastive_divergence(lambda x: x.sum(1).long(), x, x),
            "energy: got energies of torch.int64, expected floats",
        ),
        (
            lambda d, x: objectives.contrastive_divergence(lambda x: x.sum(1), x, x, penalty=-1.0),
            "penalty: got -1, expected at least 0",
        ),
        (
            lambda d, x: objectives.contrastive_divergence(lambda x: x.sum(1), x, x, kl=-1.0),
            "kl: got -1, expected at least 0",
        ),
        (lambda d, x: add_noise(x.long(), 5, VP, step=0), "x_0: got .*, expected a float tensor"),
        (lambda d, x: add_noise(x, 5, VP, "raw", step=0), "predicts: got 'raw', expected"),
    ],
)
def test_bad_input_is_named(call, named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        call(Denoiser(lambda x, t: x, VP), torch.randn(3, 2))
