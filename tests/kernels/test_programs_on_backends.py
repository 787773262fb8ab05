"""Every sampler's whole program gives the same bits on the reference, the CPU's instruction sets and Triton.

Triton's kernels run in its interpreter, in a process of its own, with a fused multiply-add that rounds once.
"""

from __future__ import annotations

import pytest
import torch

import triton_interpreter
import ulam_kernels
from program_cases import execute, programs
from ulam import Program
from ulam_kernels import cpu, reference


@pytest.mark.parametrize("name", programs())
def test_cpu_gives_the_references_bits(name: str) -> None:
    program = programs()[name]
    expected = execute(reference, program)
    assert torch.isfinite(expected[0]).all()
    assert torch.equal(expected.nan_to_num(9.0), execute(cpu, program).nan_to_num(9.0))


@pytest.mark.long
def test_interpreted_triton_gives_the_cpus_bits() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    triton_interpreter.run("check_programs")


def test_a_program_survives_json_and_gives_the_same_table() -> None:
    for program in programs().values():
        again = Program.from_json(program.to_json())
        assert again == program and hash(again) == hash(program)
        table, other = program.table(), again.table()
        assert torch.equal(table.coef, other.coef) and torch.equal(table.flags, other.flags)
        assert str(program).count("\n") == len(program) + 2
    assert "reference" in ulam_kernels.backends()
