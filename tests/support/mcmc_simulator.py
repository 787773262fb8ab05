"""The CUDA kernels of Langevin and Metropolis operations without a GPU, as a backend, and what they read and write.

As :mod:`cuda_simulator`: the real host code launches, and the interpreter executes the kernels' PTX, with shuffles.
Every access to memory is counted, byte by byte, in Triton's kernels too.
"""

from __future__ import annotations

import atexit
import ctypes
import re
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import cuda_simulator
from ptx_interpreter import Machine
from ptx_memory import Memory
from ptx_parser import TYPES, Instruction, Kernel, parse
from ulam_kernels.densities import Density

SOURCES = [cuda_simulator.ROOT / "csrc/cuda" / name for name in ("mcmc_steps.cu", "mcmc_run.cu")]
ARGUMENTS = {
    "evaluate": "Evaluate", "run": "Run", "langevin": "Langevin", "kick_drift": "KickDrift",
    "mala_accept": "MalaAccept", "squared_norm": "SquaredNorm", "accept": "Accept",
}  # fmt: skip
cuda_simulator.SYMBOLS |= {
    f"mcmc_{name}": f"_ZN4ulam4cuda{len(name)}{name}ERKNS_{len(kind)}{kind}EPv" for name, kind in ARGUMENTS.items()
}


class Traffic(Memory):
    """Counts the reads and writes of each byte, and remembers the widest of them that it was part of."""

    def __init__(self, size: int = 1 << 24) -> None:
        super().__init__(size)
        self.buffers: list[tuple[int, int]] = []  # start and length
        self.loads, self.writes, self.widest_read, self.widest_write = (np.zeros(size, np.int64) for _ in range(4))

    def put(self, data: Any, skew: int = 0) -> int:
        address = super().put(data, skew)
        self.buffers.append((address - self.BASE, self.end - (address - self.BASE)))
        return address

    def of(self, tensor: torch.Tensor) -> Seen:
        """The accesses to the one buffer of this size."""
        (start,) = (start for start, length in self.buffers if length == tensor.nbytes)
        counts = (self.loads, self.writes, self.widest_read, self.widest_write)
        return Seen(*(count[start : start + tensor.nbytes] for count in counts))

    def count(self, at: Any, size: int, counts: Any, widest: Any) -> None:
        for byte in range(size):
            np.add.at(counts, at + byte, 1)
            np.maximum.at(widest, at + byte, size)


class Seen(NamedTuple):
    """Of each byte: how often it was read and written, and by how many bytes at once."""

    reads: Any
    writes: Any
    widest_read: Any
    widest_write: Any


class Counting(Machine):
    """Counts accesses to global memory."""

    memory: Traffic

    def _ld(self, i: Instruction) -> None:
        super()._ld(i)
        self._count(i, i.operands[1], i.operands[0], self.memory.loads, self.memory.widest_read)

    def _st(self, i: Instruction) -> None:
        super()._st(i)
        self._count(i, i.operands[0], i.operands[1], self.memory.writes, self.memory.widest_write)

    def _count(self, i: Instruction, address: str, names: str, counts: Any, widest: Any) -> None:
        if "global" in i.modifiers:
            size = i.types[0].itemsize * len(names.strip("{}").split(","))
            self.memory.count((self._address(address) - np.uint64(Memory.BASE)).astype(np.int64), size, counts, widest)


class Warps(Counting):
    """Adds shuffles, by whole warps."""

    def _shfl(self, i: Instruction) -> None:
        lanes = np.arange(self.threads) if isinstance(self.lanes, slice) else self.lanes
        warps = lanes.reshape(-1, 32)
        assert (warps == warps[:, :1] // 32 * 32 + np.arange(32)).all(), "a shuffle that not all of a warp execute"
        _, value, which, clamp, _ = i.operands
        values = np.asarray(self.read(value, i.types[0])).reshape(-1, 32)
        lane = np.broadcast_to(np.asarray(self.read(which, TYPES["u32"]), np.int64), lanes.shape).reshape(-1, 32)
        segment = np.broadcast_to(np.asarray(self.read(clamp, TYPES["u32"]), np.int64), lanes.shape).reshape(-1, 32)
        within = segment >> 8  # the bits of a lane's number that are kept
        if "bfly" in i.modifiers:
            source = np.arange(32) ^ lane
        elif "idx" in i.modifiers:
            source = np.arange(32) & within | lane & ~within & 31
        else:
            raise NotImplementedError(i.text)
        self.write(i.operands[0].split("|")[0], np.take_along_axis(values, source, 1).reshape(-1), i.types[0])


@cache
def build() -> Path:
    """A folder with host.so, the host code over the stand-in with the PTX."""
    folder = Path(tempfile.mkdtemp(prefix="ulam-mcmc-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "runtime.cpp").write_text(cuda_simulator.RUNTIME)
    command = [cuda_simulator.NVCC, *cuda_simulator.FLAGS, "-gencode=arch=compute_90,code=compute_90"]
    command += ["-Xcompiler=-fPIC", *cuda_simulator.SHARED, *map(str, SOURCES), "runtime.cpp", "-o", "host.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@cache
def kernels() -> dict[str, Kernel]:
    dump = [cuda_simulator.CUOBJDUMP, "-ptx", "host.so"]
    ptx = subprocess.run(dump, cwd=build(), check=True, capture_output=True, text=True).stdout
    found = parse(ptx)
    for name, size in re.findall(r"(?m)^\.shared \.align \d+ \.b8 (\w+)\[(\d+)\]", ptx):  # of inlined functions
        for kernel in found.values():
            kernel.shared[name] = int(size)
    return found


class Chains(cuda_simulator.Device):
    """The functions of a backend, as :mod:`ulam_kernels.mcmc` calls them, on tensors of the host.

    ``skew`` puts float32 tensors that many bytes past a multiple of 512; ``executes=False`` launches nothing. After an
    operation ``memory`` has what it read and wrote, and ``shapes`` the grid and the block of each launch.
    """

    memory: Traffic

    def __init__(self, skew: int = 0, executes: bool = True) -> None:
        super().__init__(build() / "host.so", kernels())
        self.skew, self.executes = skew, executes
        self.shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self.stores: dict[int, tuple[torch.Tensor, int]] = {}

    def _on_launch(self, name: bytes, shape: Any, arguments: Any) -> None:
        try:
            kernel = self.kernels[name.decode()]
            values = [ctypes.string_at(arguments[k], size) for k, (_, size) in enumerate(kernel.parameters)]
            self.shapes.append((tuple(shape[0:3]), tuple(shape[3:6])))
            if self.executes:
                Warps(kernel, self.memory, shape[0:3], shape[3:6], values, self.rsqrt).run()
        except Exception as error:  # there is C code between here and the test
            self.failure = error

    def reset(self) -> None:
        self.memory = Traffic()
        self.stores, self.shapes = {}, []

    def at(self, tensor: torch.Tensor | None) -> int:
        """Where a tensor lies: it is put there the first time."""
        if tensor is None:
            return 0
        key = tensor.data_ptr()
        if key not in self.stores:
            raw = tensor.reshape(-1).view(torch.uint8).numpy()
            self.stores[key] = tensor, self.memory.put(raw, self.skew if tensor.dtype == torch.float32 else 0)
        return self.stores[key][1]

    def execute(self, operation: str, form: str, *arguments: Any) -> None:
        """``arguments``: numbers, and tensors where ``form`` has a Q."""
        self.call(f"mcmc_{operation}", struct.pack(f"<{form}", *arguments))
        for tensor, address in self.stores.values():
            self.take(address, tensor)

    def _target(self, density: Density, params: torch.Tensor) -> tuple[int, ...]:
        return density.kind, density.dimension, density.components, self.at(params)

    def langevin(self, x: Any, score: Any, step: Any, noise_scale: Any, scale: Any, lo: float, hi: float,
                 *rest: Any) -> None:  # fmt: skip
        self.reset()
        places = map(self.at, (x, score, step, noise_scale, scale))
        self.execute("langevin", "qqQQQQQffQQQQQ", len(x), x[0].numel(), *places, lo, hi, *map(self.at, rest))

    def kick_drift(self, *tensors: Any) -> None:
        self._of_chains("kick_drift", *tensors)

    def mala_accept(self, x: Any, proposal: Any, score: Any, *tensors: Any) -> None:
        self._of_chains("mala_accept", x, score, proposal, *tensors)

    def squared_norm(self, *tensors: Any) -> None:
        self._of_chains("squared_norm", *tensors)

    def _of_chains(self, operation: str, x: Any, *tensors: Any) -> None:
        self.reset()
        places = [self.at(tensor) for tensor in (x, *tensors)]
        self.execute(operation, f"qq{len(places)}Q", len(x), x[0].numel(), *places)

    def accept(self, log_ratio: Any, pairs: Any, *rest: Any) -> None:
        self.reset()
        flat = [(self.at(kept), self.at(proposed), kept[0].nbytes) for kept, proposed in pairs]
        flat += [(0, 0, 0)] * (4 - len(flat))
        numbers = [number for pair in flat for number in pair]
        form = "qQi4x" + 4 * "QQq" + "QQQQ"
        self.execute("accept", form, len(log_ratio), self.at(log_ratio), len(pairs), *numbers, *map(self.at, rest))

    def evaluate(self, density: Density, params: Any, x: Any, *outputs: Any) -> None:
        self.reset()
        arguments = (*self._target(density, params), len(x), *map(self.at, (x, *outputs)))
        self.execute("evaluate", "i4xqqQqQQQ", *arguments)

    def run(self, density: Density, params: Any, x: Any, sampler: int, coef: Any, steps: int, *rest: Any) -> None:
        """``rest``: seed, chain, draw, v, leapfrog, scale, lo, hi, thin, then the outputs."""
        self.reset()
        *ids_and_v, leapfrog, scale, lo, hi, thin = rest[:9]
        self.execute(
            "run", "i4xqqQqQi4xQqQQQQqQffqQQQQQ",
            *self._target(density, params), len(x), self.at(x), sampler, self.at(coef), steps,
            *map(self.at, ids_and_v), leapfrog, self.at(scale), lo, hi, thin, *map(self.at, rest[9:]),
        )  # fmt: skip
