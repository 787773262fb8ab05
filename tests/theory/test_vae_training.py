"""A VAE's loss against the formula written out, its options, its noise, and what it trains."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from ulam import objectives, vae
from ulam_kernels.likelihood import discretised_log_likelihood
from vae_cases import TwoLevels, eps_of, moments, written_out

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("free", [0.0, 0.9, (1.7, 0.0), (0.0, 100.0)])
@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
def test_loss_and_gradients_are_the_formulas(beta: float, free: float | tuple[float, float]) -> None:
    net = TwoLevels().double()
    loss = objectives.elbo(net.model(), X, beta=beta, free_bits=free, samples=2, seed=2, step=7)
    terms = [written_out(net, X, eps_of(7, sample)) for sample in range(2)]
    nll, *kls = (sum(parts) / 2 for parts in zip(*terms, strict=True))
    least = free if isinstance(free, tuple) else (free, free)
    kept = [torch.maximum(kl.mean(), kl.new_tensor(nats)) for kl, nats in zip(kls, least, strict=True)]
    expected = nll.mean() + beta * (kept[0] + kept[1])
    torch.testing.assert_close(loss.mean(), expected, rtol=1e-12, atol=0)
    if not any(least):
        torch.testing.assert_close(loss, nll + beta * (kls[0] + kls[1]), rtol=1e-12, atol=0)
    ours = torch.autograd.grad(loss.mean(), list(net.parameters()), materialize_grads=True)
    theirs = torch.autograd.grad(expected, list(net.parameters()), materialize_grads=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_loop_that_forgets_its_step_cannot_be_written() -> None:
    net = TwoLevels().double()
    with pytest.raises(TypeError, match="step"):
        objectives.elbo(net.model(), X)
    for call in (net.model().elbo, functools.partial(net.model().importance_weighted, samples=2)):
        with pytest.raises(TypeError, match=r"step: got None where the result requires grad, expected .*no_grad\(\)"):
            call(X)
        with torch.no_grad():
            assert torch.equal(call(X).value, call(X, step=0).value)
            assert not torch.equal(call(X).value, call(X, step=1).value)


@pytest.mark.parametrize("as_module", [False, True])
def test_the_decoders_deviation_is_learned(as_module: bool) -> None:
    raw = torch.nn.Parameter(torch.tensor([0.3, 1.5, 1.0]).double())

    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raw = raw

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.raw.expand(len(z), 3)

    net = TwoLevels().double()
    model = net.model(Scale() if as_module else raw)
    loss = objectives.elbo(model, X, seed=2, step=7)
    expected = sum(written_out(net, X, eps_of(7, 0), raw))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (ours,), (theirs,) = (torch.autograd.grad(value.sum(), raw) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    assert any(p is raw for p in model.parameters())
    model = net.float().model(model.scale)
    drawn, mean = (model.sample(4000, seed=1, noise=draw, slots=4000).double() for draw in (True, False))
    assert ((drawn - mean).std(0) / raw.detach() - 1).abs().max() < 4.5 / math.sqrt(2 * 4000)
    with torch.no_grad():
        raw[1] = -0.1
    with pytest.raises(ValueError, match=r"scale: got .* expected positive finite numbers"):
        objectives.elbo(model, X.float(), step=0)


def test_parameters_are_those_of_all_networks_each_once() -> None:
    net, free = TwoLevels(), torch.nn.Parameter(torch.ones(3))
    model = net.model(free)
    assert {id(p) for p in model.parameters()} == {id(p) for p in net.parameters()} | {id(free)}
    assert len(model.parameters()) == len(list(net.parameters())) + 1
    weight, shift, layers = (
        torch.nn.Parameter(torch.ones(3, 2)),
        torch.nn.Parameter(torch.zeros(4)),
        [torch.nn.Linear(3, 4)],
    )
    nested = vae.GaussianVAE(
        lambda z: z @ weight.T, (2,), functools.partial(lambda layers, x: layers[0](x) + shift, layers)
    )
    assert {id(p) for p in nested.parameters()} == {id(p) for p in (weight, shift, *layers[0].parameters())}


def test_importance_weighted_gradients_are_those_of_the_weights() -> None:
    net = TwoLevels().double()
    bound = net.model().importance_weighted(X, samples=3, seed=2, step=1)
    (got,) = torch.autograd.grad(bound.value.sum(), net.out.bias, retain_graph=True)
    share = torch.softmax(bound.log_ratios, 0).detach()
    (expected,) = torch.autograd.grad((share * bound.log_ratios).sum(), net.out.bias)
    torch.testing.assert_close(got, expected)


def test_the_best_decoder_is_the_conditional_mean_and_blurs() -> None:
    """Of 12 points as all data, where E[x | z] is a weighted mean: any other decoder loses |d|^2 / (2 s^2)."""
    points = torch.randn(12, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    towards, std, s = torch.tensor([[1.0], [0.5], [-0.5]]).double(), 0.4, 0.6

    def best(z: torch.Tensor) -> torch.Tensor:
        share = torch.softmax(-(z - (points @ towards).T).square() / (2 * std**2), dim=1)
        return share @ points

    x, drawn = points.repeat(1000, 1), []

    def wave(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z.sin(), z.cos(), torch.ones_like(z)], dim=1)

    def decoder(z: torch.Tensor) -> torch.Tensor:
        drawn.append(z)
        return best(z) + wave(z) * weights

    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    model = vae.GaussianVAE(decoder, (1,), lambda x: moments(x @ towards, std), s)
    loss = objectives.elbo(model, x, step=0)
    parts = [torch.autograd.grad(part.mean(), weights, retain_graph=True)[0] for part in loss.split(600)]
    slopes = torch.stack(parts)
    assert (slopes.mean(0).abs() <= 4 * slopes.std(0) / math.sqrt(len(slopes))).all()  # a minimum
    with torch.no_grad():
        weights += torch.tensor([0.3, -0.2, 0.4])
        moved = wave(drawn[0]) * weights
        excess = objectives.elbo(model, x, step=0) - loss - moved.square().sum(1) / (2 * s**2)
        assert abs(float(excess.mean())) <= 4 * float(excess.std()) / math.sqrt(len(x))
        images = best(drawn[0])
        lacking = x.var(0, correction=0) - images.var(0, correction=0)  # Var x = Var E[x | z] + E Var[x | z]
        within = (images - x).square().mean(0)
        spread = ((images - x).square() - (x.square() - images.square())).std(0) / math.sqrt(len(x))
        assert (lacking - within).abs().le(4 * spread + 1e-3).all() and (lacking > 0.1).all()


@pytest.mark.parametrize("std", [0.001, 0.02, 0.5, 30.0])
def test_the_bins_are_those_of_the_discretised_decoder(std: float) -> None:
    """And its gradients are those of finite differences, out to the tails."""
    x = (torch.arange(256) / 127.5 - 1).double()[:, None]
    at = [x * 0.9 + 0.05 * torch.sin(40 * x), torch.full_like(x, math.log(std))]
    mean, log_std = (part.clone().requires_grad_() for part in at)
    model = vae.GaussianVAE(lambda z: torch.cat([mean, log_std], 1), (1,), lambda x: torch.zeros(256, 2), None, 256)
    found = model.elbo(x, step=0).reconstruction
    torch.testing.assert_close(found, discretised_log_likelihood(x, *at), rtol=1e-9, atol=1e-9)
    fixed = vae.GaussianVAE(lambda z: mean, (1,), lambda x: torch.zeros(256, 2), std, 256)
    torch.testing.assert_close(fixed.elbo(x, step=0).reconstruction, found, rtol=1e-12, atol=1e-12)
    for k, gradient in enumerate(torch.autograd.grad(found.sum(), [mean, log_std])):
        ends = [[part + (h if k == j else 0) for j, part in enumerate(at)] for h in (1e-6, -1e-6)]
        above, below = (discretised_log_likelihood(x, *end) for end in ends)
        expected = (above - below) / 2e-6
        torch.testing.assert_close(gradient[:, 0], expected, rtol=2e-5, atol=1e-7 * (1 + float(expected.abs().max())))
    with pytest.raises(ValueError, match=r"x: got 2 in size, expected numbers in \[-1, 1\], in 256 bins"):
        model.elbo(x * 2, step=0)


def test_a_unit_that_repeats_its_prior_is_inactive_though_its_parent_is_active() -> None:
    prior = lambda z: moments(2 * z, 0.3)  # noqa: E731
    for top, expected in ((lambda x: moments(x[:, :2], 0.5), True), (lambda x: moments(0 * x[:, :2], 1.0), False)):
        levels = [vae.Level((2,), None, top), vae.Level((2,), prior, lambda x, z: prior(z))]
        above, below = vae.HierarchicalVAE(levels, lambda z: z).active_units(X)
        assert above.tolist() == [expected] * 2 and below.tolist() == [False] * 2


@pytest.mark.parametrize("share", [0.9, 1.1])
def test_active_is_the_variance_of_the_mean_without_that_of_the_draws(share: float) -> None:
    """z_1 has mean b x_0 + a z_2 with a wide q(z_2 | x) that depends on x: Var_x E[z_1 | x] = Var(b x_0 + a c x_1)."""
    a, b, c = 1.5, 0.2, 0.3
    top = lambda x: moments(c * x[:, 1:2], 1.0) + torch.cat([0 * x[:, :1], 0.5 * x[:, :1]], 1)  # noqa: E731
    below = lambda x, z: moments(b * x[:, :1] + a * z, 0.5)  # noqa: E731
    levels = [vae.Level((1,), None, top), vae.Level((1,), lambda z: moments(0 * z, 1.0), below)]
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = float((b * x[:, 0] + a * c * x[:, 1]).var())
    _, active = vae.HierarchicalVAE(levels, lambda z: z).active_units(x, threshold=share * exact, samples=400)
    assert active.tolist() == [share < 1]
    q1, q2 = lambda x: moments(b * x[:, :1], 1.2), lambda z: moments(a * z, 0.5)  # bottom-up
    levels = [vae.Level((1,), None, q2), vae.Level((1,), lambda z: moments(0 * z, 1.0), q1)]
    model = vae.HierarchicalVAE(levels, lambda z: z, inference="bottom-up")
    exact = float((a * b * x[:, 0]).var())
    assert model.active_units(x, threshold=share * exact, samples=400)[0].tolist() == [share < 1]
