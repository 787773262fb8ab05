"""Host microseconds of one eager fused step on the CUDA path, its launch stubbed: `python -m bench.host_cost`.

Needs nvcc, and no GPU: the binding and the launch code are the real ones, linked with a stand-in for the CUDA runtime
that accepts every launch. What is left out, and is a microsecond or two on a GPU machine, is the driver's own launch
and torch's look-up of the current device and stream.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from pybind11 import get_include

import ulam
import ulam_kernels
from ulam_kernels import dispatch

ROOT = Path(__file__).resolve().parent.parent
STAND_IN = r"""
#include <cuda_runtime.h>
extern "C" {
void** __cudaRegisterFatBinary(void*) { static void* handle; return &handle; }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char*, char*, const char*, int, uint3*, uint3*, dim3*, dim3*, int*) {}
char __cudaInitModule(void**) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) { return cudaSuccess; }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaSuccess; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { *count = 1; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr, int) { *value = 9; return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { *version = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t) { return "none"; }
}
"""


def stubbed_extension(folder: Path) -> ModuleType:
    """`ulam_kernels._cuda` over the stand-in."""
    (folder / "runtime.cpp").write_text(STAND_IN)
    library = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = [f"-I{p}" for p in (ROOT / "csrc/include", ROOT / "csrc/cuda", get_include())]
    include.append(f"-I{sysconfig.get_path('include')}")
    sources = [*sorted((ROOT / "csrc/cuda").glob("*.cu")), ROOT / "bindings/cuda.cpp", folder / "runtime.cpp"]
    target = ["-gencode=arch=compute_100,code=compute_100", "--fmad=false"]
    # -Bsymbolic: the stand-in is kept to, also where torch has brought the real runtime. What a step never calls is
    # not looked for: the rest of the runtime is not there.
    shared = ["-Xcompiler=-fPIC,-O2", "-shared", "-cudart=none", "-Xlinker=-Bsymbolic", "-Xlinker=-z,lazy"]
    command = ["nvcc", "-O3", "-std=c++17", *target, *shared, *include]
    subprocess.run([*command, *map(str, sources), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("ulam_kernels._cuda", library)
    assert spec is not None and spec.loader is not None
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY)
    try:
        module = importlib.util.module_from_spec(spec)
    finally:
        sys.setdlopenflags(before)
    spec.loader.exec_module(module)
    return module


def stub_torch() -> None:
    """The current device and stream as the backend asks for them, without torch's CUDA."""
    stream = SimpleNamespace(cuda_stream=0)
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: None  # type: ignore[assignment,return-value]
    torch.cuda.current_stream = lambda device: stream  # type: ignore[assignment,return-value,misc]


def microseconds(rounds: int = 200, calls: int = 100) -> list[float]:
    """Host time a call, `rounds` means of `calls` calls: a plain DDPM row of 4 chains of 3x32x32."""
    program = ulam.samplers.DDPM().program(ulam.schedules.vp_linear(1000))
    table, ids = program.table(), torch.arange(4)
    state, eps, row = torch.zeros(1, 4, 3, 32, 32), torch.zeros(4, 3, 32, 32), torch.full_like(ids, 500)
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for _ in range(calls):
            ulam_kernels.step(state, table, row, model=eps, seed=ids, chain=ids, draw=row)
        times.append((time.perf_counter() - begin) / calls * 1e6)
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        sys.modules["ulam_kernels._cuda"] = stubbed_extension(Path(folder))
        stub_torch()
        from ulam_kernels import cuda

        dispatch._automatic = lambda device_type: cuda  # type: ignore[assignment]
        assert dispatch.select(None, "cpu", torch.float32) is cuda
        times = microseconds()
    lower, median, upper = statistics.quantiles(times, n=4)
    print(f"one eager fused step on the host, launch stubbed: {median:.1f} us (quartiles {lower:.1f} - {upper:.1f})")


if __name__ == "__main__":
    main()
