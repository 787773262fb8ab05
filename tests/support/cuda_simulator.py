"""The CUDA kernels without a GPU: the real host code over a stand-in for the CUDA runtime.

The stand-in receives the launches of the host code and executes the PTX of the kernels on the interpreter, so the
choice of kernel, the launch shapes and the arguments are tested too, and every access is checked against its buffer.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.util
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.sass import Sass, disassembled, find_tool

from ptx_interpreter import Machine
from ptx_memory import Memory
from ptx_parser import Kernel, parse
from ulam_kernels import Table

ROOT = Path(__file__).resolve().parents[2]
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
NUMBERS = {FP32: 0, BF16: 1, FP16: 2, torch.float64: 3}
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ["-O3", "-std=c++17", "--fmad=false", f"-I{ROOT}/csrc/include", f"-I{ROOT}/csrc/cuda"]
# The library binds to its own stand-in, even where torch has loaded the real runtime.
SHARED = ["-shared", "-cudart=none", "-Xlinker=-Bsymbolic"]
OPERATIONS = (
    "step",
    "step_recorded",
    "step_pixels",
    "step_pixels_recorded",
    "reduce",
    "reduce_short",
    "blend",
    "fill",
    "affine",
    "tick",
)
SOURCES = [ROOT / f"csrc/cuda/{name}.cu" for name in OPERATIONS]


NVCC, CUOBJDUMP = find_tool("nvcc"), find_tool("cuobjdump")
MISSING = None if NVCC and CUOBJDUMP else "nvcc or cuobjdump is missing: the CUDA kernels cannot be compiled and read"

# What a block may have of shared memory, in bytes, and whether blocks form clusters: CUDA C++ programming guide, table
# "Technical specifications per compute capability".
SHARED_MEMORY = {
    "sm_80": (163 << 10, False), "sm_86": (99 << 10, False), "sm_90": (227 << 10, True), "sm_100": (227 << 10, True),
}  # fmt: skip

# Stands in for the CUDA runtime: kernels register themselves when the library is loaded, a launch is handed on. It
# refuses what a device would: more shared memory than was asked for, or than there is; clusters that do not fit.
RUNTIME = r"""
#include <cuda_runtime.h>
#include <map>
#include <string>
using OnLaunch = void (*)(const char*, const unsigned*, void**);
static OnLaunch on_launch;
static std::map<const void*, std::string>& names() { static std::map<const void*, std::string> m; return m; }
static std::map<std::string, size_t> own_shared;
static std::map<const void*, size_t> opened;
static size_t most_shared;
static int clusters;  // that fit at once
static unsigned cluster_of(const cudaLaunchConfig_t* c) {
  for (unsigned k = 0; k < c->numAttrs; ++k)
    if (c->attrs[k].id == cudaLaunchAttributeClusterDimension) return c->attrs[k].val.clusterDim.x;
  return 1;
}
static bool fits(const cudaLaunchConfig_t* c, const void* host) {
  const size_t own = own_shared[names()[host]], usual = 48 << 10;
  if (c->dynamicSmemBytes > (opened.count(host) ? opened[host] : usual - own)) return false;
  if (c->blockDim.x * c->blockDim.y * c->blockDim.z > 1024) return false;
  return cluster_of(c) == 1 || (clusters && cluster_of(c) <= 8 && c->gridDim.x % cluster_of(c) == 0);
}
extern "C" {
void set_on_launch(OnLaunch f) { on_launch = f; }
void set_device(size_t shared, int fitting) { most_shared = shared, clusters = fitting, opened.clear(); }
void set_own_shared(const char* kernel, size_t bytes) { own_shared[kernel] = bytes; }
cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin) *value = most_shared;
  else if (attribute == cudaDevAttrClusterLaunch) *value = clusters >= 0;
  else return cudaErrorInvalidValue;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* host) {
  *a = {};
  a->sharedSizeBytes = own_shared[names()[host]];
  a->ptxVersion = clusters >= 0 ? 90 : 80;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorInvalidValue;
  if (value + own_shared[names()[host]] > most_shared) return cudaErrorInvalidValue;
  opened[host] = value;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* active, const void* host, const cudaLaunchConfig_t* c) {
  if (clusters < 0) return cudaErrorInvalidValue;
  *active = fits(c, host) ? clusters : 0;
  return cudaSuccess;
}
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  names()[host] = name;
}
char __cudaInitModule(void**) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorUnknown; }
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorUnknown; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaErrorUnknown; }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorUnknown; }
const char* cudaGetErrorString(cudaError_t) { return "the stand-in refuses"; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* host, void** arguments) {
  if (c->stream != (cudaStream_t)0x57 || !fits(c, host)) return cudaErrorInvalidValue;
  if (c->gridDim.x >> 31 || c->gridDim.y > 65535) return cudaErrorInvalidValue;
  const unsigned shape[] = {c->gridDim.x,  c->gridDim.y,  c->gridDim.z, c->blockDim.x,
                            c->blockDim.y, c->blockDim.z, (unsigned)c->dynamicSmemBytes, cluster_of(c)};
  on_launch(names()[host].c_str(), shape, arguments);
  return cudaSuccess;
}
}
"""
STREAM = 0x57
SYMBOLS = {
    "step": "_ZN4ulam4cuda4stepERKNS_4StepEPv",
    "reduce": "_ZN4ulam4cuda6reduceERKNS_6ReduceEPv",
    "blend": "_ZN4ulam4cuda5blendERKNS_5BlendEPv",
    "fill_normal": "_ZN4ulam4cuda11fill_normalERKNS_4FillEPv",
    "affine": "_ZN4ulam4cuda6affineERKNS_6AffineEPv",
    "look_up": "_ZN4ulam4cuda7look_upERKNS_6LookUpEPv",
    "advance": "_ZN4ulam4cuda7advanceERKNS_7AdvanceEPv",
}


def built_extension() -> Path | None:
    """ulam_kernels._cuda as it is installed, unless a source is newer or it was built for fewer architectures."""
    spec = importlib.util.find_spec("ulam_kernels._cuda")
    if spec is None or spec.origin is None:
        return None
    newest = max(p.stat().st_mtime for p in [*ROOT.glob("csrc/cuda/*"), *ROOT.glob("csrc/include/ulam/*")])
    if Path(spec.origin).stat().st_mtime <= newest:
        return None
    held = subprocess.run([str(CUOBJDUMP), "--list-elf", spec.origin], check=True, capture_output=True, text=True)
    return Path(spec.origin) if all(f".{name}." in held.stdout for name in ARCHITECTURES) else None


@cache
def build() -> Path:
    """A folder with host.so, the host code over the stand-in with the PTX, and machine.so, the machine code."""
    folder = Path(tempfile.mkdtemp(prefix="ulam-cuda-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "runtime.cpp").write_text(RUNTIME)
    extension = built_extension()
    (folder / "machine.so").symlink_to(extension or folder / "host.so")
    targets = [] if extension else [f"-gencode=arch=compute_{a[3:]},code={a}" for a in ARCHITECTURES]
    command = [NVCC, *FLAGS, *targets, "-gencode=arch=compute_100,code=compute_100", "--threads=2", "-Xcompiler=-fPIC"]
    command += [*SHARED, *map(str, SOURCES), "runtime.cpp", "-o", "host.so"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


@cache
def ptx() -> str:
    dump = subprocess.run([CUOBJDUMP, "-ptx", "host.so"], cwd=build(), check=True, capture_output=True, text=True)
    return dump.stdout


def sass(architecture: str) -> dict[str, list[Sass]]:
    """The instructions of every kernel."""
    return disassembled(build() / "machine.so", architecture, str(CUOBJDUMP))


@cache
def device() -> Device:
    return Device(build() / "host.so", parse(ptx()))


class Device:
    """The host library over the stand-in, and the memory that its launches work on."""

    def __init__(self, library: Path, kernels: dict[str, Kernel]) -> None:
        self.library = library
        self.kernels = kernels
        self.host = ctypes.CDLL(str(library))
        self.rsqrt: Callable[[Any], Any] | None = None
        self.waves: Callable[[int], Any] | None = None  # of so many blocks: see Machine.run
        self.turns: Callable[[int], Any] = range
        self.used = ""  # the kernel of the last launch
        self.executed = np.zeros(0, np.int64)  # by the last launch, threads for each instruction
        self.failure: Exception | None = None
        self.shape: tuple[int, ...] = ()  # of the last launch: grid, block, dynamic shared memory, cluster
        self.alone: Callable[[Machine], Any] | None = None  # which threads run alone, see Machine.run
        self.counts = False  # whether the loads of a launch are counted in memory.reads
        self.lay: dict[str, int] = {}  # where the tensors of the last reduction lay
        for kernel in kernels.values():
            sizes = (-(-size // 16) * 16 for size in kernel.shared.values())
            self.host.set_own_shared(kernel.name.encode(), ctypes.c_size_t(sum(sizes)))
        self.be("sm_100")
        words, pointers = ctypes.POINTER(ctypes.c_uint), ctypes.POINTER(ctypes.c_void_p)
        self.on_launch = ctypes.CFUNCTYPE(None, ctypes.c_char_p, words, pointers)(self._on_launch)

    def be(self, architecture: str, clusters: int = 16) -> None:
        """Present a device of this architecture to the host code; it holds this many ``clusters`` at once."""
        bytes_, has_clusters = SHARED_MEMORY[architecture]
        self.host.set_device(ctypes.c_size_t(bytes_), clusters if has_clusters else -1)

    def _on_launch(self, name: bytes, shape: Any, arguments: Any) -> None:
        try:
            kernel = self.kernels[name.decode()]
            self.used = kernel.name
            values = [ctypes.string_at(arguments[k], size) for k, (_, size) in enumerate(kernel.parameters)]
            self.shape = tuple(shape[0:8])
            if self.counts:
                self.memory.reads = np.zeros(len(self.memory.bytes), np.uint8)
            machine = Machine(
                kernel, self.memory, shape[0:3], shape[3:6], values, self.rsqrt, dynamic=shape[6], cluster=shape[7]
            )
            machine.turns = self.turns
            self.grid, self.block = tuple(shape[0:3]), tuple(shape[3:6])
            alone = self.alone(machine) if self.alone else None
            if self.waves:
                alone = machine.by_waves(self.waves(machine.blocks))
            self.executed = machine.run(alone).executed
        except Exception as error:  # there is C code between here and the test
            self.failure = error

    def call(self, operation: str, packed: bytes) -> None:
        self.host.set_on_launch(self.on_launch)
        function = self.host[SYMBOLS[operation]]
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_void_p]
        self.failure = None
        error = function(packed, STREAM)
        if self.failure is not None:
            raise self.failure
        if error is not None:
            raise RuntimeError(error.decode())

    def reset(self) -> None:
        self.memory = Memory(1 << 24)

    def put(self, tensor: torch.Tensor | None, skew: int = 0) -> int:
        if tensor is None:
            return 0
        return self.memory.put(in_memory(tensor).contiguous().reshape(-1).view(torch.uint8).numpy(), skew)

    def take(self, address: int, target: torch.Tensor) -> None:
        raw = self.memory.get(address, np.uint8, target.numel() * target.element_size())
        lying = in_memory(target)
        lying.copy_(torch.from_numpy(raw).view(target.dtype).view(lying.shape))

    def step(self, state: torch.Tensor, table: Table, row: torch.Tensor, *, skew: int = 0, alias: bool = False,
             **given: torch.Tensor | None) -> None:  # fmt: skip
        """As :func:`ulam_kernels.step`; ``skew`` misaligns the buffers, ``alias`` makes the model state[0] itself."""
        packed, at = self.pack_step(state, table, row, skew, alias, given)
        self.call("step", packed)
        self.take(at["state"], state)
        for name in ("net_in", "squares"):
            if (written := given.get(name)) is not None:
                self.take(at[name], written)

    def pack_step(self, state: torch.Tensor, table: Table, row: torch.Tensor, skew: int, alias: bool,
                  given: dict[str, torch.Tensor | None]) -> tuple[bytes, dict[str, int]]:  # fmt: skip
        """A Step, and where its tensors lie."""
        self.reset()
        registers, chains = state.shape[:2]
        model, net_in = given.get("model"), given.get("net_in")
        last = [tensor is not None and channels_last(tensor) for tensor in (model, net_in)]
        put = {"state": self.put(state, skew)}
        for name, tensor in given.items():
            put[name] = self.put(tensor, skew if tensor is net_in or tensor is model else 0)
        name_at = lambda name: put.get(name, 0)  # noqa: E731
        packed = struct.pack(
            "<qqi4xQi4xQQqQQQi4xqQQQQQQi4xQQqi4xQ",
            chains, state[0, 0].numel(), registers, put["state"], NUMBERS[state.dtype], self.put(table.coef),
            self.put(table.flags), len(table), self.put(row), put["state"] if alias else name_at("model"),
            name_at("uncond"), 0 if model is None else NUMBERS[model.dtype],
            0 if model is None else model.numel() // chains,
            *map(name_at, ("guidance", "seed", "chain", "draw", "noise", "net_in")),
            0 if net_in is None else NUMBERS[net_in.dtype], name_at("scales"), name_at("source") or put["state"],
            state[0, 0, 0].numel() if any(last) else 0, last[0] | last[1] << 1, name_at("squares"),
        )  # fmt: skip
        return packed, put

    def reduce(self, state: torch.Tensor, table: Table, row: torch.Tensor, out: torch.Tensor, skew: int = 0,
               **given: torch.Tensor | None) -> None:  # fmt: skip
        packed, self.lay = self.pack_step(state, table, row, skew, False, given)
        at = self.put(out)
        self.call("reduce", packed + struct.pack("<Q", at))
        self.take(at, out)

    def blend(self, state: torch.Tensor, skew: int = 0, stage: int = 0, **given: torch.Tensor | None) -> None:
        """As :func:`ulam_kernels.blend`."""
        self.reset()
        at, net_in = self.put(state, skew), given.get("net_in")
        put = {name: self.put(tensor) for name, tensor in given.items()}
        names = ("known", "mask", "a", "b", "seed", "chain", "draw", "noise", "net_in")
        packed = struct.pack(
            "<qqQi4xQQQQQQQQQi4xQQqq",
            state.shape[1], state[0, 0].numel(), at, NUMBERS[state.dtype], *(put.get(name, 0) for name in names),
            0 if net_in is None else NUMBERS[net_in.dtype], put.get("c_next", 0), put.get("row", 0),
            0 if given["a"] is None else len(given["a"]), stage,
        )  # fmt: skip
        self.call("blend", packed)
        self.take(at, state)
        if net_in is not None:
            self.take(put["net_in"], net_in)

    def fill_normal(self, out: torch.Tensor, seed: torch.Tensor, chain: torch.Tensor, draw: torch.Tensor, tag: int,
                    scale: float, offset: int, skew: int = 0) -> None:  # fmt: skip
        self.reset()
        at, chains = self.put(out, skew), out.shape[0]
        ids = (self.put(tensor) for tensor in (seed, chain, draw))
        shape = (chains, out.numel() // chains, offset)
        self.call("fill_normal", struct.pack("<qqqQi4xQQQIf", *shape, at, NUMBERS[out.dtype], *ids, tag, scale))
        self.take(at, out)

    def affine(self, x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
        self.reset()
        at = [self.put(tensor) for tensor in (x, m, out)]
        types = [NUMBERS[tensor.dtype] for tensor in (x, m, out)]
        shape = (len(x), x.numel() // len(x))
        self.call("affine", struct.pack("<qqQQQiii4xQQ", *shape, *at, *types, self.put(a), self.put(b)))
        self.take(at[2], out)

    def put_strided(self, tensor: torch.Tensor | None) -> int:
        """Copy in the tensor and what lies behind it in its storage; its address."""
        if tensor is None:
            return 0
        storage = tensor.untyped_storage()
        raw = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        offset = tensor.data_ptr() - storage.data_ptr()
        return self.memory.put(raw[offset:], skew=tensor.data_ptr() % 16)

    def advance(self, cursor: torch.Tensor, now: torch.Tensor, model: torch.Tensor | None = None,
                uncond: torch.Tensor | None = None, guidance: torch.Tensor | None = None) -> None:  # fmt: skip
        """As :func:`ulam_kernels.advance`, of outputs whose chains lie together; ``reads`` are counted."""
        self.reset()
        self.memory.reads = np.zeros(len(self.memory.bytes), np.uint8)
        chains, (at, now_at) = cursor.shape[1], (self.put(cursor), self.put(now))
        self.outputs = [self.put_strided(output) for output in (model, uncond)]
        elements = 0 if model is None else model[0].numel()
        strides = (elements if output is None else output.stride(0) for output in (model, uncond))
        packed = struct.pack("<qqQQQQi4xqqQ", chains, elements, at, now_at, *self.outputs,
                             0 if model is None else NUMBERS[model.dtype], *strides, self.put(guidance))  # fmt: skip
        self.call("advance", packed)
        self.take(at, cursor)
        self.take(now_at, now)

    def look_up(self, times: torch.Tensor, row: torch.Tensor, out: torch.Tensor, guidance: torch.Tensor | None = None,
                interval: torch.Tensor | None = None, weight: torch.Tensor | None = None) -> None:  # fmt: skip
        self.reset()
        at = {name: self.put(tensor) for name, tensor in (("out", out), ("weight", weight))}
        whole = times.dtype == torch.int64
        packed = struct.pack("<qqQ?7xQQQQQ", len(row), len(times), self.put(times), whole, self.put(row), at["out"],
                             self.put(guidance), self.put(interval), at["weight"])  # fmt: skip
        self.call("look_up", packed)
        self.take(at["out"], out)
        if weight is not None:
            self.take(at["weight"], weight)


def channels_last(tensor: torch.Tensor) -> bool:
    """Whether the channels of ``[B, C, *shape]`` are innermost in memory and the tensor is not also contiguous."""
    return not tensor.is_contiguous() and tensor.movedim(1, -1).is_contiguous()


def in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its dimensions in the order of its memory."""
    return tensor.movedim(1, -1) if tensor.dim() > 2 and channels_last(tensor) else tensor
