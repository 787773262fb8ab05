"""Chains of NUTS that are done leave the batch: fewer gradients, the same bits."""

from __future__ import annotations

import pytest
import torch

from chain_runs import curved, run, same
from ulam import mcmc
from ulam.mcmc import NUTS, live_rows
from ulam.mcmc.live_rows import LiveRows
from ulam.samplers.mcmc import nuts, rows

OPTIONS = {"chains": 40, "shape": (2,), "steps": 5, "warmup": 4, "thin": 1, "adapt": 0.8}


@pytest.fixture
def any_size(monkeypatch):
    """Batches shrink to any number of rows, so that small ones show it."""
    monkeypatch.setattr(live_rows, "MULTIPLE", 1)


def tilted(x, tilt):
    """An energy of each chain's own."""
    return curved(x) + (x * tilt).sum(1)


def tilts(chains=40):
    return torch.linspace(-0.5, 0.5, 2 * chains).view(chains, 2)


class Counted:
    """An energy that notes for how many rows it was called; ``fixed``: it can be called for all of its rows alone."""

    def __init__(self, fixed=None):
        self.fixed, self.sizes = fixed, []

    def __call__(self, x):
        self.sizes.append(len(x))
        return curved(x) if self.fixed is None else tilted(x, self.fixed)


def without_native_trees(patch):
    for module in (nuts, mcmc.trees):
        patch.setattr(module, "bound_trees", lambda state: None)


@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_few_gradients_are_idle_on_the_funnel():
    """Of what a batch spends that waits for its longest path at each transition it spends a sixth."""
    target = mcmc.Funnel(10)
    first = target.sample(1024, seed=1)
    chains = run(target, NUTS(0.3, 8), chains=1024, x_init=first, steps=20, warmup=0, thin=1, launch=False)
    spent, own, in_step = (
        chains.report["gradients"],
        chains.leapfrogs.sum(),
        1024 * chains.leapfrogs.max(0).values.sum(),
    )
    assert own < spent < 1.25 * own and spent < 0.2 * in_step
    whole = 1024 * int(chains.leapfrogs.sum(1).max())  # of a batch that stays whole
    assert spent < 0.3 * whole


@pytest.mark.parametrize("trees", ["native", "torch", "masked"])
@pytest.mark.parametrize("adapt", [None, 0.8, "pooled"])
def test_a_batch_that_shrinks_has_the_bits_of_one_that_stays_whole(trees, adapt, monkeypatch, any_size):
    """Every chain with further arguments of its own, whose rows go along."""
    if trees != "native":
        without_native_trees(monkeypatch)
    if trees == "masked":
        for module in (rows, nuts, mcmc.trees):
            monkeypatch.setattr(module, "finds", lambda where: False)
        monkeypatch.setattr(mcmc.trees, "LOOK", 3)
    options, target = OPTIONS | {"adapt": adapt, "warmup": 24}, mcmc.Energy(tilted, cond={"tilt": tilts()})
    shrinks, whole = (run(target, NUTS(0.3), slots=slots, **options) for slots in (None, 40))
    assert same(shrinks, whole) and torch.equal(shrinks.leapfrogs, whole.leapfrogs)
    assert torch.equal(shrinks.tree_depth, whole.tree_depth)
    spent, stays = shrinks.report["gradients"], whole.report["gradients"]
    assert shrinks.report["leapfrogs"] == whole.report["leapfrogs"] <= spent < stays
    assert stays % 40 == 0
    if adapt == "pooled":
        assert shrinks.tuning.gradients < whole.tuning.gradients


@pytest.mark.parametrize("whole", [{}, {"slots": 40}, {"rows": 8}], ids=str)
def test_a_target_that_rounds_by_its_batch_goes_on_to_the_bit(whole, any_size):
    """A stand-in for products of matrices: off by a thousandth of the rows it is called for. Its batches stay whole."""
    target = mcmc.Energy(lambda x: curved(x) * (1 + 1e-3 * len(x)), rows=whole.get("rows"))
    options = {**OPTIONS, "slots": whole.get("slots")}
    one, first = run(target, NUTS(0.3, 6), **options), run(target, NUTS(0.3, 6), **{**options, "steps": 2})
    resumed = {"resume": first, "steps": 3, "slots": whole.get("slots"), "progress": False}
    second = mcmc.run(target, NUTS(0.3, 6), **resumed)
    assert torch.equal(torch.cat([first.draws, second.draws], 1), one.draws)


def test_products_of_matrices_go_on_to_the_bit():
    weights = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    target = mcmc.Energy(lambda x: torch.tanh(x @ weights).square().sum(1) + x.square().sum(1))
    options = {**OPTIONS, "chains": 128, "shape": (50,)}
    one, first = run(target, NUTS(0.2, 6), **options), run(target, NUTS(0.2, 6), **{**options, "steps": 2})
    second = mcmc.run(target, NUTS(0.2, 6), resume=first, steps=3, progress=False)
    assert torch.equal(torch.cat([first.draws, second.draws], 1), one.draws)


def test_sizes_are_multiples_and_the_rows_beside_those_at_work_are_idle_ones():
    calls = []

    def bind(x, at):
        calls.append(at.tolist())
        return lambda x, wanted: (None, -x)

    target = LiveRows(bind(torch.zeros(100, 1), torch.arange(100)), bind, torch.ones(100, dtype=torch.bool))
    live = torch.arange(100) >= 90
    target.narrow(live, 10)
    assert target.count == 32 and int(target.where.sum()) == 32 and bool(target.where[live].all())
    target(torch.zeros(100, 1), False)
    assert int(target.evaluated.sum()) == 132 and len(calls[1]) == 32 and calls[1] == sorted(calls[1])
    target(torch.zeros(100, 1), False)
    assert int(target.evaluated.sum()) == 32


def test_rows_in_float64_and_atoms_whose_centre_of_mass_is_held(any_size):
    def pair(x):
        return ((x[:, 0] - x[:, 1]).square().sum(1).sqrt() - 1).square() * 8

    for target, sampler, shape, dtype in (
        (mcmc.Energy(curved), NUTS(0.3), (2,), torch.float64),
        (mcmc.Energy(pair), NUTS(0.3, mass=[[1.0], [3.0]], center_of_mass="fixed"), (2, 2), torch.float32),
    ):
        options = OPTIONS | {"shape": shape, "dtype": dtype}
        shrinks, whole = (run(target, sampler, slots=slots, **options) for slots in (None, 40))
        assert same(shrinks, whole) and shrinks.report["gradients"] < whole.report["gradients"]


def test_gradients_are_counted_as_the_target_is_called(any_size):
    for slots in (None, 40):
        energy = Counted()
        chains = run(mcmc.Energy(energy), NUTS(0.3), slots=slots, **OPTIONS | {"adapt": None})
        assert sum(energy.sizes) == 40 + chains.report["gradients"]  # and once where the chains begin
        fewer = [size for size in energy.sizes if size < 40]
        assert fewer == sorted(fewer, reverse=True)
        assert len(set(fewer)) > 2 if slots is None else not fewer


def test_the_windows_of_a_warm_up_shrink_and_begin_whole(any_size):
    energy = Counted()
    chains = run(mcmc.Energy(energy), NUTS(), **OPTIONS | {"adapt": None, "warmup": 40})
    grown = sum(after > before for before, after in zip(energy.sizes, energy.sizes[1:], strict=False))
    assert grown >= 2 and {*energy.sizes} > {40}
    run_alone = int(chains.leapfrogs.sum())
    assert chains.tuning.gradients + run_alone <= sum(energy.sizes) - 40


def test_a_target_that_wants_all_rows_gets_them(any_size):
    """It refers to a tensor with a row for each chain that is no further argument."""
    energy = Counted(tilts())
    kept = run(mcmc.Energy(energy), NUTS(0.3), **OPTIONS)
    given = run(mcmc.Energy(tilted, cond={"tilt": tilts()}), NUTS(0.3), **OPTIONS)
    assert same(kept, given) and sum(size < 40 for size in energy.sizes) == 1
    assert kept.report["gradients"] == 40 * int(energy.sizes.count(40) - 1)


def test_an_error_for_fewer_rows_is_raised_where_the_target_has_been_called_for_fewer(any_size):
    def energy(x):
        calls.append(len(x))
        if len(x) < 40 and calls.count(len(x)) == 2:
            raise RuntimeError("the second time")
        return curved(x)

    calls = []
    with pytest.raises(RuntimeError, match="the second time"):
        run(mcmc.Energy(energy), NUTS(0.3), **OPTIONS)


@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_a_model_is_checked_where_chains_start_and_not_again(any_size):
    """Proposals far out, where the scale of a Normal underflows, would not pass its checks."""

    def log_prob(scale):
        seen.append(torch.distributions.Distribution._validate_args)
        return torch.distributions.Normal(0.0, scale).log_prob(torch.tensor(1.0)) - scale

    seen = []
    model = mcmc.Model(log_prob, {"scale": mcmc.Positive(())})
    chains = run(model, NUTS(2.0), chains=40, steps=5, warmup=0, thin=1)
    assert seen.count(True) == 1 and seen[0] and chains.report["gradients"] % 40


def test_rows_left_out_keep_what_they_had(any_size):
    bound = []

    def bind(x, at):
        bound.append(at.tolist())
        return lambda x, wanted: (x[:, 0].double() if wanted else None, -x)

    target = LiveRows(bind(torch.zeros(8, 1), torch.arange(8)), bind, torch.ones(8, dtype=torch.bool))
    x = torch.arange(8.0)[:, None]
    target.narrow(x[:, 0] > 1, 6)
    energy, score = target(x, True)
    assert energy.tolist() == [0, 0, 2, 3, 4, 5, 6, 7] and target.count == 6
    assert score[:, 0].tolist() == [0, 0, -2, -3, -4, -5, -6, -7]
    for live, count in ((x[:, 0] > 2, 5), (x[:, 0] > 7, 0)):
        target.narrow(live, count)
    assert target.count == 6, "of 5 it is not worth it, and none is not called"
    target.narrow(x[:, 0] > 4, 3)
    energy, score = target(10 * x, True)
    assert energy.tolist() == [0, 0, 2, 3, 4, 50, 60, 70] and target.where.tolist() == 5 * [False] + 3 * [True]
    assert target(x, False)[0] is None
    target.widen()
    assert target(x, True)[0].tolist() == x[:, 0].tolist() and target.count == 8 and bool(target.where.all())
    assert bound == [[*range(8)], [2, 3, 4, 5, 6, 7], [5, 6, 7]]


@pytest.mark.parametrize("sampler", [NUTS(0.3), mcmc.HMC(0.3, 3)], ids=["NUTS", "HMC"])
def test_a_target_called_for_few_rows_at_a_time(sampler):
    """Pieces have their rows' further arguments, and the bits of one batch; also where a score is given."""
    sizes, options = set(), OPTIONS | {"chains": 41, "adapt": None}

    def energy(x, tilt):
        sizes.add(len(x))
        return tilted(x, tilt)

    cond = {"tilt": tilts(41)}
    whole = run(mcmc.Energy(energy, cond=cond), sampler, slots=41, **options)
    assert sizes == {41} and not sizes.clear()
    pieces = run(mcmc.Energy(energy, cond=cond, rows=8), sampler, **options)
    assert sizes == {8} and same(pieces, whole)
    given = [run(mcmc.Energy(curved, lambda x: -x, rows=rows), sampler, **options) for rows in (None, 7)]
    assert same(*given)


def test_a_chain_in_pieces_has_the_same_bits_in_any_company_whatever_a_target_rounds():
    """Of a matrix product with the batch's size in its last bits."""

    def rounds(x):
        return curved(x) * (1 + len(x) / 1e6)

    options = OPTIONS | {"adapt": 0.8}
    many, alone = (run(mcmc.Energy(rounds, rows=8), NUTS(0.3), **options | {"chains": n}) for n in (40, [5]))
    assert same(alone, many, slice(5, 6))
    many, alone = (run(mcmc.Energy(rounds), NUTS(0.3), **options | {"chains": n}) for n in (40, [5]))
    assert not same(alone, many, slice(5, 6))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_a_chain_in_whole_vectors_has_the_same_bits_in_any_company(dims):
    """Of cosh, which torch rounds by the place in a batch on some processors."""
    options = OPTIONS | {"shape": (dims,)}
    target = mcmc.Energy(lambda x: torch.cosh(x).sum(1), rows=32)
    many = run(target, NUTS(0.3), **options)
    for chain in (0, 19, 39):
        assert same(run(target, NUTS(0.3), **options | {"chains": [chain]}), many, slice(chain, chain + 1))


@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_a_model_in_pieces():
    """Of functions that torch rounds alike in any batch: not cosh, in AVX2."""

    def log_prob(a, b):
        sizes.append(None if a.dim() == 0 else len(a))
        return -(a**2).sum(-1) - torch.exp(b).sum(-1) if a.dim() > 1 else -(a**2).sum() - torch.exp(b).sum()

    sizes, parameters = [], {"a": mcmc.Real((2,)), "b": mcmc.Positive((1,))}
    runs = [
        run(mcmc.Model(log_prob, parameters, batched=batched, rows=rows), NUTS(0.3), chains=20)
        for batched in (False, True)
        for rows in (None, 6)
    ]
    assert all(same(runs[0], other) for other in runs[1:])


@pytest.mark.parametrize("rows", [0, -1, 1 << 21])
def test_rows_out_of_range(rows):
    with pytest.raises(ValueError, match=f"rows: got {rows}, expected 1 to 1048576, or None"):
        mcmc.Energy(curved, rows=rows)
