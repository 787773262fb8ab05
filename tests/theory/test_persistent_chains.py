"""Persistent chains: their laws in training, where they start, what they save, the gradient through their last step."""

from __future__ import annotations

import pytest
import scipy.stats
import torch
from torch.func import functional_call, grad, vmap

from ulam import mcmc, noise
from ulam.ebm import PersistentChains
from ulam.mcmc import HMC, MALA, MALT, MAMS, SGLD, ULA, Energy
from ulam.objectives import contrastive_divergence


def bowl(x):
    return x.flatten(1).square().sum(1) / 2


def examples(count, seed=0):
    """Examples that a chain cannot reach from another: row k holds k."""
    return torch.arange(float(count))[:, None].repeat(1, 2) * 1000


@pytest.mark.parametrize("sampler", [MALA(0.6), HMC(0.5, 3)], ids=repr)
def test_exact_chains_find_the_data_precision_without_bias(sampler):
    """E = a x^2 / 2 on data of variance v: with a Metropolis test the fixed point is 1 / v, whatever the step."""
    log_a, variance = torch.zeros((), requires_grad=True), 0.5
    data = mcmc.Gaussian([0.0], variance).sample(2000).float()
    data *= (variance / data.var(correction=0)).sqrt()
    data -= data.mean()
    chains = PersistentChains(2000, (1,), sampler, restart=0.0, start=data)
    optimizer, found = torch.optim.SGD([log_a], lr=0.2), []

    def energy(x):
        return log_a.exp() * x[:, 0].square() / 2

    for update in range(200):
        negatives = chains.sample(energy, batch=2000, steps=3)
        optimizer.zero_grad()
        contrastive_divergence(energy, data, negatives).backward()
        optimizer.step()
        if update >= 80:
            found.append(float(log_a.exp().detach()))
    assert sum(found) / len(found) == pytest.approx(1 / variance, rel=0.01)


@pytest.mark.parametrize("sampler", [MALA(0.3), HMC(0.3, 3), MALT(0.3, 3), MAMS(0.4, 3)], ids=repr)
def test_metropolis_chains_are_those_of_a_run(sampler):
    chains = PersistentChains(6, (2,), sampler, restart=0.0, seed=9)
    for _ in range(4):
        last = chains.sample(bowl, batch=6, steps=5)
    run = mcmc.run(Energy(bowl), sampler, chains=6, shape=(2,), steps=20, seed=9, progress=False)
    assert torch.equal(last, run.x)


def test_chains_start_from_examples_each_equally_often():
    chains = PersistentChains(6000, (2,), ULA(1e-9), start=examples(7))
    which = (chains.x[:, 0] / 1000).round().long()
    torch.testing.assert_close(chains.x, examples(7)[which])
    assert scipy.stats.chisquare(which.bincount(minlength=7).numpy()).pvalue > 1e-3


def test_restarts_draw_other_examples_and_depend_on_nothing_but_seed_chain_and_clock():
    """All chains restart at every call: the examples that they take are independent of those before."""

    def flat(x):
        return 0 * x[:, 0]

    def course(batch, seed=1, **options):
        chains = PersistentChains(600, (2,), ULA(1e-9), restart=1.0, start=examples(5), seed=seed, **options)
        kept = [chains.x[:, 0].clone()]
        for _ in range(2):
            kept.append(torch.cat([chains.sample(flat, batch=batch, steps=3)[:, 0] for _ in range(600 // batch)]))
        return (torch.stack(kept, 1) / 1000).round().long()

    whole = course(600)
    assert torch.equal(whole, course(100))  # in batches of any size
    assert not torch.equal(whole, course(600, seed=2))
    assert torch.equal(whole[[7, 3]].repeat(300, 1)[:2], course(600, chains=[7, 3, *range(1000, 1598)])[:2])
    pairs = (whole[:, 1] * 5 + whole[:, 2]).bincount(minlength=25)
    assert scipy.stats.chisquare(pairs.numpy()).pvalue > 1e-3


def test_examples_of_other_precision_start_chains_in_float32():
    data = torch.rand(3, 2, dtype=torch.float64)
    chains = PersistentChains(10, (2,), ULA(0.1), start=data)
    assert chains.x.dtype == torch.float32
    assert (torch.cdist(chains.x.double(), data).min(1).values < 1e-6).all()


def test_ranks_share_no_noise_by_default(monkeypatch):
    def first_states(rank):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        return PersistentChains(50, (4,), ULA(0.1), seed=3)

    zero, one = first_states(0), first_states(1)
    assert not torch.isin(zero.x, one.x).any()
    assert torch.equal(one.state_dict()["chain"], noise.examples(50, rank=1))
    assert not torch.isin(zero.sample(bowl, batch=50, steps=1), one.sample(bowl, batch=50, steps=1)).any()
    told = PersistentChains(50, (4,), ULA(0.1), seed=3, chains=noise.examples(50, rank=0))
    assert torch.equal(told.x, first_states(0).x)


@pytest.mark.parametrize("sampler", [ULA(0.1), MALA(0.3), HMC(0.3, 3)], ids=repr)
def test_a_saved_buffer_goes_on_to_the_bit(sampler):
    """Through a file, in the middle of a round, with restarts from examples."""
    options = {"restart": 0.3, "start": examples(4) / 1000, "seed": 2**64 - 1}
    chains, other = (PersistentChains(10, (2,), sampler, **options) for _ in range(2))
    for _ in range(3):
        chains.sample(bowl, batch=4, steps=3)
    saved = chains.state_dict()
    expected = [chains.sample(bowl, batch=4, steps=3) for _ in range(5)]
    assert int(saved["seed"]) == -1 and saved["clock"].tolist() == [6, 6] + [3] * 8
    other.load_state_dict(saved)
    for wanted in expected:
        assert torch.equal(other.sample(bowl, batch=4, steps=3), wanted)


def test_another_seed_or_other_ids_are_refused_with_the_way_out():
    saved = PersistentChains(4, (2,), ULA(0.1), seed=5, chains=[3, 9, 1, 2]).state_dict()
    with pytest.raises(ValueError, match=r"seed: got 5, expected 0 like these chains \(made with seed=int"):
        PersistentChains(4, (2,), ULA(0.1), chains=[3, 9, 1, 2]).load_state_dict(saved)
    with pytest.raises(ValueError, match=r"chain: got 9, expected 4 like these chains \(made with chains=saved"):
        PersistentChains(4, (2,), ULA(0.1), seed=5, chains=[3, 4, 1, 2]).load_state_dict(saved)
    same = PersistentChains(4, (2,), ULA(0.1), seed=int(saved["seed"]), chains=saved["chain"])
    same.load_state_dict(saved)
    assert torch.equal(same.x, saved["x"])
    del saved["seed"]
    with pytest.raises(TypeError, match=r"seed: got NoneType, expected a tensor of torch\.int64"):
        same.load_state_dict(saved)


def test_the_gradient_through_the_last_step_is_that_of_the_step():
    """x' = x - h P a (x - m) + noise: dx'/da = -h P (x - m), dx'/dm = h P a; and the states are the same to the bit."""
    a, m = torch.tensor(1.3, requires_grad=True), torch.tensor(0.4, requires_grad=True)
    h, p = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0])
    sampler = ULA(h, preconditioner=p)

    def energy(x):
        return a * (x - m).square().sum(1) / 2

    before, plain, through = (PersistentChains(4, (2,), sampler, restart=0.0, seed=4) for _ in range(3))
    x = before.sample(energy, batch=4, steps=4)
    last = plain.sample(energy, batch=4, steps=5)
    carried = through.sample(energy, batch=4, steps=5, through_last=True)
    assert torch.equal(carried, last) and torch.equal(through.x, plain.x)
    assert carried.requires_grad and not (last.requires_grad or through.x.requires_grad)
    v = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    in_a, in_m = torch.autograd.grad((carried * v).sum(), (a, m))
    torch.testing.assert_close(in_a, -(v * h[:, None] * p * (x - m)).sum().detach())
    torch.testing.assert_close(in_m, (v * h[:, None] * p * a).sum().detach())
    with torch.no_grad():
        assert not PersistentChains(4, (2,), sampler).sample(energy, batch=4, steps=1, through_last=True).requires_grad


def test_no_gradient_flows_where_a_state_is_clipped():
    a = torch.tensor(1.0, requires_grad=True)
    chains = PersistentChains(200, (1,), ULA(0.5, clip=(-0.5, 0.5)), restart=0.0)
    x = chains.sample(lambda x: a * x[:, 0].square() / 2, batch=200, steps=3, through_last=True)
    (inner,) = torch.autograd.grad(x[x.abs() < 0.5].sum(), a, retain_graph=True)
    (whole,) = torch.autograd.grad(x.sum(), a)
    assert (x.abs() == 0.5).any() and torch.equal(whole, inner) and whole != 0


def test_the_kl_term_is_the_energy_reached_with_parameters_held():
    """d/da of kl mean a x'^2 / 2 with a held outside: kl mean a x' dx'/da; its value is counted too [Du 2021]."""
    a = torch.tensor(1.3, requires_grad=True)

    def energy(x):
        return a * x[:, 0].square() / 2

    data, h, kl = torch.randn(50, 1, generator=torch.Generator().manual_seed(1)), 0.2, 0.7
    before, chains = (PersistentChains(40, (1,), SGLD(h), restart=0.0, seed=4) for _ in range(2))
    x = before.sample(energy, batch=40, steps=2)
    model = chains.sample(energy, batch=40, steps=3, through_last=True)
    without, loss = contrastive_divergence(energy, data, model), contrastive_divergence(energy, data, model, kl=kl)
    torch.testing.assert_close(loss - without, kl * energy(model).mean())
    (plain,), (full,) = torch.autograd.grad(without, a, retain_graph=True), torch.autograd.grad(loss, a)
    torch.testing.assert_close(plain, (data.square().mean() - model.square().mean()).detach() / 2)
    torch.testing.assert_close(full - plain, (kl * (a * model * -h * x).mean()).detach())


def test_the_loss_goes_through_torch_func_compile_and_autocast():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1), torch.nn.Flatten(0))
    data, model = torch.randn(6, 2), torch.randn(6, 2)
    names, parameters = zip(*net.named_parameters(), strict=True)
    wanted = torch.autograd.grad(contrastive_divergence(net, data, model, penalty=0.1), parameters)

    def loss(given, a, b):
        return contrastive_divergence(lambda x: functional_call(net, given, (x,)), a[None], b[None], penalty=0.1)

    each = vmap(grad(loss), in_dims=(None, 0, 0))({n: p.detach() for n, p in net.named_parameters()}, data, model)
    for name, exact in zip(names, wanted, strict=True):
        torch.testing.assert_close(each[name].mean(0), exact)
    carrying = model.clone().requires_grad_()
    compiled = torch.compile(contrastive_divergence, fullgraph=True, backend="aot_eager")
    for options in ({"penalty": 0.1}, {"kl": 0.5}):
        ours, theirs = (f(net, data, carrying, **options) for f in (contrastive_divergence, compiled))
        torch.testing.assert_close(ours, theirs)
        given = (*parameters, carrying) if "kl" in options else parameters
        torch.testing.assert_close(torch.autograd.grad(ours, given), torch.autograd.grad(theirs, given))
    with torch.autocast("cpu", torch.bfloat16):
        rough = contrastive_divergence(net, data, model)
        of_data, of_model = net(data).double().mean(), net(model).double().mean()
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), of_data - of_model, rtol=1e-6, atol=1e-7)  # no further rounding to bf16


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: PersistentChains(4, (2,), ULA(0.1), start=torch.ones(3)),
            "start: got a tensor .*, expected floats, exa",
        ),
        (
            lambda: PersistentChains(4, (2,), ULA(0.1), start=lambda z: z / 0),
            "start: got states that are not finite, expected finite ones",
        ),
        (lambda: PersistentChains(4, (2,), ULA(0.1), start=torch.ones(0, 2)), r"start: got .*, examples \[N, 2\]"),
        (lambda: PersistentChains(4, (2,), ULA(0.1), start=torch.ones(3, 2).long()), "start: got .*, expected floats"),
        (
            lambda: PersistentChains(4, (2,), ULA(0.1), start=torch.ones(3, 2) / 0),
            "start: got numbers that are not fin",
        ),
        (lambda: PersistentChains(4, (2,), ULA(0.1), start=3), "start: got 3, expected examples"),
        (lambda: PersistentChains(4, (2,), ULA(0.1), chains=[1, 2, 3]), "chains: got 3 ids, expected 4"),
        (lambda: PersistentChains(2, (2,), ULA(0.1), chains=[1, 1]), r"chains: got \[1, 1\] with an id twice"),
        (lambda: PersistentChains(4, (2,), ULA(0.1)).load_state_dict(3), "saved: got 3, expected the state_dict"),
        (
            lambda: PersistentChains(4, (2,), MALA(0.1)).sample(bowl, batch=2, steps=1, through_last=True),
            "through_last: got True with MALA, expected ULA or SGLD",
        ),
        (
            lambda: contrastive_divergence(bowl, torch.ones(2, 2), torch.ones(2, 2), kl=1.0),
            "model: got samples without a gradient under kl, expected those of PersistentChains.sample",
        ),
    ],
)
def test_bad_arguments_get_one_clear_line(call, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
