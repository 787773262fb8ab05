"""Models: the density that chains see is that of the parameters, Jacobians included, and the laws come out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import (
    Beta,
    Dirichlet,
    Gamma,
    LKJCholesky,
    Normal,
    TransformedDistribution,
    biject_to,
    constraints,
)

import ulam
from chain_laws import within
from chain_runs import SAMPLERS, run, same
from ulam import mcmc
from ulam.mcmc import (
    HMC,
    NUTS,
    CorrelationCholesky,
    Interval,
    Model,
    Ordered,
    Parameter,
    Positive,
    Real,
    Simplex,
    UnitInterval,
)

F64 = torch.float64
KINDS = {
    "Real": Real((2,)), "Positive": Positive((2, 2)), "UnitInterval": UnitInterval((3,)), "Interval": Interval(-2, 5),
    "Simplex": Simplex(4), "Ordered": Ordered(4), "CorrelationCholesky": CorrelationCholesky(3),
    "less than": Parameter((2,), constraints.less_than(3.0)), "simplices": Parameter((2, 3), constraints.simplex),
}  # fmt: skip


def one(**parameters):
    """A function of any parameters, for models whose density does not matter."""
    return sum((x.sum() for x in parameters.values()), torch.zeros((), dtype=F64))


def points(n, rows=5, seed=0):
    return torch.randn(rows, n, dtype=F64, generator=torch.Generator().manual_seed(seed))


def coordinates(kind, x):
    """Of a parameter [B, *shape] the elements that the density is in, [B, free]."""
    if kind in ("Simplex", "simplices"):
        x = x[..., :-1]
    if kind == "CorrelationCholesky":
        below = torch.tril_indices(3, 3, -1)
        return x[:, below[0], below[1]]
    return x.reshape(len(x), -1)


@pytest.mark.parametrize("kind", KINDS)
def test_jacobians_are_those_of_finite_differences(kind):
    layout = Model(one, {"x": KINDS[kind]}).layout
    y, h = points(layout.size), 1e-5
    found, log_det = layout.constrain_with_log_det(y)
    assert bool(KINDS[kind].constraint.check(found["x"]).all())
    columns = []
    for k in range(layout.size):
        ahead, behind = y.clone(), y.clone()
        ahead[:, k] += h
        behind[:, k] -= h
        columns.append(
            coordinates(kind, layout.constrain(ahead)["x"]) - coordinates(kind, layout.constrain(behind)["x"])
        )
    expected = torch.linalg.slogdet(torch.stack(columns, 2) / (2 * h)).logabsdet
    torch.testing.assert_close(log_det, expected, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(layout.unconstrain(found), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        ("Real", Normal(torch.tensor([0.3, 1.0], dtype=F64), 2.0).expand([2])),
        ("Positive", Gamma(torch.full((2, 2), 3.0, dtype=F64), 2.0)),
        ("UnitInterval", Beta(torch.tensor([2.0, 1.0, 0.5], dtype=F64), 5.0)),
        ("Simplex", Dirichlet(torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=F64))),
        ("simplices", Dirichlet(torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 0.5]], dtype=F64))),
        ("CorrelationCholesky", LKJCholesky(3, torch.tensor(2.0, dtype=F64))),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_log_densities_are_those_of_transformed_distributions(kind, law, batched):
    parameter = KINDS[kind]

    def log_prob(x):
        every = law.log_prob(x)
        return every.flatten(1).sum(1) if batched and every.dim() > 1 else every if batched else every.sum()

    model = Model(log_prob, {"x": parameter}, batched=batched)
    y = points(model.layout.size, seed=1).requires_grad_()
    moved = TransformedDistribution(law, [parameter.transform.inv])
    expected = moved.log_prob(y.view(5, *parameter.free_shape)).reshape(5, -1).sum(1)
    torch.testing.assert_close(model.log_prob(y), expected)
    (gradient,) = torch.autograd.grad(expected.sum(), y)
    torch.testing.assert_close(model.score(y.detach()), gradient)
    energy, score = model.bind(y, torch.arange(5), 5, None)(y.detach(), True)
    torch.testing.assert_close((energy, score), (-expected.detach(), gradient))


def mixed(g, b, u, p, L, o):
    """Independent laws, one for every kind."""
    return (
        Gamma(3.0, 2.0).log_prob(g)
        + Beta(2.0, 5.0).log_prob(b)
        + Beta(2.0, 2.0).log_prob((u + 2) / 7)
        + Dirichlet(torch.tensor([1.0, 2.0, 3.0], dtype=g.dtype)).log_prob(p)
        + LKJCholesky(3, 2.0).log_prob(L)
        + Normal(0.0, 1.0).log_prob(o).sum()
    )


MIXED = {
    "g": Positive(), "b": UnitInterval(), "u": Interval(-2, 5), "p": Simplex(3), "L": CorrelationCholesky(3),
    "o": Ordered(3),
}  # fmt: skip


def test_a_vector_may_be_told_by_its_length():
    assert mcmc.Real(2) == mcmc.Real((2,)) and mcmc.Positive(3).shape == (3,)
    for shape in (True, 2.0, "2"):
        with pytest.raises(TypeError, match=r"^shape: got "):
            mcmc.Real(shape)


@pytest.mark.parametrize(
    ("sampler", "warmup", "steps"), [(NUTS(0.35), 12, 16), (HMC(0.3, leapfrog=6), 30, 40)], ids=["NUTS", "HMC"]
)
def test_every_kind_of_parameter_has_its_law(sampler, warmup, steps):
    """Means over 128 independent chains, within 4 standard errors of closed forms."""
    model = Model(mixed, MIXED, dtype=F64)
    options = {"chains": 128, "warmup": warmup, "steps": steps, "seed": 5, "progress": False}
    chains = mcmc.run(model, sampler, x_init=torch.zeros(128, *model.shape), **options)
    drawn = {name: x.double() for name, x in chains.parameters.items()}
    r = drawn["L"] @ drawn["L"].mT
    # Marginals of LKJ(2) in 3 dimensions are Beta(2.5, 2.5) on (-1, 1) [Lewandowski 2009]: variance 1 / 6.
    expected = {
        "E g": (drawn["g"], 1.5), "E g^2": (drawn["g"] ** 2, 3.0), "E b": (drawn["b"], 2 / 7),
        "E b^2": (drawn["b"] ** 2, 2 * 3 / (7 * 8)), "E u": (drawn["u"], 1.5),
        "E u^2": (drawn["u"] ** 2, 1.5**2 + 49 / 20), "E p_1": (drawn["p"][..., 0], 1 / 6),
        "E p_3": (drawn["p"][..., 2], 1 / 2),
        "E p_3^2": (drawn["p"][..., 2] ** 2, 3 * 4 / (6 * 7)), "E r_21": (r[..., 1, 0], 0.0),
        "E r_21^2": (r[..., 1, 0] ** 2, 1 / 6), "E r_32^2": (r[..., 2, 1] ** 2, 1 / 6),
        "E o_1": (drawn["o"][..., 0], -1.5 / math.sqrt(math.pi)), "E o_2": (drawn["o"][..., 1], 0.0),
        "E o_3": (drawn["o"][..., 2], 1.5 / math.sqrt(math.pi)),
    }  # fmt: skip
    for name, (values, mean) in expected.items():
        assert within(values.mean(1), mean), name


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_a_chain_are_those_of_it_alone(kind, dtype):
    """torch's own sigmoid and softplus round otherwise at the end of a batch than within."""
    model = Model(one, {"x": KINDS[kind]}, dtype=dtype)
    y = 3 * points(model.layout.size, rows=101).float()
    energy, score = model.bind(y, torch.arange(101), 101, None)(y, True)
    x = model.constrain(y)["x"]
    for k in range(101):
        row = y[k : k + 1]
        alone = model.bind(row, torch.arange(1), 1, None)(row, True)
        assert torch.equal(alone[0], energy[k : k + 1]) and torch.equal(alone[1], score[k : k + 1])
        assert torch.equal(model.constrain(row)["x"], x[k : k + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_bijections_are_those_of_torch_with_their_derivatives_also_at_zero_and_far_out(kind):
    parameter = KINDS[kind]
    theirs = biject_to(parameter.constraint)
    for place in (0.0, 1.0, -1.0, 8.0, -8.0):
        y = torch.full((1, *parameter.free_shape), place, dtype=F64, requires_grad=True)
        found = []
        for transform in (parameter.transform, theirs):
            x = transform(y)
            log_det = transform.log_abs_det_jacobian(y, x)
            weights = torch.arange(1.0, x.numel() + 1, dtype=F64).view(x.shape)
            found += [x, log_det, *torch.autograd.grad((x * weights).sum(), y, retain_graph=True)]
            if abs(place) < 2:
                found += torch.autograd.grad(log_det.sum(), y) if log_det.requires_grad else [torch.zeros_like(y)]
        half = len(found) // 2
        for ours, expected in zip(found[:half], found[half:], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def schools(mu, tau, eta):
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    std = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    prior = Normal(0.0, 5.0).log_prob(mu) + Normal(0.0, 5.0).log_prob(tau) + Normal(0.0, 1.0).log_prob(eta).sum()
    return prior + Normal(mu + tau * eta, std).log_prob(y).sum()


SCHOOLS = {"mu": Real(), "tau": Positive(), "eta": Real((8,))}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=[f"{k}-{type(s).__name__}" for k, s in enumerate(SAMPLERS)])
def test_a_chain_keeps_its_bits_in_any_company_and_goes_on_as_in_one_run(sampler):
    model = Model(schools, SCHOOLS)
    together = run(model, sampler)
    assert same(run(model, sampler, chains=[4]), together, slice(4, 5))
    first = run(model, sampler, steps=6, thin=1)
    rest = run(model, sampler, steps=6, thin=1, resume=first, warmup=0, chains=None, seed=None)
    whole = run(model, sampler, steps=12, thin=1)
    assert torch.equal(torch.cat([first.draws, rest.draws], 1), whole.draws)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=[f"{k}-{type(s).__name__}" for k, s in enumerate(SAMPLERS)])
def test_states_in_float64_go_where_those_in_float32_go(sampler):
    """The noise is the same: 12 steps take both to the same places, to the rounding of float32."""
    model = Model(schools, SCHOOLS)
    wide, plain = run(model, sampler, dtype=F64), run(model, sampler)
    assert wide.draws.dtype == wide.parameters["tau"].dtype == wide.x.dtype == F64
    torch.testing.assert_close(wide.draws.float(), plain.draws, rtol=1e-3, atol=1e-3)
    assert not torch.equal(wide.draws, wide.draws.float().double())


@pytest.mark.parametrize("sampler", [mcmc.MALA(0.4), HMC(0.4, 3), NUTS(0.5)], ids=["MALA", "HMC", "NUTS"])
def test_a_target_in_float64_decides_as_if_no_constant_were_added(sampler):
    """10^7 in float32 leaves steps of 1: the Metropolis test of a float32 energy sees nothing below."""

    def quartic(x):
        return (x**4).sum(1) / 4

    def far(x):
        return quartic(x) + 1e7

    options = {"steps": 40, "chains": 16, "shape": (2,)}
    exact = run(mcmc.Energy(quartic, dtype=F64), sampler, **options)
    shifted = run(mcmc.Energy(far, dtype=F64), sampler, **options)
    assert torch.equal(shifted.draws, exact.draws) and shifted.draws.dtype == torch.float32
    torch.testing.assert_close(shifted.energies - 1e7, exact.energies, rtol=0, atol=1e-8)
    with pytest.warns(RuntimeWarning, match="energies near 1e"):
        coarse = run(mcmc.Energy(far), sampler, **options)
    assert not torch.equal(coarse.draws, exact.draws)


def test_energies_in_float64_are_of_the_states_as_they_are():
    seen = []

    def fn(x):
        seen.append(x.dtype)
        return x.square().sum(1) / 2

    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    exact = x.double().square().sum(1) / 2
    for energy in (ulam.Energy(fn, dtype=F64), ulam.Energy(fn, score=lambda x: -x, dtype=F64)):
        found, score = energy.bind(x, torch.arange(7), 7, None)(x, True)
        assert torch.equal(found, exact) and torch.equal(score, -x) and score.dtype == torch.float32
        assert torch.equal(energy(x), exact) and torch.equal(energy.score(x), -x)
        assert energy.score(x).dtype == torch.float32
    assert set(seen) == {F64}


def test_both_forms_of_a_log_density_give_the_same_draws():
    def batched(mu, tau, eta):
        return torch.stack([schools(*of_one) for of_one in zip(mu, tau, eta, strict=True)])

    one_at_a_time, all_at_once = Model(schools, SCHOOLS), Model(batched, SCHOOLS, batched=True)
    x = points(10, rows=6)
    torch.testing.assert_close(one_at_a_time.log_prob(x), all_at_once.log_prob(x))
    torch.testing.assert_close(one_at_a_time.score(x), all_at_once.score(x))
    torch.testing.assert_close(run(one_at_a_time, HMC(0.4, 3)).draws, run(all_at_once, HMC(0.4, 3)).draws)


def test_scores_are_differentiable_and_go_through_torch_func():
    model = Model(schools, SCHOOLS)
    x = points(10, rows=2).requires_grad_()
    assert torch.autograd.gradcheck(model.score, x, rtol=1e-2, atol=1e-5)
    hessian = torch.func.vmap(torch.func.jacrev(lambda row: model.score(row[None])[0]))(x.detach())
    torch.testing.assert_close(hessian, hessian.mT)
    assert np.isfinite(hessian.numpy()).all()


def test_a_module_is_called_in_eval_mode_by_its_forward():
    class LogProb(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.9)

        def forward(self, z):
            return -self.dropout(z).square().sum() / 2

    module = LogProb()
    chains = run(Model(module, {"z": Real((2,))}), mcmc.MALA(0.3))
    plain = run(Model(lambda z: -z.square().sum() / 2, {"z": Real((2,))}), mcmc.MALA(0.3))
    assert torch.equal(chains.draws, plain.draws) and module.training
