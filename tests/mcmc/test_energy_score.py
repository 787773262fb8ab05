"""Energy.score: minus the gradient of the energy, differentiable in x and in parameters, wherever torch goes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, vmap

import ulam
from network_zoo import Square
from ulam import mcmc, objectives
from ulam.mcmc import Energy

X = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def quartic(x):
    return (x**4).sum(1) / 4 + x[:, 0] * x[:, 1] ** 2


def exact(x):
    """-grad of the quartic, by hand."""
    return -torch.stack([x[:, 0] ** 3 + x[:, 1] ** 2, x[:, 1] ** 3 + 2 * x[:, 0] * x[:, 1]], 1)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)).double()


def test_a_score_is_minus_the_gradient_and_carries_no_graph_of_its_own():
    score = Energy(quartic).score(X)
    torch.testing.assert_close(score, exact(X), rtol=1e-14, atol=1e-14)
    assert not score.requires_grad
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(Energy(quartic).score(X.clone()), score)
    with torch.inference_mode():
        inside = X.clone()
    assert torch.equal(Energy(quartic).score(inside), score)


def test_at_a_mode_and_for_no_rows_it_carries_no_graph_either():
    """Where every number of it is 0, autograd judges whether the energy has a gradient at all."""
    weight = torch.tensor(2.0, requires_grad=True)
    for x in (torch.zeros(3, 2), torch.zeros(0, 2)):
        assert not Energy(lambda x: x.square().sum(1)).score(x).requires_grad
        assert Energy(lambda x: weight * x.square().sum(1)).score(x).requires_grad


def test_it_is_the_score_that_chains_see_and_log_prob_is_minus_the_energy():
    energy = Energy(network())
    seen, score = energy.bind(X, torch.arange(6), 6, None)(X, True)
    torch.testing.assert_close(energy.score(X).detach(), score)
    torch.testing.assert_close(-energy.log_prob(X).detach(), seen)
    assert torch.equal(energy(X), -energy.log_prob(X))


def test_derivatives_in_x_of_any_order_are_exact():
    x = X.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(Energy(quartic).score, x)
    jacobian = vmap(jacrev(lambda row: Energy(quartic).score(row[None])[0]))(X)
    a, b = X.unbind(1)
    by_hand = -torch.stack([torch.stack([3 * a**2, 2 * b], 1), torch.stack([2 * b, 3 * b**2 + 2 * a], 1)], 1)
    torch.testing.assert_close(jacobian, by_hand)
    torch.testing.assert_close(vmap(jacfwd(lambda row: Energy(quartic).score(row[None])[0]))(X), by_hand)


def test_parameters_get_the_gradient_of_a_loss_of_the_score():
    """E = a |x|^2 / 2: implicit score matching is a^2 |x|^2 / 2 - a d, its derivative a |x|^2 - d."""
    a = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    energy = Energy(lambda x: a * x.square().sum(1) / 2)
    losses = objectives.implicit_score_matching(energy.score, X)
    torch.testing.assert_close(losses.detach(), (1.7**2 * X.square().sum(1) / 2 - 1.7 * 2))
    (slope,) = torch.autograd.grad(losses.sum(), a)
    torch.testing.assert_close(slope, (1.7 * X.square().sum(1) - 2).sum())


def test_gradients_for_each_example_by_torch_func_equal_those_of_autograd():
    net = network()
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(given, row):
        return Energy(lambda x: functional_call(net, given, (x,))).score(row[None]).square().sum()

    per_example = vmap(grad(loss), in_dims=(None, 0))(parameters, X)
    for k in range(len(X)):
        net.zero_grad()
        Energy(net).score(X[k : k + 1]).square().sum().backward()
        for name, value in net.named_parameters():
            torch.testing.assert_close(per_example[name][k], value.grad if value.grad is not None else 0 * value)


def test_it_compiles_in_one_graph_with_its_gradient():
    net = network()
    compiled = torch.compile(Energy(net).score, fullgraph=True, backend="aot_eager")
    score = compiled(X)
    torch.testing.assert_close(score, Energy(net).score(X))
    wanted = torch.autograd.grad(Energy(net).score(X).square().sum(), list(net.parameters())[:3])
    torch.testing.assert_close(torch.autograd.grad(score.square().sum(), list(net.parameters())[:3]), wanted)


def test_functions_that_only_autograd_takes_are_differentiated_by_it():
    x = X.clone().requires_grad_()
    score = Energy(lambda x: Square.apply(x).sum(1)).score(x)
    (slope,) = torch.autograd.grad(score.sum(), x)
    assert torch.equal(score.detach(), -2 * X) and torch.equal(slope, torch.full_like(X, -2.0))


def test_further_arguments_and_a_given_score_are_used():
    centre = torch.arange(6.0, dtype=torch.float64)[:, None]
    energy = Energy(lambda x, c: (x - c).square().sum(1) / 2, cond={"c": centre})
    torch.testing.assert_close(energy.score(X), centre - X)
    assert torch.equal(Energy(quartic, score=lambda x: 7 * x).score(X), 7 * X)
    with pytest.raises(ValueError, match=r"cond\['c'\]: got shape \[6, 1\], expected 4 chains"):
        energy.score(X[:4])


def test_autocast_gives_scores_in_the_precision_of_x():
    net = network().float()
    with torch.autocast("cpu", torch.bfloat16):
        score = Energy(net).score(X.float())
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, Energy(net).score(X.float()), rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x.detach().sum(1), "fn: got an energy without a gradient in x"),
        (lambda x: torch.from_numpy(x.detach().numpy()).sum(1), "fn: got an energy without a gradient in x"),
        (lambda x: torch.ones(6, requires_grad=True) * 2, "fn: got an energy without a gradient in x"),
        (lambda x: x.sum(), r"fn: got energies of shape \[\], expected \[6\], one number a chain"),
        (lambda x: x.sum(1).long(), "fn: got energies of torch.int64, expected floats"),
        (lambda x: 3.0, r"fn: got float, expected energies \[6\]"),
    ],
)
@pytest.mark.parametrize("recorded", [False, True])
def test_energies_that_hide_x_or_have_the_wrong_shape_are_refused(fn, message, recorded):
    with torch.set_grad_enabled(recorded), pytest.raises((TypeError, ValueError), match=message) as caught:
        Energy(fn).score(X)
    assert "\n" not in str(caught.value)


def test_hidden_energies_are_refused_inside_transforms_too():
    with pytest.raises(TypeError, match="fn: got an energy without a gradient in x"):
        grad(lambda x: Energy(lambda x: x.detach().sum(1)).score(x).sum())(X)


@pytest.mark.parametrize("x", [3.0, torch.ones(2, 2, dtype=torch.int64), torch.tensor(1.0), None])
def test_states_that_are_none_are_refused(x):
    for call in (Energy(quartic), Energy(quartic).score, Energy(quartic).log_prob):
        with pytest.raises((TypeError, ValueError), match=r"x: got .*, expected a"):
            call(x)


def test_score_matching_through_the_energy_fits_a_gaussian():
    """Denoising score matching of E = a x^2 / 2 + b x on N(m, v) data: the noised law's precision and mean."""
    data = mcmc.Gaussian([0.8], 0.5).sample(4000, seed=1)
    a, b = (torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(2))
    energy = ulam.Energy(lambda x: a * x[:, 0].square() / 2 + b * x[:, 0])
    sigma = torch.full((4000,), 0.5, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([a, b], max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objectives.denoising_score_matching(lambda x, _: energy.score(x), data, sigma, seed=3, step=0).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    a, b = a.detach(), b.detach()
    assert float(a) == pytest.approx(1 / 0.75, rel=0.1)
    assert float(-b / a) == pytest.approx(0.8, abs=0.05)
