"""Triton's kernels without a GPU: compiled by the backend's own launch code, and their PTX executed.

``simulated`` stands for Triton's driver. The backend's launch code runs, on tensors of the host; where a GPU would be
launched the kernel is compiled for a chosen target and, if wanted, its PTX is executed by ``ptx_interpreter``.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

from ptx_interpreter import Machine
from ptx_memory import Array, Memory
from ptx_parser import Instruction, Kernel, parse
from ulam_kernels.triton.affine import affine_long, affine_short
from ulam_kernels.triton.blend import blend_long, blend_short
from ulam_kernels.triton.fill import fill_long, fill_short
from ulam_kernels.triton.pixels import step_pixels_long, step_pixels_short
from ulam_kernels.triton.reduce import count_digit, reduce_chain, reduce_chains
from ulam_kernels.triton.step import step_long, step_short
from ulam_kernels.triton.tick import advance_long, advance_short, look_up_times

KERNELS = (step_long, step_short, step_pixels_long, step_pixels_short, count_digit, reduce_chain, reduce_chains,
           blend_long, blend_short, fill_long, fill_short, affine_long, affine_short, advance_long, advance_short,
           look_up_times)  # fmt: skip
MODULES = {kernel: sys.modules[kernel.fn.__module__] for kernel in KERNELS}


class Warps(Machine):
    """Adds what only Triton emits: matrices, and shared memory whose size the launch sets."""

    def __init__(self, kernel: Kernel, *arguments: Any) -> None:
        super().__init__(kernel, *arguments)
        self.symbols["global_smem"] = 0
        self.shared = np.zeros((self.shared.shape[0], 1 << 14), np.uint8)

    def _popc(self, i: Instruction) -> None:
        value = np.asarray(self._inputs(i)[0], np.uint64)
        ones = (value >> np.uint64(bit) & np.uint64(1) for bit in range(8 * i.types[0].itemsize))
        self.write(i.operands[0], sum(ones, np.uint64(0)).astype(np.uint32))

    def _bfe(self, i: Instruction) -> None:
        value = np.asarray(self.read(i.operands[1], i.types[0]), np.int64)
        start, length = (int(operand) for operand in i.operands[2:])
        left = 64 - start - length  # shifted out and back, which extends the sign where there is one
        wide = (value << left).view(np.int64 if i.types[0].kind == "i" else np.uint64)
        self.write(i.operands[0], (wide >> wide.dtype.type(64 - length)).astype(i.types[0]), i.types[0])

    def _words(self, i: Instruction, address: str, count: int) -> list[tuple[Any, Any]]:
        """Where the 32-bit words of 8 x 8 matrices of 16-bit items lie: lane 8 k + j has the address of row j of k."""
        assert "trans" not in i.modifiers
        base, _, offset = address.strip("[] ").partition("+")
        start = np.asarray(self.read(base.strip(), np.dtype(np.uint32)), np.int64).reshape(-1, 32) + int(offset or 0)
        lane = np.arange(32)
        at = [(start[:, 8 * k + lane // 4] // 4 + lane % 4).reshape(-1) for k in range(count)]
        return [(self.block[self.lanes], word) for word in at]

    def _ldmatrix(self, i: Instruction) -> None:
        names = [name.strip() for name in i.operands[0].strip("{}").split(",")]
        values = [self.shared.view(np.uint32)[word] for word in self._words(i, i.operands[1], len(names))]
        for name, value in zip(names, values, strict=True):
            self.write(name, value)

    def _stmatrix(self, i: Instruction) -> None:
        names = [name.strip() for name in i.operands[1].strip("{}").split(",")]
        for name, word in zip(names, self._words(i, i.operands[0], len(names)), strict=True):
            self.shared.view(np.uint32)[word] = self.read(name, np.dtype(np.uint32))


@dataclass
class Gpu:
    """Triton's driver, as far as compiling asks for it."""

    target: GPUTarget
    execute: bool = False
    alter: Callable[[str], str] = lambda ptx: ptx
    waves: Callable[[int], Any] | None = None  # of so many programs: see Machine.run
    turns: Callable[[int], Any] = range
    reads: dict[int, Array] | None = None  # how often launches loaded each byte of a storage, where asked for
    compiled: list[Any] = field(default_factory=list)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target)  # Triton keeps what it compiled by device

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def launch(self, kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        compiled = kernel.run(*arguments, grid=grid, warmup=True, **options)
        self.compiled.append(compiled)
        if self.execute:
            ptx = re.sub(r"(?m)^\s*\.loc\b[^\n]*", "", compiled.asm["ptx"])  # has no semicolon to end it
            ordered = self.waves, self.turns
            run_ptx(self.alter(ptx), grid, 32 * options["num_warps"], arguments, *ordered, reads=self.reads)

    def loads(self, tensor: torch.Tensor) -> Array:
        """``[chains, bytes]``: how often launches loaded each byte of a tensor that is alone in its storage."""
        assert self.reads is not None
        return self.reads[tensor.untyped_storage().data_ptr()].reshape(len(tensor), -1)


def run_ptx(ptx: str, grid: tuple[int, ...], threads: int, arguments: tuple[Any, ...],
            waves: Callable[[int], Any] | None = None, turns: Callable[[int], Any] = range,
            reads: dict[int, Array] | None = None) -> None:  # fmt: skip
    """Execute a kernel's PTX on host tensors, in place. Tensors that share storage share it there too."""
    (kernel,) = parse(ptx).values()
    memory, storages = Memory(), {}
    if reads is not None:
        memory.reads = np.zeros(len(memory.bytes), np.uint8)
    values: list[int | bytes] = []
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            storage = argument.untyped_storage()
            if storage.data_ptr() not in storages:
                raw = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
                storages[storage.data_ptr()] = (raw, memory.put(raw))
            values.append(storages[storage.data_ptr()][1] + argument.data_ptr() - storage.data_ptr())
        elif argument is not None:
            values.append(struct.pack("<f", argument) if isinstance(argument, float) else argument)
    values += [0] * (len(kernel.parameters) - len(values))  # scratch that these kernels do not use
    machine = Warps(kernel, memory, grid, (threads,), values)
    machine.turns = turns
    machine.run(None if waves is None else machine.by_waves(waves(machine.blocks)))
    for storage, (raw, address) in storages.items():
        raw[:] = memory.get(address, np.uint8, len(raw))
        if reads is not None and memory.reads is not None:
            reads[storage] = reads.get(storage, 0) + memory.reads[address - memory.BASE :][: len(raw)]


@contextmanager
def simulated(target: GPUTarget, **options: Any) -> Iterator[Gpu]:
    """Launches of the Triton backend go to a :class:`Gpu`."""
    gpu = Gpu(target, **options)

    class Launcher:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **options: gpu.launch(self.kernel, grid, arguments, options)

    driver = triton.runtime.driver
    before = driver._active  # reset_active() would look for a real one
    try:
        driver.set_active(gpu)
        for kernel, module in MODULES.items():
            setattr(module, kernel.fn.__name__, Launcher(kernel))
        yield gpu
    finally:
        for kernel, module in MODULES.items():
            setattr(module, kernel.fn.__name__, kernel)
        driver._active = before


def cuda(architecture: int) -> GPUTarget:
    return GPUTarget("cuda", architecture, 32)
