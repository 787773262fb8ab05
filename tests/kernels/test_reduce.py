"""Per-chain reductions: exact quantiles and norms, the same bits on every CPU path, and the step that uses them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from bit_comparison import same_bits
from reduce_cases import LEVELS, MIXED, mixed_table, random_inputs, reduced, table_of
from step_cases import FLOATS
from ulam_kernels import Table, _cpu
from ulam_kernels.table import IDLE, NORMALISE, READS_M, READS_Z, THRESHOLD, USES_D

SIZES = [(1,), (2,), (3, 5, 7), (4, 33), (1, 1000), (3, 32, 33)]
BACKENDS = ["reference", "cpu"]


def quantile_of(values: torch.Tensor, p: float, cap: float = math.inf, backend: str = "cpu") -> torch.Tensor:
    """``[B, 4]`` of chains whose D is ``values`` ``[B, n]`` itself."""
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    table = table_of(["threshold"], p=p, cap=cap, kx=1.0, km=0.0, dtype=wide)
    rows = torch.zeros(len(values), dtype=torch.int64)
    return reduced(values[None].clone(), table, rows, model=values, backend=backend)


@pytest.mark.parametrize("state_type, model_type", list(itertools.product(FLOATS, repeat=2)))
def test_every_instruction_set_equals_the_reference(state_type: torch.dtype, model_type: torch.dtype) -> None:
    """reduce, and the step that takes what it made, over every kind of row side by side."""
    rng = np.random.default_rng([FLOATS.index(state_type), FLOATS.index(model_type)])
    before = _cpu.instruction_set()
    for k, shape in enumerate(SIZES):
        registers, chains = k % 5 + 1, 2 * len(MIXED)
        table = mixed_table(registers)
        inputs = random_inputs(rng, shape, model_type, chains, guided=k % 2 == 0, explicit=k % 3 == 0)
        start = torch.from_numpy(2 * rng.normal(size=(registers, chains, *shape))).to(state_type)
        row = torch.from_numpy(rng.permutation(np.arange(chains) % len(table)))
        results = []
        for name in ("reference", *_cpu.instruction_sets()):
            if name != "reference":
                _cpu.use_instruction_set(name)
            backend = "reference" if name == "reference" else "cpu"
            state, net_in = start.clone(), torch.full((chains, *shape), math.nan)
            scales = reduced(state, table, row, backend=backend, **inputs)
            assert torch.equal(state, start)
            ulam_kernels.step(state, table, row, net_in=net_in, scales=scales, backend=backend, **inputs)
            results.append((name, scales, state, net_in))
        _cpu.use_instruction_set(before)
        for name, *tensors in results[1:]:
            assert all(map(same_bits, tensors, results[0][1:])), (name, shape)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_batches_change_no_bit(threads: int) -> None:
    """A chain's numbers are those that it has alone, above and below what a bracketed selection needs."""
    rng, before = np.random.default_rng(1), torch.get_num_threads()
    table = mixed_table()
    for n in (2047, 2048, 12_345):
        inputs = random_inputs(rng, (n,), torch.float32, len(MIXED), guided=True, explicit=False)
        state = torch.from_numpy(rng.normal(size=(1, len(MIXED), n))).float()
        row = torch.arange(len(MIXED))
        alone = torch.cat([
            reduced(state[:, b : b + 1], table, row[b : b + 1], **{k: v[b : b + 1] for k, v in inputs.items()})
            for b in range(len(MIXED))
        ])  # fmt: skip
        try:
            torch.set_num_threads(threads)
            together = reduced(state, table, row, **inputs)
        finally:
            torch.set_num_threads(before)
        assert same_bits(alone, together)
        assert same_bits(together, reduced(state, table, row, backend="reference", **inputs))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [2, 3, 65, 2049, 16_385])
def test_a_level_between_no_numbers_gives_an_order_statistic(backend: str, n: int) -> None:
    """p = k / (n - 1) is exact for these n, so the result is the k-th smallest |D| itself."""
    values = 1 + torch.randn(3, n, generator=torch.Generator().manual_seed(n)).abs()
    ordered = values.sort(dim=1).values
    for k in {0, 1, n // 3, n // 2, n - 2, n - 1} - {0}:
        p = k / (n - 1)
        if float(np.float32(p)) == p:
            signs = torch.where(torch.arange(n) % 2 == 0, 1.0, -1.0)
            scales = quantile_of(values * signs, p, backend=backend)
            assert torch.equal(scales[:, 1], ordered[:, k])
            assert torch.equal(scales[:, 0], -ordered[:, k])


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantile_against_torch(backend: str) -> None:
    """torch.quantile in float64: ours differs by its own few roundings in fp32."""
    for n, p in itertools.product((1, 2, 7, 512, 2100, 12_288), LEVELS):
        values = torch.randn(4, n, generator=torch.Generator().manual_seed(n)) * 3
        exact = torch.quantile(values.double().abs(), float(np.float32(p)), dim=1).clamp(min=1)
        assert torch.allclose(quantile_of(values, p, backend=backend)[:, 1].double(), exact, rtol=2**-22, atol=0)
    values = values.double()
    exact = torch.quantile(values.abs(), 0.995, dim=1).clamp(min=1)
    assert torch.allclose(quantile_of(values, 0.995, backend="reference")[:, 1], exact, rtol=1e-15, atol=0)


@pytest.mark.parametrize("values", [
    torch.full((1, 4096), 2.5),
    torch.arange(4096.0)[None] % 8 + 1,  # a sample of every eighth sees one value
    torch.cat([torch.full((1, 4000), 3.0), torch.arange(1.0, 97.0)[None]], dim=1),
    (torch.arange(4096.0) % 8 == 0).float()[None] * -1e30 + torch.linspace(1, 2, 4096)[None],
    torch.arange(4096.0).flip(0)[None] * 2**-149 + 0,  # subnormal
])  # fmt: skip
def test_numbers_that_a_sample_misjudges(values: torch.Tensor) -> None:
    for p in (*LEVELS, 0.124, 0.876):
        assert same_bits(quantile_of(values, p), quantile_of(values, p, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_bounds_of_the_threshold(backend: str) -> None:
    inf, nan = math.inf, math.nan
    few, many = torch.full((1, 5), 0.25), torch.full((1, 5), 8.0)
    assert quantile_of(few, 0.9, backend=backend).tolist() == [[-1, 1, 1, 1]]
    assert quantile_of(many, 0.9, backend=backend).tolist() == [[-8, 8, 0.125, 1]]
    assert quantile_of(many, 0.9, cap=2.0, backend=backend).tolist() == [[-2, 2, 0.5, 1]]
    values = torch.tensor([[1.0, 2.0, nan, 3.0], [1.0, 2.0, inf, 4.0], [inf, inf, inf, inf], [1.0, 2.0, -3.0, 4.0]])
    scales = quantile_of(values, 0.5, cap=16.0, backend=backend)
    assert scales[0].isnan().tolist() == [True, True, True, False]
    assert scales[1:].tolist() == [[-3, 3, float(np.float32(1) / np.float32(3)), 1], [-16, 16, 1 / 16, 1],
                                   [-2.5, 2.5, float(np.float32(0.4)), 1]]  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 5, 1023, 1024, 1025, 12_288])
def test_norms_against_exact_sums(backend: str, n: int) -> None:
    """g = sum z^2 / sum D^2 from exactly rounded sums; float64 errors are far below half an ulp of fp32, mostly."""
    generator = torch.Generator().manual_seed(n)
    x, z = torch.randn(2, 4, n, generator=generator)
    table = table_of(["normalise"], kx=1.0, km=0.0)
    rows = torch.zeros(4, dtype=torch.int64)
    scales = reduced(x[None], table, rows, noise=z, backend=backend)
    squares = lambda t: np.array([math.fsum(v * v for v in row) for row in t.double().tolist()])  # noqa: E731
    g = squares(z) / squares(x)
    assert np.allclose(scales[:, 2].numpy(), g, rtol=2**-24 * 1.001, atol=0)
    assert np.allclose(scales[:, 3].numpy(), np.sqrt(g), rtol=2**-24 * 1.001, atol=0)
    assert scales[:, 0].tolist() == [-math.inf] * 4 and scales[:, 1].tolist() == [math.inf] * 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_norms_of_the_generated_noise_and_of_nothing(backend: str) -> None:
    ids, rows = torch.arange(3), torch.zeros(3, dtype=torch.int64)
    z = ulam_kernels.fill_normal(torch.empty(3, 2, 77), seed=ids, chain=ids + 7, draw=16 * ids)
    x = torch.ones(1, 3, 2, 77)
    table, stream = table_of(["normalise"], kx=1.0, km=0.0), {"seed": ids, "chain": ids + 7, "draw": 16 * ids}
    assert same_bits(
        reduced(x, table, rows, backend=backend, **stream), reduced(x, table, rows, noise=z, backend=backend)
    )
    nothing = reduced(0 * x, table, rows, backend=backend, **stream)
    assert nothing[:, 2:].tolist() == [[0, 0]] * 3
    x[0, 1, 0, 5] = math.nan
    assert reduced(x, table, rows, backend=backend, **stream).isnan().any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_rows_get_no_scales_and_read_nothing(backend: str) -> None:
    """Without model or noise, with NaN in the state, and in a batch that has no elements."""
    rows = torch.tensor([0, 1, 2])
    table, neutral = mixed_table(), [[-math.inf, math.inf, 1.0, 1.0]] * 3
    assert reduced(torch.full((1, 3, 9), math.nan), table, rows, backend=backend).tolist() == neutral
    assert reduced(torch.empty(1, 3, 0), table, rows + 3, backend=backend).tolist() == neutral
    assert reduced(torch.empty(1, 0, 5), table, rows[:0], backend=backend).shape == (0, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_step_bounds_and_scales(backend: str) -> None:
    """x' = 0.5 x + 0.375 D - 0.125 m + 0.25 z in float64, with D and z as the chain's scales say."""
    rng = np.random.default_rng(3)
    x, m, z = (torch.from_numpy(rng.normal(size=(5, 301))).float() for _ in range(3))
    table = table_of(["threshold", "normalise", "clip", "plain", "threshold"], p=0.9)
    row = torch.arange(5)
    scales = torch.tensor([[-1.5, 1.5, 0.75, math.nan], [-math.inf, math.inf, 3.0, 1.75], [math.nan] * 4,
                           [math.nan] * 4, [math.nan, math.nan, 2.0, 1.0]])  # fmt: skip
    state = x[None].clone()
    ulam_kernels.step(state, table, row, model=m, noise=z, scales=scales, backend=backend)
    D = 1.25 * x.double() - 0.75 * m.double()
    D[0] = 0.75 * D[0].clamp(-1.5, 1.5)
    D[1], D[2], D[3], D[4] = 3 * D[1], D[2].clamp(-0.75, 0.75), 0, 2 * D[4]
    exact = 0.5 * x + 0.375 * D - 0.125 * m + 0.25 * z * torch.tensor([1, 1.75, 1, 1, 1])[:, None]
    assert torch.allclose(state[0].double(), exact, rtol=0, atol=2e-6)
    alone = x[None, 2:4].clone()
    ulam_kernels.step(alone, table, row[2:4], model=m[2:4], noise=z[2:4], backend=backend)
    assert torch.equal(alone[0], state[0, 2:4])


@pytest.mark.parametrize("backend", BACKENDS)
def test_dynamic_thresholding_against_diffusers(backend: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    x = 2 * torch.randn(4, 3, 16, 17, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.DDPMScheduler(thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.75)
    rows = torch.zeros(4, dtype=torch.int64)
    table = table_of(["threshold"], p=0.95, cap=1.75, kx=1.0, km=0.0)
    scales = reduced(x[None], table, rows, model=x, backend=backend)
    state = x[None].clone()
    given = {"model": torch.zeros_like(x), "noise": torch.zeros_like(x)}
    ulam_kernels.step(state, table, rows, scales=scales, backend=backend, **given)
    expected = 0.5 * x + 0.375 * scheduler._threshold_sample(x)
    assert torch.allclose(state[0], expected, rtol=0, atol=1e-5)  # torch interpolates between statistics in fp32


def test_strides_of_the_model_and_its_second_half_change_no_bit() -> None:
    rng = np.random.default_rng(4)
    state = torch.from_numpy(rng.normal(size=(1, 12, 3, 8, 9))).float()
    inputs = random_inputs(rng, (3, 8, 9), torch.float32, 12, guided=True, explicit=False)
    table, row = mixed_table(), torch.arange(12)
    expected = reduced(state, table, row, **inputs)
    outputs = {name: inputs.pop(name) for name in ("model", "uncond")}
    for alter in (
        lambda t: t.to(memory_format=torch.channels_last),
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: torch.cat([t, torch.full_like(t, math.nan)], dim=1),
    ):
        assert same_bits(reduced(state, table, row, **inputs, **{k: alter(v) for k, v in outputs.items()}), expected)
    outputs = {"model": state[0]}  # the state itself
    inputs.pop("guidance")
    expected = reduced(state, table, row, **inputs, model=state[0].clone())
    assert same_bits(reduced(state, table, row, **inputs, **outputs), expected)


def test_float64_runs_on_the_reference() -> None:
    x, z = torch.randn(2, 2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    table = table_of(["threshold", "normalise"], p=1 / 3, kx=5.0, km=0.0, dtype=torch.float64)
    scales = reduced(x[None], table, torch.arange(2), noise=z)
    s = torch.quantile(5 * x[0].abs(), 1 / 3).clamp(min=1)
    g = (z[1] ** 2).sum() / (25 * x[1] ** 2).sum()
    assert torch.allclose(scales[0], torch.stack([-s, s, 1 / s, torch.ones(()).double()]), rtol=1e-14)
    assert torch.allclose(scales[1, 2:], torch.stack([g, g.sqrt()]), rtol=1e-14)
    state = x[None].clone()
    ulam_kernels.step(state, table, torch.arange(2), model=0 * x, noise=z, scales=scales)
    exact = 0.5 * x + 0.375 * torch.stack([(5 * x[0]).clamp(-s, s) / s, 5 * g * x[1]])
    assert torch.allclose(state[0], exact + 0.25 * z * torch.stack([g * 0 + 1, g.sqrt()])[:, None], rtol=1e-13)


# What a table says.


def test_flags_follow_what_is_left_of_a_row() -> None:
    flags = table_of(["threshold", "normalise", "clip", "idle"]).flags.tolist()
    used = READS_M | READS_Z | USES_D | 1
    assert flags == [used | THRESHOLD, used | NORMALISE, used, IDLE]
    one, matrix, yes = np.ones(1), np.zeros((1, 1, 4)), np.array([True])
    pack = lambda a, lo, hi, **kind: Table.pack(  # noqa: E731
        one, 0 * one, lo * one, hi * one, 0 * one, 0 * one, one, a, yes[None], ~yes, **kind
    ).flags.item()
    matrix[0, 0, 0] = 1
    assert pack(matrix, 0.9, np.inf, threshold=yes) == 1  # nothing uses D
    assert pack(matrix, -np.inf, np.inf, normalise=yes) == 1
    matrix[0, 0, 3] = 1e-60  # 0 in fp32
    assert pack(matrix, -np.inf, np.inf, normalise=yes) == 1
    matrix[0, 0, 3] = 1  # the norm of z over that of D: both are needed
    assert pack(matrix, -np.inf, np.inf, normalise=yes) == 1 | USES_D | READS_Z | NORMALISE


@pytest.mark.parametrize("changes, named", [
    ({"p": 0.0}, r"lo\[1\]: got 0.0, expected the level"),
    ({"p": 1.01}, r"lo\[1\]: got 1.01"),
    ({"p": math.nan}, r"lo\[1\]: got nan"),
    ({"p": 1e-60}, r"lo\[1\]: got 1e-60"),
    ({"cap": 0.99}, r"hi\[1\]: got 0.99, expected the cap"),
    ({"cap": math.nan}, r"hi\[1\]: got nan"),
])  # fmt: skip
def test_bad_levels_and_caps_are_named(changes: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        table_of(["plain", "threshold"], **changes)


def test_kinds_that_exclude_each_other_are_named() -> None:
    one, yes = np.ones(1), np.array([True])

    def pack(lo: float, hi: float, learned: Any, **kinds: Any) -> None:
        Table.pack(one, one, lo * one, hi * one, one, one, one, np.ones((1, 1, 4)), yes[None], learned, **kinds)

    with pytest.raises(ValueError, match=r"normalise\[0\]: got True beside threshold"):
        pack(0.5, 2.0, ~yes, threshold=yes, normalise=yes)
    with pytest.raises(ValueError, match=r"normalise\[0\]: got True beside learned"):
        pack(-np.inf, np.inf, yes, normalise=yes)
    with pytest.raises(ValueError, match=r"lo\[0\], hi\[0\]: got -1.0, inf, expected no clip"):
        pack(-1.0, np.inf, ~yes, normalise=yes)
    with pytest.raises(ValueError, match=r"threshold: got shape \[2\], expected \[1\]"):
        pack(0.5, 2.0, ~yes, threshold=np.ones(2, dtype=bool))


# Bad input.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind, changes, named", [
    ("threshold", {"model": None}, "model"),
    ("normalise", {"model": None}, "model"),
    ("normalise", {"noise": None}, "noise"),
    ("threshold", {"row": torch.tensor([0, 1])}, "row"),
    ("threshold", {"row": torch.tensor([0, 0], dtype=torch.int32)}, "row: got dtype"),
    ("threshold", {"out": torch.empty(2, 3)}, "out: got shape"),
    ("threshold", {"out": torch.empty(2, 4, dtype=torch.float64)}, "out: got dtype"),
    ("threshold", {"uncond": torch.zeros(2, 3)}, "guidance"),
])  # fmt: skip
def test_bad_input_is_named(backend: str, kind: str, changes: dict[str, Any], named: str) -> None:
    given: dict[str, Any] = {"row": torch.zeros(2, dtype=torch.int64), "model": torch.zeros(2, 3),
                             "noise": torch.zeros(2, 3), "out": torch.empty(2, 4)} | changes  # fmt: skip
    with pytest.raises((TypeError, ValueError, IndexError), match=named):
        ulam_kernels.reduce(torch.zeros(1, 2, 3), table_of([kind]), given.pop("row"), backend=backend, **given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["threshold", "normalise"])
def test_a_step_without_scales_is_an_error(backend: str, kind: str) -> None:
    given = {"model": torch.zeros(2, 3), "noise": torch.zeros(2, 3), "backend": backend}
    state, rows = torch.ones(1, 2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="scales"):
        ulam_kernels.step(state, table_of([kind]), rows, **given)
    assert torch.equal(state, torch.ones(1, 2, 3))
    with pytest.raises(ValueError, match="scales: got shape"):
        ulam_kernels.step(state, table_of([kind]), rows, scales=torch.zeros(2, 3), **given)
