"""The CUDA reductions and mask blending without a GPU: their PTX gives the bits of the CPU, and reads elements once."""

from __future__ import annotations

import dataclasses
import math
import subprocess
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import blend_cases
import cuda_simulator
import ulam_kernels
from bit_comparison import differences
from cuda_simulator import ARCHITECTURES, BF16, CUOBJDUMP, FP16, FP32, MISSING, Device
from machine_code import loads_in_flight
from reduce_cases import LEVELS, mixed_table, random_inputs, table_of
from ulam_kernels.table import NORMALISE, READS_M, THRESHOLD

pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
# chains, elements, registers, state, model, guided, noise given, misalignment
REDUCTIONS = [
    (24, 1, 1, FP32, FP32, False, False, 0), (24, 34, 2, BF16, FP32, True, False, 0),
    (24, 128, 1, FP32, FP16, True, True, 8), (24, 129, 3, FP16, FP16, False, False, 0),
    (24, 1024, 1, FP32, BF16, True, False, 4), (12, 3008, 5, FP32, FP32, True, True, 0),
]  # fmt: skip
# The same of long chains, and the architecture: a cluster has a chain where there are clusters.
LONG = [
    (5, 16_384, 1, FP32, FP32, False, False, 0, "sm_90"), (3, 16_387, 2, BF16, FP32, True, False, 0, "sm_100"),
    (66, 16_640, 1, FP16, FP16, False, False, 0, "sm_90"), (3, 33_000, 1, FP16, BF16, True, True, 4, "sm_90"),
    (66, 33_000, 1, BF16, BF16, True, False, 0, "sm_90"), (2, 100_000, 3, FP32, BF16, True, False, 0, "sm_100"),
    (2, 196_608, 1, FP32, FP32, False, False, 0, "sm_90"), (2, 196_608, 1, FP32, FP32, True, True, 0, "sm_80"),
    (3, 33_001, 1, FP32, FP32, True, False, 0, "sm_80"), (2, 33_000, 1, FP32, FP16, False, True, 0, "sm_86"),
    (2, 430_000, 1, BF16, BF16, False, False, 0, "sm_90"),
]  # fmt: skip
# chains, elements, state, network input, noise given, misalignment
BLENDS = [
    (5, 1, FP32, None, False, 0), (300, 34, BF16, FP32, False, 0), (9, 512, FP32, FP16, True, 0),
    (7, 1027, FP16, None, False, 0), (9, 11_120, FP32, FP32, False, 0), (3, 2048, BF16, BF16, True, 2),
]  # fmt: skip


@pytest.fixture
def device() -> Iterator[Device]:
    device = cuda_simulator.device()
    yield device
    device.alone, device.counts = None, False
    device.be("sm_100")


@pytest.mark.parametrize("case", REDUCTIONS, ids=str)
def test_reductions_have_the_bits_of_the_cpu(device: Device, case: tuple[Any, ...]) -> None:
    chains, n, registers, state, model, guided, explicit, skew = case
    rng = np.random.default_rng(n)
    table, row = mixed_table(registers), torch.from_numpy(rng.permutation(np.arange(chains) % 12))
    values = torch.from_numpy(2 * rng.normal(size=(registers, chains, 1, n))).to(state)
    given = random_inputs(rng, (1, n), model, chains, guided, explicit)
    expected, out = torch.full((2, chains, 4), math.nan)
    ulam_kernels.reduce(values, table, row, out=expected, backend="cpu", **given)
    device.reduce(values, table, row, out, skew, **given)
    assert "reduce_chain" in device.used
    assert differences(expected, out) == 0


@pytest.mark.parametrize("case", LONG, ids=str)
def test_reductions_of_long_chains_have_the_bits_of_the_cpu(device: Device, case: tuple[Any, ...]) -> None:
    chains, n, registers, state, model, guided, explicit, skew, architecture = case
    device.be(architecture)
    rng, row = np.random.default_rng(n), torch.zeros(chains, dtype=torch.int64)
    row[:8] = torch.tensor([8, 4, 3, 10, 0, 9, 6, 1])[:chains]
    values = torch.from_numpy(2 * rng.normal(size=(registers, chains, 1, n))).to(state)
    given = random_inputs(rng, (1, n), model, chains, guided, explicit)
    expected, out = torch.full((2, chains, 4), math.nan)
    ulam_kernels.reduce(values, mixed_table(registers), row, out=expected, backend="cpu", **given)
    device.reduce(values, mixed_table(registers), row, out, skew, **given)
    assert differences(expected, out) == 0
    together = architecture in ("sm_90", "sm_100")
    assert device.shape[7] == (8 if together and (n > 32_768 or chains <= 64) else 1)
    assert ("Lb1E" in device.used) == (n % 4 == 0 and skew in (0, 8))


@pytest.mark.parametrize("n", [200, 17_000])
def test_quantiles_of_difficult_numbers(device: Device, n: int) -> None:
    """Ties, zeros, subnormal numbers, infinities, NaN, at every level: one chain for each."""
    index = torch.arange(n)
    kinds = [torch.full((n,), -2.5), index % 3 * 1.0, index * 2**-140, index * 1.0, torch.zeros(n)]
    kinds += [torch.where(index < n // 10, math.inf, 3.0), torch.where(index == n - 7, math.nan, 1.0)]
    kinds += [torch.where(index % 2 == 0, 1.0, 1 + 2**-23)]
    levels = LEVELS if n == 200 else LEVELS[1:3]
    values = torch.stack(kinds).repeat(len(levels), 1)
    table = table_of(["threshold"] * len(levels), p=levels, cap=1e5, kx=1.0, km=0.0)
    row = torch.arange(len(levels)).repeat_interleave(len(kinds))
    expected, out = torch.full((2, len(values), 4), math.nan)
    ulam_kernels.reduce(values[None], table, row, out=expected, backend="cpu")
    device.reduce(values[None], table, row, out)
    assert differences(expected, out) == 0 and device.shape[7] == (1 if n == 200 else 8)


# Where the threads that share a chain, and the quads that each of them has, become more.
BORDERS = [1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 129, 257, 511, 512, 513, 1023, 1024, 1025]


@pytest.mark.parametrize("n", BORDERS)
def test_short_chains_that_share_a_warp_have_the_bits_of_the_cpu(device: Device, n: int) -> None:
    """Numbers of chains that fill no warp and no block, rows of every kind side by side; NaN spoils its own chain."""
    rng, table = np.random.default_rng(n), mixed_table(1)
    for chains, state, skew in ((1, FP32, 0), (13, BF16, 0), (13, FP32, 4), (131 if n < 64 else 5, FP32, 0)):
        values = torch.from_numpy(2 * rng.normal(size=(1, chains, 1, n))).to(state)
        values[0, 1::5, 0, rng.integers(n)] = math.nan
        values[0, 2::5, 0, rng.integers(n)] = math.inf
        values[0, 3::5, 0, : n // 2] = values[0, 3::5, 0, n // 2 : n // 2 * 2]  # every number twice
        row = torch.from_numpy(rng.integers(0, len(table), chains))
        row[::2] = int(rng.choice([3, 4, 8]))
        given = random_inputs(rng, (1, n), FP32, chains, n % 2 == 0, chains == 13)
        expected, out = torch.full((2, chains, 4), math.nan)
        ulam_kernels.reduce(values, table, row, out=expected, backend="cpu", **given)
        device.reduce(values, table, row, out, skew, **given)
        assert differences(expected, out) == 0
        assert ("reduce_chains" in device.used) == (n <= 1024)


@pytest.mark.parametrize(("n", "chains"), [(2, 128), (5, 128), (16, 64), (32, 64), (64, 32), (512, 4), (1024, 4)])
def test_a_block_has_many_short_chains(device: Device, n: int, chains: int) -> None:
    table, row = table_of(["threshold"], kx=1.0, km=0.0), torch.zeros(chains + 1, dtype=torch.int64)
    for given in (chains, chains + 1):
        x, out = torch.ones(1, given, n), torch.full((given, 4), math.nan)
        device.reduce(x, table, row[:given], out)
        assert device.shape[0] == given - chains + 1 and device.shape[3] == 128
        assert (out == torch.tensor([-1.0, 1.0, 1.0, 1.0])).all()


def loads(device: Device, name: str, tensor: torch.Tensor, chains: int) -> list[tuple[int, int]]:
    """For each chain the fewest and the most loads of any byte of a tensor by the last launch."""
    start = device.lay[name] - device.memory.BASE
    assert device.memory.reads is not None
    counted = device.memory.reads[start : start + tensor.numel() * tensor.element_size()].reshape(chains, -1)
    return [(int(chain.min()), int(chain.max())) for chain in counted]


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("chains", "n", "state", "model", "explicit", "skew"),
    [
        (8, 1, FP32, FP32, False, 0), (8, 999, BF16, FP16, True, 0), (8, 4096, FP32, FP32, True, 4),
        (70, 12_288, FP32, BF16, False, 0), (8, 32_768, FP32, FP32, False, 0), (8, 32_768, FP32, FP16, True, 0),
        (8, 32_766, BF16, BF16, False, 0), (70, 32_768, BF16, BF16, False, 0),
    ],
)  # fmt: skip
def test_elements_are_read_once(
    device: Device, architecture: str, chains: int, n: int, state: torch.dtype, model: torch.dtype, explicit: bool,
    skew: int,
) -> None:  # fmt: skip
    """From global memory, and the noise is generated once, where a row asks for them; other rows read nothing."""
    device.be(architecture)
    device.counts = True
    rng, table = np.random.default_rng(n), mixed_table(1)
    row = torch.zeros(chains, dtype=torch.int64)
    row[:8] = torch.tensor([4, 8, 0, 3, 9, 1, 7, 10])
    given = random_inputs(rng, (1, n), model, chains, True, explicit)
    values = torch.from_numpy(rng.normal(size=(1, chains, 1, n))).to(state)
    device.reduce(values, table, row, torch.empty(chains, 4), skew, **given)
    flags, weights, (kx, km) = table.flags[row], given["guidance"], table.coef[row, :2].T
    reduced = (flags & (THRESHOLD | NORMALISE)) != 0
    read = reduced & (km != 0) & ((flags & READS_M) != 0)
    once = lambda rows: [(int(r), int(r)) for r in rows]  # noqa: E731
    assert loads(device, "state", values, chains) == once(reduced & (kx != 0))
    assert loads(device, "model", given["model"], chains) == once(read & (weights != 0))
    assert loads(device, "uncond", given["uncond"], chains) == once(read & (weights != 1))
    normalised = (flags & NORMALISE) != 0
    if explicit:
        assert loads(device, "noise", given["noise"], chains) == once(normalised)
    kernel = device.kernels[device.used].code
    roots = sum(int(device.executed[k]) for k, i in enumerate(kernel) if i.name == "rsqrt")
    assert roots == (0 if explicit else int(normalised.sum()) * -(-n // 4) * 2)  # one for two normals


@pytest.mark.parametrize(("architecture", "chains", "n", "kept"), [
    ("sm_80", 2, 196_608, (163 << 10) - 18_880), ("sm_90", 1, 500_000, 8 * ((227 << 10) - 21_168)),
    ("sm_90", 2, 196_608, 8 * 4 * 24_576),
])  # fmt: skip
def test_what_shared_memory_cannot_hold_is_read_three_times(
    device: Device, architecture: str, chains: int, n: int, kept: int
) -> None:
    """``kept``: the bytes that a chain's blocks have for it. A round of their threads is kept as a whole."""
    device.be(architecture)
    device.counts = True
    x = torch.from_numpy(np.random.default_rng(n).normal(size=(1, chains, n))).float()
    table, row = table_of(["threshold"], kx=1.0, km=0.0), torch.zeros(chains, dtype=torch.int64)
    expected, out = torch.full((2, chains, 4), math.nan)
    ulam_kernels.reduce(x, table, row, out=expected, backend="cpu")
    device.reduce(x, table, row, out)
    assert differences(expected, out) == 0
    assert device.memory.reads is not None
    start = device.lay["state"] - device.memory.BASE
    counts = device.memory.reads[start : start + x.numel() * 4].reshape(chains, n, 4)
    a_round = 4 * device.shape[3] * device.shape[7]
    once = min(n, kept // 4 // a_round * a_round)
    assert (counts[:, :once] == 1).all() and (counts[:, once:] == 3).all()


def test_a_device_without_room_for_a_cluster_gives_a_chain_one_block(device: Device) -> None:
    """Fewer multiprocessors than a cluster has blocks, as in a small part of a device."""
    device.be("sm_90", clusters=0)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 2, 40_000))).float()
    table, row = table_of(["threshold"], kx=1.0, km=0.0), torch.zeros(2, dtype=torch.int64)
    expected, out = torch.full((2, 2, 4), math.nan)
    ulam_kernels.reduce(x, table, row, out=expected, backend="cpu")
    device.reduce(x, table, row, out)
    assert differences(expected, out) == 0 and device.shape[7] == 1


# Orders in which threads may run between barriers, by what goes on alone: see Machine.run.
ORDERS = {
    "warps, first to last": lambda machine: np.arange(machine.threads) // 32,
    "warps, last to first": lambda machine: -(np.arange(machine.threads) // 32),
    "blocks, first to last": lambda machine: machine.block,
    "blocks, last to first": lambda machine: -machine.block,
}


def agrees(device: Device, kind: str, n: int, order: str) -> bool:
    """Whether one chain's reduction has the bits of the CPU in this order."""
    rng, row = np.random.default_rng(n), torch.zeros(1, dtype=torch.int64)
    x, table = torch.from_numpy(rng.normal(size=(1, 1, n))).float(), table_of([kind])
    given = random_inputs(rng, (n,), FP32, 1, False, False)
    expected, out = torch.full((2, 1, 4), math.nan)
    ulam_kernels.reduce(x, table, row, out=expected, backend="cpu", **given)
    device.alone = ORDERS[order]
    device.reduce(x, table, row, out, **given)
    return differences(expected, out) == 0


@pytest.mark.parametrize("kind", ["threshold", "normalise"])
@pytest.mark.parametrize(("n", "scope"), [(1500, "warps"), (16_384, "blocks")])
def test_barriers_order_all_that_threads_exchange(device: Device, kind: str, n: int, scope: str) -> None:
    """The bits do not depend on who runs first, and without any one barrier of a cluster they do."""
    orders = [order for order in ORDERS if order.startswith(scope)]
    assert all(agrees(device, kind, n, order) for order in orders)
    kernel, executed = device.kernels[device.used], device.executed
    barriers = [k for k, i in enumerate(kernel.code) if i.name == "barrier" and "wait" in i.modifiers and executed[k]]
    assert len(barriers) == {("threshold", 16_384): 7, ("normalise", 16_384): 2}.get((kind, n), 0)

    def noticed(barrier: int) -> bool:
        code = list(kernel.code)
        code[barrier] = dataclasses.replace(code[barrier], modifiers=["cluster", "arrive"])
        device.kernels[kernel.name] = dataclasses.replace(kernel, code=code)
        try:
            return not all(agrees(device, kind, n, order) for order in orders)
        except ValueError:  # what other threads have not written, or no longer have
            return True
        finally:
            device.kernels[kernel.name] = kernel

    assert all(map(noticed, barriers))


def test_rows_that_cannot_be_reduced_get_nan(device: Device) -> None:
    """A row outside the table, or one that reads what was not given; a row without a reduction needs nothing."""
    table, row = table_of(["plain", "threshold", "normalise"]), torch.tensor([0, 1, 2, -1, 3])
    for given, expected in (({}, [0, 1, 1, 1, 1]), ({"model": torch.ones(5, 9)}, [0, 0, 1, 1, 1])):
        out = torch.zeros(5, 4)
        device.reduce(torch.ones(1, 5, 9), table, row, out, **given)
        assert out[0].tolist() == [-math.inf, math.inf, 1, 1]
        assert out.isnan().all(dim=1).tolist() == [bool(e) for e in expected]


@pytest.mark.parametrize("case", BLENDS, ids=str)
def test_blends_have_the_bits_of_the_cpu(device: Device, case: tuple[Any, ...]) -> None:
    chains, n, state, net, explicit, skew = case
    rng = np.random.default_rng(n)
    given: dict[str, Any] = blend_cases.random_inputs(rng, (n,), chains)
    if explicit:
        given["noise"] = torch.from_numpy(rng.normal(size=(chains, n))).float()
    values = torch.from_numpy(rng.normal(size=(2, chains, n))).to(state)
    results = []
    for run in (ulam_kernels.blend, device.blend):
        after = values.clone()
        if net is not None:
            given |= {"net_in": torch.full((chains, n), math.nan, dtype=net), "c_next": torch.linspace(-2, 2, chains)}
        run(after, **given, **({"skew": skew} if run == device.blend else {"backend": "cpu"}))
        results.append((after, given.get("net_in", after)))
    assert "blend_quads" in device.used
    assert all(differences(*pair) == 0 for pair in zip(*results, strict=True))


# --- Machine code ---------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_four_loads_are_in_flight(architecture: str) -> None:
    command = [str(CUOBJDUMP), "-sass", "-arch", architecture, "machine.so"]
    dump = subprocess.run(command, cwd=cuda_simulator.build(), check=True, capture_output=True, text=True).stdout
    kernels = {part.split("\n", 1)[0]: part for part in dump.split("Function : ")[1:] if "reduce_chainI" in part[:60]}
    aligned = [code for name, code in kernels.items() if "Lb1E" in name]
    assert len(aligned) == 2
    for code in aligned:
        groups = loads_in_flight(code)
        if architecture == "sm_80" and "LDG" not in code:
            continue  # the empty kernel of clusters
        assert sum(groups) >= 3 * 3 * 4 and min(groups) >= 4, groups
