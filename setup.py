"""Builds the native extensions; everything that can be said as data is in pyproject.toml."""

from __future__ import annotations

import os
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
AVX2_FLAGS = ["-mavx2", "-mfma", "-mf16c"]
AVX512_FLAGS = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
# One build serves every x86-64: only files with these endings may use the newer instructions, and they are
# entered at run time when the processor has them. gcc 12 wrongly warns inside its own AVX-512 headers.
INSTRUCTION_SETS = {
    "_avx2.cpp": AVX2_FLAGS,
    "_avx512.cpp": [*AVX512_FLAGS, "-Wno-maybe-uninitialized"],
}


class BuildExtension(build_ext):
    """Compiles some files with instruction-set flags of their own; leaves them out on other machines."""

    def build_extensions(self) -> None:
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


cpu = Extension(
    "ulam_kernels._cpu",
    sources=["bindings/cpu.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
    depends=sorted(glob("csrc/cpu/*.h") + glob("csrc/include/ulam/*.h")),
    include_dirs=["csrc/include", "csrc/cpu", get_include()],
    extra_compile_args=COMPILE_FLAGS,
    extra_link_args=["-fopenmp", "-fno-fast-math"],  # at the link too: there fast-math flushes denormals
    language="c++",
)

ParallelCompile("ULAM_BUILD_JOBS", default=os.cpu_count() or 1).install()
setup(ext_modules=[cpu], cmdclass={"build_ext": BuildExtension})
