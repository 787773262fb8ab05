"""Native trees of NUTS against those made of torch's operations: the same bits, leaf by leaf and in one launch."""

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from chain_runs import curved, run
from ulam import mcmc
from ulam.mcmc import NUTS
from ulam.samplers.mcmc import nuts
from ulam.samplers.mcmc.weights import Weights, dot
from ulam_kernels import _cpu
from ulam_kernels import mcmc as ops
from ulam_kernels.cpu import BoundTrees

FIELDS = (
    "draws",
    "energies",
    "moments",
    "tree_depth",
    "leapfrogs",
    "diverging",
    "acceptance",
    "divergences",
    "step",
    "x",
)


@contextmanager
def torch_alone(monkeypatch):
    with monkeypatch.context() as patch:
        for module in (nuts, mcmc.trees):
            patch.setattr(module, "bound_trees", lambda state: None)
        yield


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request):
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(_cpu.instruction_sets()[0])


def steep(x):
    """Far from any minimum in many dimensions, with a wall that is no number beyond it."""
    x = x.flatten(1)
    return torch.where(x[:, 0] > 1.5, math.nan, (x * x).sum(1) / 2)


def parts(x):
    return -torch.where(x > 1.5, 0.0, x)


PER_CHAIN = torch.linspace(0.1, 1.2, 21, dtype=torch.float64)
SCALED = mcmc.Gaussian(torch.zeros(7), torch.logspace(-1, 1, 7, dtype=torch.float64))
RUNS = {
    "energy": (mcmc.Energy(curved), NUTS(0.3), {"shape": (2,)}),
    "own steps, temperatures": (mcmc.Energy(curved), NUTS(PER_CHAIN, temperature=1 + PER_CHAIN), {"shape": (2,)}),
    "adapted": (mcmc.Energy(curved), NUTS(0.3), {"shape": (2,), "adapt": 0.8, "warmup": 9}),
    "sums": (mcmc.Energy(curved), NUTS(0.3), {"shape": (2,), "store": False, "warmup": 3}),
    "shallow": (mcmc.Energy(curved), NUTS(0.02, 3), {"shape": (2,), "thin": 5, "warmup": 2}),
    "walls": (mcmc.Energy(steep, parts), NUTS(0.7), {"shape": (3, 2)}),
    "long": (mcmc.Energy(steep, parts), NUTS(0.3), {"shape": (1030,), "chains": 3, "steps": 4, "thin": 1}),
    "one element": (mcmc.DoubleWell(1), NUTS(0.4), {"adapt": 0.8, "warmup": 6}),
    "gaussian": (SCALED, NUTS(0.3), {"warmup": 8, "adapt": 0.7}),
    "weighed": (mcmc.Rosenbrock(4), NUTS(0.1, preconditioner=[1.0, 4.0, 0.5, 2.0], temperature=2.0), {}),
    "funnel": (mcmc.Funnel(10), NUTS(0.6), {"thin": 1, "steps": 30}),
    "mixture": (mcmc.GaussianMixture([[0.0, 1, 2], [3.0, 0, 1]], 0.7), NUTS(0.5), {}),
    "128 elements": (mcmc.DoubleWell(128), NUTS(0.2), {"chains": 5}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
@pytest.mark.filterwarnings("ignore:.*energies:RuntimeWarning")
@pytest.mark.parametrize("name", RUNS)
def test_native_trees_have_the_bits_of_those_in_torch(name, instruction_set, monkeypatch):
    target, sampler, given = RUNS[name]
    options = {"chains": 21, "steps": 12, "thin": 2, "warmup": 0, **given}
    with torch_alone(monkeypatch):
        expected = run(target, sampler, **options)
    assert not expected.report["launch"] and int(expected.report["leapfrogs"]) > 0
    for launch in (True, False):
        found = run(target, sampler, **options, launch=launch)
        assert found.report["launch"] == (launch and not isinstance(target, mcmc.Energy))
        for field in FIELDS:
            one, other = getattr(found, field), getattr(expected, field)
            assert (one is None and other is None) or torch.equal(one, other), field
        assert found.report["leapfrogs"] == expected.report["leapfrogs"] <= found.report["gradients"]
    assert "wall" not in name or bool(expected.divergences.any())


@pytest.mark.filterwarnings("ignore:[0-9]+ divergent proposals")
def test_launches_of_any_length_and_thread_count_have_the_same_bits(monkeypatch):
    options = {"chains": 37, "steps": 40, "warmup": 5, "thin": 3}
    whole = run(mcmc.Funnel(5), NUTS(0.4), **options)
    monkeypatch.setattr(mcmc.trees, "LAUNCH_WORK", 37 * 5 * 7)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        pieces = run(mcmc.Funnel(5), NUTS(0.4), **options)
    finally:
        torch.set_num_threads(threads)
    for field in FIELDS:
        one, other = getattr(pieces, field), getattr(whole, field)
        assert (one is None and other is None) or torch.equal(one, other), field
    assert whole.report["gradients"] == whole.report["leapfrogs"] == pieces.report["gradients"]


def test_transitions_in_step_have_the_same_bits(monkeypatch):
    """As under tempering."""
    sampler, options = mcmc.ParallelTempering(NUTS(0.3), [1.0, 3.0]), {"chains": 9, "shape": (2,)}
    found = run(mcmc.Energy(curved), sampler, **options)
    with torch_alone(monkeypatch):
        expected = run(mcmc.Energy(curved), sampler, **options)
    assert torch.equal(found.draws, expected.draws) and torch.equal(found.acceptance, expected.acceptance)


def test_float64_is_not_native():
    chains = run(mcmc.Funnel(3), NUTS(0.3), dtype=torch.float64)
    assert not chains.report["launch"] and chains.draws.dtype == torch.float64


def test_weights_are_those_of_closed_forms():
    weights, generator = Weights(torch.device("cpu")), torch.Generator().manual_seed(1)
    x = -torch.cat([torch.rand(4000, generator=generator) * scale for scale in (1e-9, 1e-3, 1, 50, 700)]).double()
    exact = np.exp(x.numpy().astype(np.longdouble))
    assert float(np.abs(weights.exp(x).numpy() / exact - 1).max()) < 4.5e-16
    ends = torch.tensor([0.0, -0.0, -708.0, -708.1, -math.inf, math.nan], dtype=torch.float64)
    found = weights.exp(ends).tolist()
    assert found[:2] == [1, 1] and 0 < found[2] < 1e-307 and found[3:5] == [0, 0] and math.isnan(found[5])
    a, b = 600 * (torch.rand(2, 5000, generator=generator).double() - 0.5) ** 3
    sums = np.logaddexp(a.numpy().astype(np.longdouble), b.numpy().astype(np.longdouble))
    errors = np.abs(weights.log_sum(a, b).numpy() - sums) / np.maximum(np.abs(sums), 0.5)
    assert float(errors.max()) < 6e-16
    none = torch.tensor([-math.inf, -math.inf, 2.0], dtype=torch.float64)
    assert weights.log_sum(none, none.flip(0)).tolist()[1:] == [-math.inf, 2.0]


@pytest.mark.parametrize("n", [1, 5, 8, 1023, 1025, 3000])
def test_sums_are_in_the_order_of_the_kernels(n):
    x = torch.randn(3, n, generator=torch.Generator().manual_seed(n))
    assert torch.equal(dot(x, x), ops.squared_norm(x, backend="reference"))


@pytest.mark.parametrize(
    "wrong",
    [{"x": torch.zeros(2, 6)[:, ::2]}, {"energy": torch.zeros(2)}, {"scale": torch.ones(3).double()}],
    ids=["strided", "float32", "float64"],
)
def test_tensors_that_native_code_cannot_take(wrong):
    ids = {name: torch.zeros(2, dtype=torch.int64) for name in ("seed", "chain", "draw")}
    given = {
        "x": torch.zeros(2, 3),
        "score": torch.zeros(2, 3),
        "energy": torch.zeros(2).double(),
        "scale": None,
        **ids,
    }
    BoundTrees(**given, max_depth=3)
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"^{name}: got .*, expected a contiguous tensor of"):
        BoundTrees(**{**given, **wrong}, max_depth=3)
