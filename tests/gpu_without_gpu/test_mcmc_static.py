"""The Langevin and Metropolis kernels for GPUs without one: what they compile to, and what the interpreter makes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

import triton_interpreter
from cuda_simulator import ARCHITECTURES, CUOBJDUMP, FLAGS, NVCC, ROOT
from mcmc_cases import Cases, replace_backends
from ulam_kernels import densities, mcmc

SOURCES = [ROOT / "csrc/cuda" / name for name in ("mcmc_steps.cu", "mcmc_run.cu")]


@pytest.mark.long
def test_interpreted_triton_has_the_bits_of_the_cpu() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    triton_interpreter.run("check_mcmc")


@pytest.mark.long
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_triton_compiles_without_local_memory(
    architecture: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    import triton_simulator
    from machine_code import disassemble, opcodes
    from ulam_kernels.triton import mcmc as steps
    from ulam_kernels.triton import mcmc_run

    ours: dict[Any, Any] = {mcmc_run.run_kernel: mcmc_run, mcmc_run.evaluate_kernel: mcmc_run}
    names = ("langevin", "kick_drift", "metropolis", "select")
    ours |= {getattr(steps, f"{name}_kernel"): steps for name in names}
    ours |= {getattr(steps, f"{name}_chain"): steps for name in ("mala_accept", "squared_norm")}
    for kernel, module in ours.items():
        monkeypatch.setitem(triton_simulator.MODULES, kernel, module)
    cases = Cases(21)
    with triton_simulator.simulated(triton_simulator.cuda(architecture)) as gpu, monkeypatch.context() as patch:
        replace_backends(lambda _: steps, patch.setattr)
        chosen = {80: ["mala"], 90: ["ula", "hmc"], 100: ["baoab"]}[architecture]
        for sampler in chosen:
            cases.run(densities.double_well(32), sampler, 5, scaled=True)("triton")
        for _, step in cases.steps(2, 600 if architecture == 90 else 40):
            step("triton")
    compiled = {id(kernel): kernel for kernel in gpu.compiled}
    assert len(compiled) >= len(chosen) + 4
    for kernel in compiled.values():
        assert ".local" not in kernel.asm["ptx"] and ".approx" not in kernel.asm["ptx"], kernel.metadata.name
        # no array of states: a whole launch may keep a few loop-invariant words there under some Triton releases
        spilled = [name for name in opcodes(disassemble(kernel, tmp_path)) if name.startswith(("LDL", "STL"))]
        assert len(spilled) <= (8 if kernel.metadata.name == "run_kernel" else 0), (kernel.metadata.name, spilled)


@pytest.mark.skipif(not (NVCC and CUOBJDUMP), reason="nvcc or cuobjdump is missing")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_cuda_compiles_without_local_memory(source: Path, tmp_path: Path) -> None:
    """And with no approximate instruction but the root of the noise standard and the beginnings of exact ones."""
    targets = [f"-gencode=arch=compute_{a[3:]},code={a}" for a in ARCHITECTURES]
    command = [str(NVCC), *FLAGS, *targets, "--threads=2", "-fatbin"]
    subprocess.run([*command, str(source), "-o", "out.fatbin"], cwd=tmp_path, check=True)
    for architecture in ARCHITECTURES:
        dump = [str(CUOBJDUMP), "-sass", "-arch", architecture, "out.fatbin"]
        sass = subprocess.run(dump, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        assert sass.count("Function : ") == (8 if source.stem == "mcmc_steps" else 5)
        words = set(sass.split())
        assert not {word for word in words if word.startswith(("LDL", "STL"))}
        special = {word.split(".", 1)[1] for word in words if word.startswith("MUFU.")}
        assert special <= {"RSQ", "RCP", "RCP64H", "RSQ64H"}, special


def test_the_samplers_are_numbered_as_the_kernels_have_them() -> None:
    """And so are the densities."""
    header = (ROOT / "csrc/include/ulam/mcmc.h").read_text()
    samplers = header.split("enum Sampler : int { ")[1].split(" }")[0].split(", ")
    kinds = header.split("enum DensityKind : int { ")[1].split(" }")[0].split(", ")
    assert [name[1:].lower() for name in samplers] == list(mcmc.SAMPLERS)
    names = [name for name in vars(densities) if name.isupper() and not name.startswith("MAX")]
    assert [kind[1:].lower() for kind in kinds] == [
        name.lower().replace("_", "") for name in sorted(names, key=lambda name: getattr(densities, name))
    ]
