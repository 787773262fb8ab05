"""Launches of Langevin and Metropolis operations on a GPU, without one: bits, traffic and shapes of the real kernels.

The PTX of the CUDA and of the Triton kernels is executed by the interpreter, which counts every access to memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import cuda_simulator
from mcmc_cases import Cases, agree, evaluated, replace_backends
from mcmc_simulator import Chains, Counting, Traffic
from ulam_kernels import densities, mcmc
from ulam_kernels.cpu import mcmc as cpu
from ulam_kernels.densities import Density

needs_nvcc = pytest.mark.skipif(cuda_simulator.MISSING is not None, reason=str(cuda_simulator.MISSING))
PLAIN = [  # what evaluations read of these lives in registers
    densities.double_well(8), densities.gaussian(torch.zeros(8), torch.ones(8)), densities.rosenbrock(8),
    densities.funnel(8), densities.ring(8), densities.double_well(6), densities.double_well(3),
]  # fmt: skip


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a backend of an object."""

    def put(backend: object) -> None:
        replace_backends(lambda name: cpu if name == "cpu" else backend, monkeypatch.setattr)

    return put


@contextmanager
def triton(execute: bool = True) -> Iterator[tuple[Any, list[Traffic]]]:
    """The Triton backend for sm_90 on the interpreter, and the memory of each of its launches."""
    pytest.importorskip("triton", reason="triton is not installed")
    import triton_simulator
    from ulam_kernels.triton import mcmc as steps
    from ulam_kernels.triton import mcmc_run

    class Warps(Counting, triton_simulator.Warps):
        def __init__(self, kernel: Any, memory: Any, *rest: Any) -> None:
            memories.append(memory)
            super().__init__(kernel, memory, *rest)

    memories: list[Traffic] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton_simulator, "Memory", Traffic)
        patch.setattr(triton_simulator, "Warps", Warps)
        for kernel in (mcmc_run.run_kernel, mcmc_run.evaluate_kernel):
            patch.setitem(triton_simulator.MODULES, kernel, mcmc_run)
        with triton_simulator.simulated(triton_simulator.cuda(90), execute=execute):
            yield steps, memories


def launched(density: Density, sampler: str, steps: int, backend: str) -> dict[str, torch.Tensor]:
    """The outputs of a run of three chains that keeps every other state."""
    cases, d = Cases(30), density.dimension
    out = {
        "draws": torch.full((3, steps // 2, d), math.nan),
        "moments": cases.normal(3, 2, d).double(),
        "energies": torch.zeros(3, steps // 2, dtype=torch.float64),
    }
    v = {"v": cases.normal(3, d)} if sampler == "baoab" else {}
    ids, coef = cases.ids(3), cases.coef(sampler, 3)
    mcmc.run(density, cases.normal(3, d), sampler, coef, steps, **ids, **v, **out, thin=2, leapfrog=2, backend=backend)
    return out


def assert_moments_stay_in_registers(memories: list[Traffic], out: dict[str, torch.Tensor], a_step: int = 0) -> None:
    """Of a run of four steps and one of ten: no byte read more, but ``a_step`` of others; moments written once."""
    few, many = memories
    assert few.loads.sum() + 6 * a_step == many.loads.sum() > 0
    for memory in memories:
        seen = memory.of(out["moments"])
        assert (seen.writes == 1).all() and (seen.reads >= 1).all()
    assert (many.of(out["draws"]).writes == 1).all() and (many.of(out["draws"]).reads == 0).all()


@needs_nvcc
@pytest.mark.parametrize("skew", [4, *(pytest.param(skew, marks=pytest.mark.long) for skew in (0, 8))])
def test_cuda_runs_have_the_bits_of_the_cpu(use: Any, skew: int) -> None:
    use(Chains(skew))
    cases = Cases(31)
    for number, density in enumerate(cases.densities()):
        assert agree(evaluated(density, cases.normal(5, density.dimension)), "cpu", "cuda"), density
        for sampler in mcmc.EVERYWHERE if skew == 0 else (mcmc.EVERYWHERE[number % 4],):
            run = cases.run(density, sampler, 5, scaled=number % 2 == 0)
            assert agree(run, "cpu", "cuda"), (density, sampler)
    assert agree(cases.run(densities.funnel(3), "mala", 130, scaled=True), "cpu", "cuda")


@needs_nvcc
@pytest.mark.parametrize("skew", [0, 4, 8])
@pytest.mark.parametrize(
    ("chains", "n"), [(3, 5), (70, 2), (2, 40), (3, 128), (2, 130), (2, 600), (1, 1025), (2, 4100)]
)
def test_cuda_steps_have_the_bits_of_the_cpu(use: Any, skew: int, chains: int, n: int) -> None:
    use(Chains(skew))
    for name, step in Cases(32).steps(chains, n):
        assert agree(step, "cpu", "cuda"), name


@needs_nvcc
@pytest.mark.parametrize("sampler", mcmc.EVERYWHERE)
@pytest.mark.parametrize("density", PLAIN, ids=str)
def test_a_cuda_run_reads_nothing_in_its_loop(use: Any, density: Density, sampler: str) -> None:
    chains, memories = Chains(), []
    use(chains)
    for steps in (4, 10):
        out = launched(density, sampler, steps, "cuda")
        memories.append(chains.memory)
    assert_moments_stay_in_registers(memories, out)
    assert all((memory.of(out["moments"]).reads == 1).all() for memory in memories)


@needs_nvcc
@pytest.mark.parametrize(("d", "skew", "width"), [(8, 0, 16), (128, 0, 16), (8, 8, 8), (6, 0, 8), (7, 0, 4), (8, 4, 4)])
def test_draws_are_stored_by_the_widest_accesses_that_fit(use: Any, d: int, skew: int, width: int) -> None:
    chains = Chains(skew)
    use(chains)
    out = launched(densities.double_well(d), "mala", 10, "cuda")
    assert (chains.memory.of(out["draws"]).widest_write == width).all()


@needs_nvcc
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 32, 128])
def test_four_thousand_cuda_chains_reach_128_processors(use: Any, d: int) -> None:
    chains = Chains(executes=False)
    use(chains)
    density, x, cases = densities.double_well(d), torch.zeros(4096, d), Cases(33)
    mcmc.run(density, x, "ula", torch.zeros(4096, 4), 1, **cases.ids(4096), backend="cuda")
    ((grid, block),) = chains.shapes
    assert grid[0] >= 128 and block == (32, 1, 1)


@needs_nvcc
@pytest.mark.parametrize(("n", "width"), [(40, 16), (38, 8), (37, 4), (2, 8)])
def test_a_metropolis_test_reads_a_short_chain_once(use: Any, n: int, width: int) -> None:
    """And what it selects is not read again."""
    chains, cases, wide = Chains(), Cases(34), torch.zeros(5, dtype=torch.float64)
    use(chains)
    tensors = [cases.normal(5, n) for _ in range(4)]
    yes, _ = mcmc.mala_accept(*tensors, wide + 1e9, wide, torch.ones(5), **cases.ids(5), backend="cuda")
    assert yes.all()
    places = [chains.memory.buffers[k][0] for k in range(4)]  # as they were put: x, score, proposal, its score
    for number, start in enumerate(places):
        part = slice(start, start + tensors[0].nbytes)
        assert (chains.memory.loads[part] == 1).all() and (chains.memory.widest_read[part] == width).all()
        assert (chains.memory.writes[part] == (number < 2)).all()
        assert number >= 2 or (chains.memory.widest_write[part] == width).all()


@needs_nvcc
@pytest.mark.parametrize(("n", "width"), [(40, 16), (4100, 16), (38, 8), (37, 4)])
def test_selections_and_long_sums_go_by_the_widest_accesses_that_fit(use: Any, n: int, width: int) -> None:
    chains, cases, x = Chains(), Cases(35), torch.zeros(2, n)
    use(chains)
    mcmc.squared_norm(x, backend="cuda")
    assert (chains.memory.of(x).widest_read == width).all() and (chains.memory.of(x).reads == 1).all()
    yes = mcmc.accept(torch.ones(2, dtype=torch.float64), [(x, x + 1)], **cases.ids(2), backend="cuda")
    assert yes.all() and (x == 1).all()
    written = chains.memory.widest_write[chains.memory.widest_write > 1]  # all but the flags
    assert (written == width).all() and len(written) == x.nbytes


# Triton.


@pytest.mark.parametrize(("density", "sampler"), [
    (densities.double_well(8), "mala"), (densities.gaussian(torch.zeros(8), torch.ones(8)), "ula"),
    (densities.funnel(3), "hmc"), (densities.ring(4), "baoab"),
], ids=str)  # fmt: skip
def test_a_triton_run_has_the_bits_of_the_cpu_and_reads_nothing_in_its_loop(
    use: Any, density: Density, sampler: str
) -> None:
    with triton() as (backend, memories):
        use(backend)
        for steps in (4, 10):
            out = launched(density, sampler, steps, "triton")
        expected = launched(density, sampler, 10, "cpu")
    jitters = 12 if sampler == "hmc" else 0  # of the three chains, which cost a register in the loop
    assert_moments_stay_in_registers(memories, out, jitters)
    for name, tensor in out.items():
        assert torch.equal(tensor, expected[name]), name
    width = 16 if density.dimension % 4 == 0 else 4
    assert (memories[1].of(out["draws"]).widest_write == width).all()


def test_a_triton_launch_reaches_128_processors() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from ulam_kernels.triton import mcmc_run

    for d in (1, 2, 3, 4, 5, 8, 32, 128):
        grid, tile = mcmc_run._launch(densities.double_well(d), 4096)
        assert grid[0] >= 128 and tile["C"] * grid[0] >= 4096 > tile["C"] * (grid[0] - 1)
        assert tile["C"] * tile["W"] == 128 * tile["num_warps"]


@pytest.mark.parametrize(("density", "sampler"), [
    (densities.double_well(128), "mala"), pytest.param(densities.ring(33), "mala", marks=pytest.mark.long),
    pytest.param(densities.funnel(100), "hmc", marks=pytest.mark.long),
    (densities.gaussian(torch.zeros(7), torch.eye(7)), "hmc"),
    (densities.mixture(torch.ones(3), torch.arange(192.0).reshape(3, 64), 1.0), "mala"),
], ids=str)  # fmt: skip
def test_triton_keeps_a_long_chain_in_registers(use: Any, density: Density, sampler: str, tmp_path: Path) -> None:
    """Where a tile's layout becomes one of whole rows a thread, the machine code is tens of thousands of spills."""
    pytest.importorskip("triton", reason="triton is not installed")
    import triton_simulator
    from machine_code import disassemble, opcodes
    from ulam_kernels.triton import mcmc as steps
    from ulam_kernels.triton import mcmc_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(triton_simulator.MODULES, mcmc_run.run_kernel, mcmc_run)
        with triton_simulator.simulated(triton_simulator.cuda(90)) as gpu:
            use(steps)
            launched(density, sampler, 4, "triton")
    names = opcodes(disassemble(gpu.compiled[-1], tmp_path))
    assert not [name for name in names if name.startswith(("LDL", "STL"))] and len(names) < 5000
