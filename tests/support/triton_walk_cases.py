"""Walks by the Triton backend on tensors of the host, where it is interpreted, against the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch

import ulam
from bit_comparison import same_bits
from reduce_cases import MIXED, mixed_table
from ulam.programs.builder import ProgramBuilder
from ulam_kernels import Table, evaluate_network, network_calls, triton, walks
from ulam_kernels.networks import FUNCTIONS, SLOPES, LayerNorm, Network, Unary
from ulam_kernels.table import READS_Z
from ulam_kernels.triton import network
from walk_cases import ROWS, Walk, mlp, random_walk
from walk_errors import PRECISIONS, UNIT, of_a_row

Result = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def by_triton(walk: Walk, **other: Any) -> Result:
    with mock.patch.object(walks, "select_for_networks", lambda *_: triton):
        return walk.run("triton", **other)


def case(rng: np.random.Generator, n: int, registers: int, precision: str, chains: int = 5, **options: Any) -> Walk:
    walk = random_walk(rng, chains, n, registers, gradients=False, **options)
    return replace(walk, network=replace(walk.network, precision=precision))


def plain_case(rng: np.random.Generator, widths: tuple[int, ...], precision: str, chains: int = 5) -> Walk:
    """A perceptron, as policies and toys in the plane have them."""
    network = replace(mlp(rng, widths), precision=precision)
    return random_walk(rng, chains, widths[0], 1, network=network, learned=False, together=True)


def exact_sums(walk: Walk) -> bool:
    """Whether Triton has the bits of the CPU: in float32, where only LayerNorm sums in another order."""
    normed = any(isinstance(one, LayerNorm) for one in walk.network.instructions)
    return walk.network.precision == "float32" and not normed


def after(walk: Walk, result: Result) -> Walk:
    return replace(walk, states=result[0], cursor=result[1], net_in=result[2])


def agrees(walk: Walk, run: Callable[[Walk], Result] = by_triton) -> float:
    """The rows one by one: the CPU's bits, or within the bound of their errors; returns the largest share of it."""
    largest = 0.0
    for _ in range(walk.steps):
        one = replace(walk, steps=1)
        ours, expected = run(one), one.run("cpu")
        assert torch.equal(ours[1], expected[1]), "cursor"
        pairs = [(ours[0], expected[0])]
        if ours[2] is not None and expected[2] is not None:
            pairs.append((ours[2][None], expected[2][None]))
        bound = torch.from_numpy(of_a_row(one, walk.network.precision))
        for got, right in pairs:
            distance = (got.double() - right.double()).abs().flatten(2)
            if exact_sums(walk):
                assert distance.max() == 0
            room = bound + 16 * UNIT * right.double().abs().flatten(2).amax(0).clamp(min=1)
            assert (distance <= room).all(), (distance / room).max()
            largest = max(largest, float((distance / room).max()))
        walk = after(walk, ours)
    return largest


def check_rules() -> None:
    """Rows one by one in every precision: guidance, learned variances, registers, net_in, residual blocks."""
    options: tuple[dict[str, Any], ...] = (
        {}, {"guided": True, "scaled": True}, {"guided": True, "together": True}, {"learned": False, "guided": True}
    )  # fmt: skip
    for function in FUNCTIONS[: FUNCTIONS.index("elu") + 1]:
        walk = plain_case(np.random.default_rng(1), (3, 20, 3), "float32")
        network = mlp(np.random.default_rng(2), (3, 20, 3), function)
        assert exact_sums(walk) and agrees(replace(walk, network=network, steps=1)) == 0, function
    shares: dict[str, list[float]] = {}
    exact = 0
    for precision in PRECISIONS:
        for number, chosen in enumerate(options):
            rng = np.random.default_rng([number, 5])
            walk = case(rng, *((14, 2), (2, 5), (7, 1), (17, 2))[number], precision, steps=2, **chosen)
            exact += exact_sums(walk)
            shares.setdefault(precision, []).append(agrees(walk))
        for widths in ((14, 40, 40, 14), (2, 64, 64, 2), (70, 130, 70), (40, *(64,) * 8, 3, 40)):
            walk = plain_case(np.random.default_rng(widths), widths, precision)
            exact += exact_sums(walk)
            shares[precision].append(agrees(replace(walk, steps=2)))
    assert exact >= 4
    assert max(shares["float32"]) < 0.5 and max(shares["tf32x3"]) < 0.5
    assert max(shares["bf16"]) > 0.05, "the bound is far from what is"


def check_company() -> None:
    """A chain is the same in any batch, on a tile's every line, and when steps are split."""
    for precision, n, chains in (("float32", 2, 3), ("bf16", 14, 70), ("tf32x3", 14, 20)):
        widths = (n, 64, 64, n) if chains == 70 else (n, 80, n)
        walk = replace(plain_case(np.random.default_rng(3), widths, precision, chains), steps=3)
        if chains == 20:
            walk = case(np.random.default_rng(4), n, 2, precision, chains, guided=True, scaled=True, steps=3)
        whole = by_triton(walk)
        assert whole[0].isfinite().all() and not torch.equal(whole[0], walk.states)
        order = torch.from_numpy(np.random.default_rng(0).permutation(chains))
        for these in (order, torch.tensor([chains - 1]), torch.arange(1, chains, 3)):
            part = by_triton(walk.chains(these))
            assert same_bits(part[0], whole[0][:, these]) and torch.equal(part[1], whole[1][:, these])
            assert part[2] is None or whole[2] is None or same_bits(part[2], whole[2][these])
        split = walk
        for steps in (2, 1):
            split = after(split, by_triton(replace(split, steps=steps)))
        assert same_bits(split.states, whole[0]) and torch.equal(split.cursor, whole[1])


def check_stops() -> None:
    """A chain that is not finite, at the first row or a later one; one that guidance keeps; idle and lost ones."""
    rng = np.random.default_rng(3)
    walk = random_walk(rng, 9, 6, 2, guided=True, learned=False, scaled=True, steps=3, gradients=False)
    given = {name: tensor.clone() for name, tensor in walk.given.items()}
    walk.cursor[:4, :6] = torch.tensor([3, 7, 2, 16])[:, None]
    given["chain_vectors"][:3] = float("nan")
    given["uncond_vectors"][4] = float("inf")
    given["guidance"][:6] = torch.tensor([2.0, 1.0, 0.0, 1.0, 1.0, 2.5])
    given["row_vectors"][5] = float("nan")
    walk.cursor[:, 6] = 0
    walk.cursor[3, 6], walk.states[:, 6] = 7, float("nan")
    bad = replace(walk, given=given)
    (states, cursor, _), expected = by_triton(bad), bad.run("cpu")
    assert torch.equal(cursor, expected[1]) and cursor[4, :6].tolist() == [3, 3, 5, 5, 5, 5]
    assert cursor[:4, 6].tolist() == [0, 21, 0, 7] and states[:, 6].isnan().all()
    assert torch.equal(states[:, :2], walk.states[:, :2])
    torch.testing.assert_close(states, expected[0], rtol=1e-4, atol=1e-5, equal_nan=True)
    blind = replace(walk, table=Table(walk.table.coef, walk.table.flags | READS_Z, 2), steps=1)
    states, cursor, _ = by_triton(blind, seed=None, chain=None)
    moves = walk.cursor[0] != 0
    assert states[0, moves].isnan().any(1).all() and torch.equal(cursor[4], walk.cursor[4])
    lost = replace(walk, cursor=walk.cursor.clone())
    lost.cursor[0, :3], lost.cursor[2, :3] = torch.tensor([-1, ROWS, ROWS - 1]), 1
    states, cursor, _ = by_triton(lost)
    assert cursor[0, :3].tolist() == [0] * 3 and cursor[4, :3].tolist() == [-1, ROWS, ROWS]
    assert torch.equal(states[:, :2], walk.states[:, :2]) and not torch.equal(states[:, 2], walk.states[:, 2])
    assert same_bits(states[:, 3:].contiguous(), by_triton(walk)[0][:, 3:].contiguous())


def check_reductions() -> None:
    """Thresholds and norms, beside rows that have none: the CPU's bits, as its outputs are the same."""
    rng = np.random.default_rng(6)
    for registers, n in ((1, 7), (2, 20)):
        walk = replace(plain_case(rng, (n, 20, n), "float32", 2 * len(MIXED)), steps=2)
        states, cursor = torch.randn(registers, 2 * len(MIXED), n), walk.cursor.clone()
        cursor[0], cursor[2] = torch.arange(2 * len(MIXED)) % len(MIXED), 0
        given = walk.given | {"row_vectors": walk.given["row_vectors"][: len(MIXED)]}
        walk = replace(walk, states=states, table=mixed_table(registers), cursor=cursor, given=given)
        (ours, at, _), expected = by_triton(walk), walk.run("cpu")
        assert same_bits(ours, expected[0]) and torch.equal(at, expected[1]) and not same_bits(ours, states)


def check_bound() -> None:
    """Tensors that stay where they are are read anew, and numbers of a network that is known are kept. Gradients are
    refused."""
    gradient = Network(3, (3, 3), (Unary(1, SLOPES["silu"], 0),), row_width=20)
    refused = replace(plain_case(np.random.default_rng(8), (3, 20, 3), "float32"), network=gradient)
    try:
        by_triton(refused)
    except ValueError as error:
        assert str(error).startswith("network: got silu_slope, expected")
    else:
        raise AssertionError("nothing was refused")
    walk = replace(plain_case(np.random.default_rng(8), (14, 40, 14), "float32"), steps=1)
    states, cursor = walk.states.clone(), walk.cursor.clone()
    with mock.patch.object(walks, "select_for_networks", lambda *_: triton):
        bound = walks.BoundWalk(states, walk.table, cursor, walk.network, backend="triton", **walk.given)
    kept = walk.network.__dict__["packed_for_triton"][states.device]
    bound(1)
    expected = walk.run("cpu")
    assert torch.equal(states, expected[0]) and torch.equal(cursor, expected[1])
    walk.given["row_vectors"].mul_(0.5)
    again = after(walk, expected).run("cpu")
    bound(0), bound(1)
    assert torch.equal(states, again[0]) and torch.equal(cursor, again[1])
    by_triton(walk)
    assert walk.network.__dict__["packed_for_triton"][states.device] is kept


def output_rows() -> Table:
    """Rows that replace the state by the network's output."""
    builder = ProgramBuilder(ulam.schedules.vp_linear(), "eps")
    builder.rows([1.0], x={"m": 1.0})
    row = builder.program(sampler="the network's output", order=1).table(dtype=torch.float32)
    return Table(row.coef[:1].repeat(ROWS, 1), row.flags[:1].repeat(ROWS), 1)


def check_calls() -> None:
    """The network alone, each chain told its row, has the bits of a walk; one row for all; what is refused."""
    for precision in PRECISIONS:
        for n, chains in ((6, 7), (14, 70)):
            walk = case(np.random.default_rng(n), n, 1, precision, chains, learned=False, steps=1)
            walk = replace(walk, table=output_rows())
            states, _, _ = by_triton(walk)
            row, chain = (walk.given[name] for name in ("row_vectors", "chain_vectors"))
            with mock.patch.object(network_calls, "select_for_networks", lambda *_: triton):
                told = torch.cat([chain, row[walk.cursor[0]]], 1)
                energy, ours = evaluate_network(walk.network.told_by_chain, walk.states[0], chain_vectors=told)
                _, third = evaluate_network(walk.network, walk.states[0], row_vector=row[3], chain_vectors=chain)
            moves = walk.cursor[0] != 0
            assert energy is None and moves.any() and same_bits(ours[moves], states[0, moves])
            at_third = replace(walk, cursor=walk.cursor.clone())
            at_third.cursor[0] = 3
            assert same_bits(third, by_triton(at_third)[0][0])
    walk = case(np.random.default_rng(1), 6, 1, "float32", 9)
    assert walk.network.learned
    own = {"row_vector": walk.given["row_vectors"][1], "chain_vectors": walk.given["chain_vectors"]}
    both = evaluate_network(walk.network, walk.states[0], **own)[1]
    with mock.patch.object(network_calls, "select_for_networks", lambda *_: triton):
        torch.testing.assert_close(evaluate_network(walk.network, walk.states[0], **own)[1], both)
        try:
            evaluate_network(replace(mlp(np.random.default_rng(1), (1, 4, 1)), energy=3), torch.ones(2, 1),
                             row_vector=torch.ones(4))  # fmt: skip
        except ValueError as error:
            assert str(error).startswith("network: got one with an energy, expected one without")
        else:
            raise AssertionError("nothing was refused")


def check_tensor_cores() -> None:
    """tf32x3 as tensor cores make it, of numbers that they cut off; without the weights' lower parts it is far away."""
    for widths in ((2, 64, 64, 2), (70, 130, 70), (40, *(64,) * 8, 3, 40)):
        walk = replace(plain_case(np.random.default_rng(widths), widths, "tf32x3"), steps=2)
        with mock.patch.object(network, "is_cuda", lambda: True):
            assert agrees(walk) < 0.5
            without = mock.patch.object(network, "parts", lambda w, PRECISION: (network.high(w), w * 0))
            try:
                with without:
                    agrees(walk)
            except AssertionError:
                continue
        raise AssertionError(f"{widths}: the upper parts alone are within the bound")
