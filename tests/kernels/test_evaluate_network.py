"""A network at the states of many chains in one call: the same bits in every tiling, and torch's derivatives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ulam_kernels
from bit_comparison import differences
from cpu_settings import instruction_set, threads
from ulam_kernels import _cpu
from ulam_kernels.networks import LayerNormGradient, Linear, Network, Operand
from walk_cases import random_network

CHAINS = (1, 2, 3, 5, 8, 9, 17, 33, 45)  # around those at which the tiling changes


def with_energy(rng: np.random.Generator, n: int, learned: bool) -> Network:
    """A random network, and a sum over its first value as an energy."""
    made = random_network(rng, n, learned)
    energy = len(made.widths)
    weight = torch.from_numpy(rng.normal(size=(1, made.widths[1]))).float()
    last = Linear(energy, (1,), (weight,))
    return replace(made, widths=(*made.widths, 1), instructions=(*made.instructions, last), energy=energy)


def given(network: Network, chains: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (chains, network.inputs), "row_vector": (network.row_width,)}
    shapes["chain_vectors"] = (chains, network.chain_width)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("chains", CHAINS)
def test_every_instruction_set_has_the_bits_of_the_reference(chains: int) -> None:
    for seed in range(3):
        rng = np.random.default_rng([seed, chains])
        network = with_energy(rng, int(rng.integers(1, 19)), learned=bool(seed % 2))
        arguments = given(network, chains, seed)
        energy, out = ulam_kernels.evaluate_network(network, **arguments, backend="reference")
        assert energy is not None and (chains == 1 or energy.std() > 0)
        assert out.shape == (chains, network.inputs * (1 + network.learned)) and out.isfinite().all()
        for name in _cpu.instruction_sets():
            with instruction_set(name) as backend:
                ours = ulam_kernels.evaluate_network(network, **arguments, backend=backend)
                assert ours[0] is not None and energy is not None
                assert differences(ours[0], energy) == 0 and differences(ours[1], out) == 0


def test_a_chain_is_the_same_in_any_company() -> None:
    rng = np.random.default_rng(5)
    network = with_energy(rng, 7, learned=False)
    arguments = given(network, 70, 5)
    energy, out = ulam_kernels.evaluate_network(network, **arguments)
    assert energy is not None
    order = torch.from_numpy(rng.permutation(70))
    for count in (1, 2, 3):
        with threads(count):
            for these in (order, *torch.arange(70).split(11), *torch.arange(70).split(25), torch.tensor([3])):
                some = {k: v if k == "row_vector" else v[these] for k, v in arguments.items()}
                ours = ulam_kernels.evaluate_network(network, **some)
                assert ours[0] is not None
                assert torch.equal(ours[0], energy[these]) and torch.equal(ours[1], out[these])


def test_rows_of_their_own_come_with_the_chains() -> None:
    """`told_by_chain`: every kind of instruction, the bits of the network that is told one row for all."""
    for seed in range(6):
        network = random_network(np.random.default_rng(seed), 6, learned=bool(seed % 2))
        arguments = given(network, 9, seed)
        rows = torch.randn(9, network.row_width)
        own = torch.cat([arguments["chain_vectors"], rows], 1)
        for backend in ("cpu", "reference"):
            told = network.told_by_chain
            together = ulam_kernels.evaluate_network(told, arguments["x"], chain_vectors=own, backend=backend)[1]
            for chain, row in enumerate(rows):
                some = arguments | {"row_vector": row}
                alone = ulam_kernels.evaluate_network(network, **some, backend=backend)[1]
                assert torch.equal(together[chain], alone[chain])


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("n", [1, 5, 16, 37])
def test_the_gradient_of_layer_norm_is_autograds(n: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(n)
    x, gradient = (torch.randn(6, n, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(n, generator=generator) if weighted else None
    one = LayerNormGradient(1, 0, Operand("chain", 0), Operand("constant", 0) if weighted else None, eps=1e-3)
    network = Network(n, (n, n), (one,), torch.empty(0) if weight is None else weight, chain_width=n)
    x.requires_grad_()
    normed = F.layer_norm(x, (n,), None if weight is None else weight.double(), eps=1e-3)
    (expected,) = torch.autograd.grad(normed, x, gradient)
    at = x.detach()
    _, exact = ulam_kernels.evaluate_network(network, at, chain_vectors=gradient, backend="reference")
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=1e-12)
    _, ours = ulam_kernels.evaluate_network(network, at.float(), chain_vectors=gradient.float())
    scale = gradient.abs().max() * (1 if weight is None else weight.abs().max()) / 1e-3**0.5
    assert (ours.double() - expected).abs().max() <= 32 * 2**-24 * scale


def test_no_chains_and_a_shape() -> None:
    network = Network(6, (6, 6), (Linear(1, (0,), (2 * torch.eye(6),)),))
    energy, out = ulam_kernels.evaluate_network(network, torch.ones(0, 6))
    assert energy is None and out.shape == (0, 6)
    energy, out = ulam_kernels.evaluate_network(network, torch.ones(3, 2, 3))
    assert energy is None and torch.equal(out, torch.full((3, 2, 3), 2.0))


@pytest.mark.parametrize("name", ["row_vector", "chain_vectors"])
def test_what_the_network_reads_must_be_there(name: str) -> None:
    network = with_energy(np.random.default_rng(1), 4, learned=False)
    network = replace(network, row_width=network.row_width + 1, chain_width=network.chain_width + 1)
    arguments = given(network, 3, 0)
    del arguments[name]
    with pytest.raises(ValueError, match=f"^{name}: got None, expected a tensor"):
        ulam_kernels.evaluate_network(network, **arguments)


def test_the_output_of_a_walk_has_the_same_bits() -> None:
    """A row that replaces the state by the network's output."""
    rng = np.random.default_rng(8)
    network = random_network(rng, 5)
    arguments = given(network, 21, 8)
    _, out = ulam_kernels.evaluate_network(network, **arguments)
    zero, one = np.zeros(2), np.ones(2)
    columns = np.zeros((2, 1, 4))
    columns[:, 0, 2] = 1  # of x, D, m and z
    table = ulam_kernels.Table.pack(
        kx=one, km=zero, lo=-np.inf * one, hi=np.inf * one, lv_m=zero, lv_b=zero, c_next=one, A=columns,
        writes=np.ones((2, 1), dtype=bool), learned=zero > 0, dtype=torch.float32,
    )  # fmt: skip
    states, cursor = arguments["x"][None].clone(), torch.zeros(6, 21, dtype=torch.int64)
    cursor[0] = 1
    rows = arguments["row_vector"].expand(2, -1).contiguous()
    ulam_kernels.walk(states, table, cursor, network, steps=1, row_vectors=rows,
                      chain_vectors=arguments["chain_vectors"])  # fmt: skip
    assert torch.equal(states[0], out)
