"""The No-U-Turn sampler: its trees against a recursion written from the papers, its law, its bits, its gradients."""

from __future__ import annotations

import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch

import nuts_recursion
from archives import arrays
from chain_laws import COVARIANCE, MEAN, check_law, gaussian, within
from chain_runs import curved, run, same
from ulam import ebm, mcmc
from ulam.cli.main import main
from ulam.mcmc import NUTS, live_rows
from ulam.mcmc.adaptation import DualAveraging, DualAveragingEach
from ulam.mcmc.batch import ChainBatch
from ulam.mcmc.trees import TreeBatch
from ulam.samplers.mcmc import nuts, rows

RUNNING = sys.modules["ulam.mcmc.run"]  # the module; ulam.mcmc.run is the function
A = np.linalg.inv([[1.0, 0.95], [0.95, 1.0]])


def funnel(x):
    return x[0] ** 2 / 18 + (len(x) - 1) / 2 * x[0] + np.exp(-x[0]) * np.sum(x[1:] ** 2) / 2


def funnel_gradient(x):
    rest = np.exp(-x[0]) * x[1:]
    return np.concatenate([[x[0] / 9 + (len(x) - 1) / 2 - x[1:] @ rest / 2], rest])


def banana(x):
    return 5 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2 / 20


def banana_gradient(x):
    return np.array([-20 * x[0] * (x[1] - x[0] ** 2) - (1 - x[0]) / 10, 10 * (x[1] - x[0] ** 2)])


CORRELATED = mcmc.Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64))
BOWL = (lambda x: x @ A @ x / 2), (lambda x: A @ x)
FUNNEL, BANANA = (funnel, funnel_gradient), (banana, banana_gradient)
WEIGHED = {"temperature": 2.0, "preconditioner": [1.0, 4.0]}
RECURSIONS = {
    "gaussian": (CORRELATED, BOWL, 0.1, {}),
    "funnel": (mcmc.Funnel(4), FUNNEL, 0.3, {}),
    "funnel, divergent": (mcmc.Funnel(4), FUNNEL, 3.0, {}),
    "banana": (mcmc.Rosenbrock(2), BANANA, 0.15, {}),
    "banana, shallow": (mcmc.Rosenbrock(2), BANANA, 0.02, {"max_depth": 3}),
    "banana, weighed": (mcmc.Rosenbrock(2), BANANA, 0.1, WEIGHED),
}


@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
@pytest.mark.parametrize("name", RECURSIONS)
def test_trees_are_those_of_the_recursion(name):
    """State, depth, leapfrog steps, divergence and acceptance of every transition, each from where the run was."""
    target, (energy, gradient), step, settings = RECURSIONS[name]
    start = target.sample(6, seed=2)
    options = {"chains": [0, 1, 2, 5, 7, 1 << 40], "steps": 12, "warmup": 0, "thin": 1, "dtype": torch.float64}
    chains = run(target, NUTS(step, **settings), x_init=start, seed=3, first_step=4, **options)
    given = {"inverse_mass" if name == "preconditioner" else name: value for name, value in settings.items()}
    given = {name: np.array(value) if isinstance(value, list) else value for name, value in given.items()}
    recursion = nuts_recursion.Recursion(energy, gradient, step, seed=3, **given)
    depths = set()
    for row, chain in enumerate(chains.ids.tolist()):
        path = [start[row], *chains.draws[row]]
        made = [recursion.transition(x.numpy(), chain, 4 + k) for k, x in enumerate(path[:-1])]
        np.testing.assert_allclose(np.stack([t.x for t in made]), chains.draws[row].numpy(), rtol=1e-9, atol=1e-11)
        assert [t.depth for t in made] == chains.tree_depth[row].tolist()
        assert [t.leaps for t in made] == chains.leapfrogs[row].tolist()
        assert sum(t.diverged for t in made) == int(chains.divergences[row])
        assert float(chains.acceptance[row]) == pytest.approx(np.mean([t.acceptance for t in made]), rel=1e-9)
        depths |= set(chains.tree_depth[row].tolist())
    assert len(depths) >= 3 or (name == "banana, shallow" and depths == {3})
    assert bool(chains.divergences.any()) or "divergent" not in name


@pytest.mark.parametrize("settings", [{}, {"max_depth": 2}, {"preconditioner": [0.5, 2.0]}], ids=str)
def test_the_law_stays_exact(settings):
    """10,000 chains from the exact law are in it after three transitions, whose steps are large."""
    chains = run(gaussian(), NUTS(0.9, **settings), chains=10_000, x_init=gaussian().sample(10_000), steps=3, warmup=0)
    check_law(chains.x, MEAN, COVARIANCE)
    assert float(chains.acceptance.mean()) < 0.95 and int(chains.divergences.sum()) == 0


def test_the_temperature_widens_the_law():
    start = gaussian().sample(10_000) - torch.tensor(MEAN)
    start = start * math.sqrt(3) + torch.tensor(MEAN)
    chains = run(gaussian(), NUTS(0.9, temperature=3.0), chains=10_000, x_init=start, steps=3, warmup=0)
    check_law(chains.x, MEAN, 3 * COVARIANCE)


def test_a_law_that_is_no_gaussian_stays_exact():
    target = mcmc.Rosenbrock(2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ divergent proposals")
        chains = run(target, NUTS(0.3), chains=10_000, x_init=target.sample(10_000), steps=2, warmup=0, thin=2)
    x, y = chains.x.double().T
    assert within(x, 1.0) and within((x - 1) ** 2, 10.0) and within(y - x * x, 0.0) and within((y - x * x) ** 2, 0.1)


@pytest.mark.parametrize("target", [mcmc.Funnel(3), mcmc.Energy(curved)], ids=["density", "energy"])
@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_a_chain_alone_has_the_bits_it_has_among_many(target):
    options = {"shape": target.shape if hasattr(target, "shape") else (2,), "adapt": 0.8, "warmup": 12, "steps": 9}
    many = run(target, NUTS(0.3), chains=40, **options)
    assert len(many.leapfrogs.sum(1).unique()) > 1 and len(many.step.unique()) > 20
    for alone in (run(target, NUTS(0.3), chains=[5], **options), run(target, NUTS(0.3), chains=range(4, 9), **options)):
        here = slice(5, 6) if len(alone.ids) == 1 else slice(4, 9)
        assert same(alone, many, here)
        assert torch.equal(alone.leapfrogs, many.leapfrogs[here])
        assert torch.equal(alone.tree_depth, many.tree_depth[here])
    slots = run(target, NUTS(0.3), chains=40, slots=17, **options)
    assert same(slots, many) and torch.equal(slots.leapfrogs, many.leapfrogs)


def test_rows_that_are_found_and_rows_behind_a_mask_have_the_same_bits(monkeypatch):
    """The way of the devices, where finding rows would have the host wait, on the CPU."""
    options = {"chains": 12, "shape": (2,), "adapt": 0.8, "warmup": 6, "steps": 8, "thin": 2}
    for module in (nuts, mcmc.trees):
        monkeypatch.setattr(module, "bound_trees", lambda state: None)
    found = [run(mcmc.Energy(curved), NUTS(0.3), store=store, **options) for store in (True, False)]
    for module in (rows, nuts, mcmc.trees):
        monkeypatch.setattr(module, "finds", lambda where: False)
    masked = [run(mcmc.Energy(curved), NUTS(0.3), store=store, **options) for store in (True, False)]
    assert same(masked[0], found[0]) and torch.equal(masked[0].tree_depth, found[0].tree_depth)
    assert torch.equal(masked[1].moments, found[1].moments)
    assert masked[0].report["gradients"] % mcmc.trees.LOOK == 0, "the host looks, and rows leave, every so many leaps"


def test_chains_that_wait_for_one_another_have_the_same_states(monkeypatch):
    """As they do under tempering and in `ulam.ebm`."""
    own_pace = run(mcmc.Energy(curved), NUTS(0.3), shape=(2,))
    monkeypatch.setattr(RUNNING, "TreeBatch", ChainBatch)
    in_step = run(mcmc.Energy(curved), NUTS(0.3), shape=(2,))
    assert torch.equal(own_pace.draws, in_step.draws) and torch.equal(own_pace.energies, in_step.energies)
    assert own_pace.report.keys() - in_step.report.keys() == {"leapfrogs", "gradients"}


def test_replicas_and_persistent_chains():
    target = mcmc.DoubleWell(1, 4.0, 1.0)
    chains = run(target, mcmc.ParallelTempering(NUTS(0.1), [1.0, 6.0]), chains=200, steps=40, thin=40, warmup=0)
    assert chains.tree_depth is None and within(chains.x[:, 0] > 0, 0.5)
    buffer = ebm.PersistentChains(4000, (1,), NUTS(0.5), restart=0.0)
    x = buffer.sample(lambda x: x.square().sum(1) / 2, batch=4000, steps=2)
    assert within(x, 0.0) and within(x.double().square(), 1.0)


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("thin", [1, 3])
def test_parts_have_the_bits_of_one_run(thin, store):
    """Also where a run stops between two states that are kept."""
    options, target = {"thin": thin, "store": store}, mcmc.Energy(curved)
    chains = [run(target, NUTS(0.3), shape=(2,), steps=4, warmup=9, adapt=0.8, **options)]
    for steps, slots in ((3, 4), (7, None)):
        more = {"resume": chains[-1], "steps": steps, "slots": slots, "progress": False}
        chains.append(mcmc.run(target, NUTS(0.3), **more, **options))
    whole = run(target, NUTS(0.3), shape=(2,), steps=14, warmup=9, adapt=0.8, **options)
    assert torch.equal(chains[-1].x, whole.x) and torch.equal(chains[-1].position.x, whole.position.x)
    assert chains[-1].next_step == whole.next_step == 23
    if not store:
        torch.testing.assert_close(sum(part.moments for part in chains), whole.moments)
        return
    for name in ("draws", "energies", "tree_depth", "leapfrogs"):
        assert torch.equal(torch.cat([getattr(part, name) for part in chains], 1), getattr(whole, name)), name


def test_thinning_and_warm_up_keep_the_course():
    course = run(mcmc.Energy(curved), NUTS(0.3), shape=(2,), steps=16, warmup=0, thin=1)
    kept = run(mcmc.Energy(curved), NUTS(0.3), shape=(2,), steps=12, warmup=4, thin=5)
    assert torch.equal(kept.draws, course.draws[:, [8, 13]])
    assert torch.equal(kept.leapfrogs, course.leapfrogs[:, [8, 13]])
    assert kept.report["leapfrogs"] == course.report["leapfrogs"] == int(course.leapfrogs.sum())
    torch.testing.assert_close(course.energies, curved(course.draws.flatten(0, 1)).view(6, 16).double())
    sums = run(mcmc.Energy(curved), NUTS(0.3), shape=(2,), steps=16, warmup=0, thin=1, store=False)
    torch.testing.assert_close(sums.moments, course.sums, rtol=1e-12, atol=1e-12)
    assert sums.tree_depth is None and torch.equal(sums.acceptance, course.acceptance)


@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_no_gradient_is_idle(monkeypatch):
    """On the funnel a batch that waited for its longest path at each transition would need six times the gradients."""
    monkeypatch.setattr(live_rows, "MULTIPLE", 1)  # of the rows that are left; 32 of them: see test_live_rows.py
    chains = run(mcmc.Funnel(5), NUTS(0.3, 8), chains=64, steps=40, warmup=0, thin=1, launch=False)
    spent, in_step = chains.report["gradients"], 64 * int(chains.leapfrogs.max(0).values.sum())
    assert int(chains.leapfrogs.sum()) == chains.report["leapfrogs"]
    assert chains.report["leapfrogs"] < spent < 1.2 * chains.report["leapfrogs"]  # those that are done leave the batch
    assert in_step > 5 * spent
    whole = run(mcmc.Funnel(5), NUTS(0.3, 8), chains=64, steps=40, warmup=0, thin=1, launch=False, slots=64)
    assert same(whole, chains) and whole.report["gradients"] == 64 * int(chains.leapfrogs.sum(1).max())


def test_adaptation_comes_to_the_acceptance_that_was_asked_for():
    target = mcmc.Gaussian(torch.zeros(10), torch.logspace(-0.8, 0.8, 10, dtype=torch.float64))
    chains = run(target, NUTS(1.0), chains=24, warmup=150, steps=40, thin=1, adapt=0.8)
    assert abs(float(chains.acceptance.mean()) - 0.8) < 0.08
    assert 0 < float((chains.step / chains.step.mean() - 1).abs().max()) < 0.2


def test_each_chain_is_adapted_as_if_all_were_at_one_transition():
    """The same numbers in any order of arrival."""
    generator = torch.Generator().manual_seed(1)
    step = torch.tensor([0.1, 2.0, 0.5], dtype=torch.float64)
    made = torch.rand(3, 30, dtype=torch.float64, generator=generator)
    each, count = DualAveragingEach(step, 0.8, 30), torch.zeros(3, dtype=torch.int64)
    while bool((count < 30).any()):
        where = (torch.rand(3, generator=generator) < 0.5) & (count < 30)
        each.update_where(where, made[torch.arange(3), count.clamp(max=29)])
        count += where
    together = DualAveraging(step, 0.8)
    for transition in made.T:
        together.update(transition.log())
    torch.testing.assert_close(each.step, together.step)
    torch.testing.assert_close(each.final, together.final)


@pytest.mark.parametrize("wall", [math.inf, math.nan, -math.inf])
def test_a_divergence_ends_a_transition_and_the_chain_goes_on(wall):
    def energy(x):
        return torch.where(x[:, 0] > 0.5, wall, x.square().sum(1) / 2)

    target = mcmc.Energy(energy, lambda x: -x)
    with pytest.warns(RuntimeWarning, match="divergent proposals in"):
        chains = run(target, NUTS(0.3), chains=2000, x_init=-torch.ones(2000, 1), steps=20, warmup=0, thin=20)
    assert int(chains.divergences.min()) >= 0 and int(chains.divergences.sum()) > 2000
    assert float(chains.x.max()) <= 0.5 and within(chains.x, -0.5091604)  # of N(0, 1) below 1 / 2
    assert chains.leapfrogs.min() >= 1


def test_an_energy_that_is_no_number_where_a_chain_starts():
    with pytest.raises(ValueError, match="target: got no finite energy at the start of chain 0"):
        run(mcmc.Energy(lambda x: x.sum(1) * math.nan, torch.zeros_like), NUTS(0.1), shape=(2,))


@pytest.mark.parametrize("depth", [0, 21, -1])
def test_depths_that_have_no_numbers_are_refused(depth):
    with pytest.raises(ValueError, match=f"max_depth: got {depth}, expected 1 to 20"):
        NUTS(0.1, depth)
    with pytest.raises(ValueError, match=r"steps: got 1, expected at most 2\^40 together"):
        run(gaussian(), NUTS(0.1), steps=1, thin=1, warmup=0, first_step=1 << 40)


def test_a_tree_that_never_turns_ends_at_its_depth():
    still = mcmc.Energy(lambda x: 0 * x.sum(1))
    chains = run(still, NUTS(1e-3, 11), chains=2, shape=(1,), steps=1, warmup=0, thin=1)
    assert chains.leapfrogs.tolist() == [[2047], [2047]] and chains.tree_depth.tolist() == [[11], [11]]


def test_the_command_line(tmp_path):
    out, sizes = tmp_path / "out", ["--chains", "5", "--steps", "12", "--warmup", "8", "--adapt", "0.8", "--no-plots"]
    arguments = ["mcmc", "--target", "ring", "--sampler", "nuts", "--step", "0.2", "--max-depth", "5"]
    assert main([*arguments, *sizes, "--out", str(out)]) == 1, "so few steps do not mix"
    options = {"chains": 5, "steps": 12, "warmup": 8, "adapt": 0.8, "thin": 1, "seed": 0}
    chains = run(mcmc.Ring(2), NUTS(0.2, 5), **options)
    saved = arrays(out / "draws.npz")
    for name in ("draws", "tree_depth", "leapfrogs"):
        np.testing.assert_array_equal(saved[name], getattr(chains, name).numpy())
    assert json.loads((out / "report.json").read_text())["leapfrogs"] == chains.report["leapfrogs"]


def test_the_bar_counts_steps(monkeypatch):
    counted = []
    monkeypatch.setattr(RUNNING._Bar, "update", lambda bar, steps, batch: counted.append((steps, batch)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(gaussian(), NUTS(0.5), chains=5, steps=7, warmup=4, thin=1)
    assert sum(steps for steps, _ in counted) == 11 and min(steps for steps, _ in counted) >= 0
    batch = counted[-1][1]
    assert isinstance(batch, TreeBatch) and batch.acceptance_so_far() == pytest.approx(float(batch.acceptance().mean()))
