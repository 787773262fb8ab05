"""Builds the native extensions; everything that can be said as data is in pyproject.toml."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from glob import glob

from pybind11 import get_include
from pybind11.setup_helpers import ParallelCompile
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# Results are bit-exact by contract: the compiler may neither contract a * b + c nor reassociate.
COMPILE_FLAGS = [
    "-O3",
    "-std=c++17",
    "-fno-fast-math",
    "-ffp-contract=off",
    "-fopenmp",
    "-fvisibility=hidden",
    "-g0",  # some Pythons ask for -g, which makes the extension ten times as large
]
# Of make sanitize: address,undefined or thread. Python's own flags may say -fwrapv, which hides overflows.
SANITIZE = os.environ.get("ULAM_SANITIZE")
if SANITIZE:
    checks = [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all", "-fno-wrapv", "-fno-omit-frame-pointer"]
    COMPILE_FLAGS += ["-O1", "-g", *checks]  # the last of contrary flags holds
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
QUIET = ["-Wno-maybe-uninitialized", *(["-Wno-uninitialized"] if SANITIZE else [])]
# One build serves every x86-64: only files with these endings may use the newer instructions, and they are
# entered at run time when the processor has them. gcc 12 wrongly warns inside its own AVX-512 headers.
INSTRUCTION_SETS = {
    "/avx2.cpp": AVX2_FLAGS,
    "/avx512.cpp": [*AVX512_FLAGS, *QUIET],
    "/avx512_bf16.cpp": [*AVX512_FLAGS, "-mavx512bf16", *QUIET],
}


CUDA_FLAGS = ["-O3", "-std=c++17", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden"]
CUDA_FLAGS += ["-Xfatbin=-compress-all", "-Icsrc/include"]
CUDA_ARCHITECTURES = "80 90 100"  # as far as nvcc knows them; PTX of the newest is for what comes after
CUDA_FOLDER = "/usr/local/cuda"  # where NVIDIA's installer and images put it, often without a place on the path


def find_nvcc() -> str | None:
    """nvcc under CUDA_HOME or CUDA_PATH, else on the path, else in /usr/local/cuda."""
    homes = [f"{home}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    return shutil.which("nvcc", path=os.pathsep.join([*homes, os.environ.get("PATH", ""), f"{CUDA_FOLDER}/bin"]))


def cuda_targets(nvcc: str) -> list[str]:
    """One binary for each architecture (of ULAM_CUDA_ARCHITECTURES, where it is set), and PTX of the newest."""
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    wanted = (os.environ.get("ULAM_CUDA_ARCHITECTURES") or CUDA_ARCHITECTURES).split()
    found = [a for a in wanted if f"compute_{a}" in known]
    if not found:
        raise OSError(f"ULAM_CUDA_ARCHITECTURES: got {' '.join(wanted)}, expected some of {' '.join(known)}")
    codes = [(a, f"sm_{a}") for a in found] + [(found[-1], f"compute_{found[-1]}")]
    return [f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes]


def cuda_objects(nvcc: str, folder: str, jobs: int) -> list[str]:
    """Compile csrc/cuda/*.cu where they are newer than their objects: `jobs` at once, files and targets together."""
    os.makedirs(folder, exist_ok=True)
    headers = ["setup.py", *glob("csrc/cuda/*.h"), *glob("csrc/include/ulam/*.h")]
    sources, targets = sorted(glob("csrc/cuda/*.cu"), key=os.path.getsize, reverse=True), cuda_targets(nvcc)

    def compiled(source: str) -> str:
        target = os.path.join(folder, f"{os.path.basename(source)}.o")
        newest = max(map(os.path.getmtime, [source, *headers]))
        if not os.path.exists(target) or os.path.getmtime(target) <= newest:
            threads = f"--threads={max(1, jobs // len(sources))}"
            command = [nvcc, *CUDA_FLAGS, *targets, threads, "-c", source, "-o", target]
            print(" ".join(command), flush=True)
            subprocess.run(command, check=True)
        return target

    with ThreadPoolExecutor(max(1, min(jobs, len(sources)))) as pool:
        return sorted(pool.map(compiled, sources))


def cuda_libraries(nvcc: str) -> list[str]:
    """The folders that nvcc links from: where the static CUDA runtime is."""
    dry_run = [nvcc, "--dryrun", "-c", "csrc/cuda/device.cu"]
    said = subprocess.run(dry_run, capture_output=True, text=True, check=True).stderr
    return re.findall(r'-L([^"\s]+)', next(line for line in said.splitlines() if "LIBRARIES=" in line))


class BuildExtension(build_ext):
    """Compiles some files with instruction-set flags of their own, leaves them out on other machines; calls nvcc."""

    def build_extensions(self) -> None:
        if cuda in self.extensions:
            self.compile_cuda()
        elif not SANITIZE:
            print("nvcc was not found: ulam is built without its CUDA C++ kernels (Triton serves GPUs)", flush=True)
        if cuda not in self.extensions:
            self.remove_earlier(cuda)
        if not self.plat_name.endswith(("x86_64", "amd64")):
            for extension in self.extensions:
                portable = [s for s in extension.sources if not s.endswith(tuple(INSTRUCTION_SETS))]
                extension.sources = portable
                extension.define_macros.append(("ULAM_NO_X86", None))
        compile_one = self.compiler._compile

        def compile_with_flags(obj, src, ext, cc_args, extra_postargs, pp_opts):  # type: ignore[no-untyped-def]
            flags = [flag for ending, flags in INSTRUCTION_SETS.items() if src.endswith(ending) for flag in flags]
            compile_one(obj, src, ext, cc_args, [*extra_postargs, *flags], pp_opts)

        self.compiler._compile = compile_with_flags
        super().build_extensions()

    def compile_cuda(self) -> None:
        """Compile the device code; an nvcc that cannot (too old, no host compiler) costs the CUDA kernels only."""
        nvcc = find_nvcc()
        assert nvcc is not None, "the extension is declared only where there is one"
        try:
            chosen = os.environ.get("ULAM_CUDA_ARCHITECTURES", "").split()
            cuda.extra_objects = cuda_objects(nvcc, os.path.join(self.build_temp, "-".join(["cuda", *chosen])), JOBS)
            cuda.library_dirs = cuda_libraries(nvcc)
        except (OSError, IndexError, StopIteration, subprocess.CalledProcessError) as error:
            print(
                f"{nvcc} failed ({error}): ulam is built without its CUDA C++ kernels (Triton serves GPUs)", flush=True
            )
            self.extensions.remove(cuda)
        cuda.depends += cuda.extra_objects

    def remove_earlier(self, extension: Extension) -> None:
        """Remove what an earlier build left of an extension that this one leaves out: it would load, out of date."""
        file = self.get_ext_filename(extension.name)
        in_source = self.inplace or getattr(self, "editable_mode", False)
        for folder in (self.build_lib, "kernels") if in_source else (self.build_lib,):
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(folder, file))


cpu = Extension(
    "ulam_kernels._cpu",
    sources=["bindings/cpu.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
    depends=sorted(glob("csrc/cpu/*.h") + glob("csrc/include/ulam/*.h") + glob("bindings/*.h")),
    include_dirs=["csrc/include", "csrc/cpu", "bindings", get_include()],
    extra_compile_args=COMPILE_FLAGS,
    # At the link too: there fast-math flushes denormals.
    extra_link_args=["-fopenmp", "-fno-fast-math", *([f"-fsanitize={SANITIZE}"] if SANITIZE else [])],
    language="c++",
)

cuda = Extension(
    "ulam_kernels._cuda",
    sources=["bindings/cuda.cpp"],
    depends=sorted(glob("csrc/cuda/*.h") + glob("csrc/include/ulam/*.h") + glob("bindings/*.h")),
    include_dirs=["csrc/include", "csrc/cuda", "bindings", get_include()],
    libraries=["cudart_static", "dl", "rt", "pthread"],
    extra_compile_args=["-O2", "-g0", "-std=c++17", "-fvisibility=hidden"],
    extra_link_args=["-Wl,--strip-all", "-Wl,--exclude-libs,ALL"],
    language="c++",
)

JOBS = int(os.environ.get("ULAM_BUILD_JOBS") or os.cpu_count() or 1)
ParallelCompile("ULAM_BUILD_JOBS", default=JOBS).install()
setup(ext_modules=[cpu, cuda] if find_nvcc() and not SANITIZE else [cpu], cmdclass={"build_ext": BuildExtension})
