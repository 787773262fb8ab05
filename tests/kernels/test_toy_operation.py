"""An operation is added in the places that CONTRIBUTING.md lists: a toy one, in a copied tree.

The tree is built for the CPU and the operation runs there; in Triton it runs in the interpreter, its CUDA is compiled.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bench.sass import find_tool

ROOT = Path(__file__).parents[2]
MOST = 11
K, C = "kernels/ulam_kernels/", "csrc/"
PARAMETERS = "x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor"

# By the place as CONTRIBUTING.md names it: the text that the addition goes before (None: a file of its own), and it.
ADDED: dict[str, tuple[str | None, str]] = {
    C + "include/ulam/operations.h": (
        "// out[b] = times[row[b]].",
        """// out = max(a x, b), one a and one b a chain: fp32, one rounding.
struct Toy {
  static constexpr Sharing sharing = Sharing::kPieces;
  int64_t chains, elements;
  const float *x, *a, *b;
  float* out;
};

""",
    ),
    C + "cpu/kernels_impl.h": (
        "// The checksums of the noise standard",
        """template <class V>
void toy_units(const Toy& s, int64_t chunk, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const Span span(unit, s.elements, chunk);
    const float a = s.a[span.chain], b = s.b[span.chain];
    for (int64_t i = span.chain * s.elements + span.begin; i < span.chain * s.elements + span.end; ++i)
      s.out[i] = Portable::clip(Portable::mul(a, s.x[i]), b, infinity());
  }
}

""",
    ),
    C + "cuda/NAME.cu": (
        None,
        """#include "launch.h"

namespace ulam::cuda {

__global__ void __launch_bounds__(kThreads) toy_elements(const Toy s) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, b = i / s.elements;
  if (b < s.chains) s.out[i] = Scalar::clip(Scalar::mul(s.a[b], s.x[i]), s.b[b], infinity());
}

const char* toy(const Toy& s, void* stream) {
  const int64_t blocks = (s.chains * s.elements + kThreads - 1) / kThreads;
  if (blocks) toy_elements<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(s);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace ulam::cuda
""",
    ),
    "bindings/arguments.h": (
        "template <class Own, class Run>\nauto function_of(const LookUp*",
        """template <class Own, class Run>
auto function_of(const Toy*, Run run) {
  return [run](int64_t chains, int64_t elements, uintptr_t x, uintptr_t a, uintptr_t b, uintptr_t out, Own own) {
    run(Toy{chains, elements, pointer<const float>(x), pointer<const float>(a), pointer<const float>(b),
            pointer<float>(out)},
        own);
  };
}

""",
    ),
    K + "native/rows.py": (
        "def look_up(",
        f"""def toy({PARAMETERS}) -> tuple[int, ...]:
    chains = len(x)
    elements = x.numel() // chains
    return (chains, elements, x.data_ptr(), a.data_ptr(), b.data_ptr(), out.data_ptr())


""",
    ),
    K + "_native.pyi": (
        "def look_up(",
        "def toy(chains: int, elements: int, x: int, a: int, b: int, out: int, own: int, /) -> None: ...\n",
    ),
    K + "reference/NAME.py": (
        None,
        f"""import torch


def toy({PARAMETERS}) -> None:
    per_chain = (-1, *[1] * (x.dim() - 1))
    product = x * a.view(per_chain)
    out.copy_(torch.where(product < b.view(per_chain), b.view(per_chain), product))
""",
    ),
    K + "reference/__init__.py": (
        "from ulam_kernels.reference.reduce",
        "from ulam_kernels.reference.toy import toy\n",
    ),
    K + "triton/NAME.py": (
        None,
        f"""# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
import torch
import triton
import triton.language as tl

from ulam_kernels.triton.launch import elements_per_chain, on_device

TILE = 1024


@triton.jit
def toy_elements(x, a, b, out, size, n, TILE: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    product = tl.load(x + i, mask=i < size) * tl.load(a + i // n, mask=i < size)
    least = tl.load(b + i // n, mask=i < size)
    tl.store(out + i, tl.where(product < least, least, product), mask=i < size)


def toy({PARAMETERS}) -> None:
    with on_device(x):
        size = x.numel()
        toy_elements[(-(-size // TILE),)](x, a, b, out, size, elements_per_chain(x), TILE=TILE)
""",
    ),
    K + "triton/__init__.py": ("from ulam_kernels.triton.blend", "from ulam_kernels.triton.toy import toy\n"),
    K + "ops/elementwise.py": (
        "def _promoted(",
        '''@operator(f"toy(Tensor x, Tensor a, Tensor b, {BACKEND}) -> Tensor", like_first)
def toy(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """max(a x, b), a rectifier (Nair and Hinton 2010): fp32, one rounding.

    Args:
        x: ``[B, *shape]`` float32. a, b: ``[B]`` float32, one a chain.

    Returns:
        ``[B, *shape]``.

    Raises:
        TypeError, ValueError: as :func:`step`.
    """
    check_no_gradient("toy", x=x, a=a, b=b)
    if through_operator("toy", x, a, b, pure=True):
        made: torch.Tensor = torch.ops.ulam.toy(x, a, b, backend)
        return made
    check(x, "x", torch.float32, x.device, x.shape)
    check(a, "a", torch.float32, x.device, x.shape[:1])
    check(b, "b", torch.float32, x.device, x.shape[:1])
    out = torch.empty_like(x)
    if x.numel():
        select(backend, x.device.type, x.dtype).toy(x, a, b, out)
        written((out,))
    return out


''',
    ),
}  # fmt: skip
# Lines that grow: what is there, and what it becomes.
GROWN = {
    C + "include/ulam/operations.h": {"  X(affine, Affine)  ": "  X(toy, Toy) \\\n  X(affine, Affine)  "},
    K + "ops/elementwise.py": {
        "import BACKEND, IDS, library": "import BACKEND, IDS, library, like_first",
        "import by_operator, compiling, eager, ": "import by_operator, compiling, eager, through_operator, ",
        "__all__ = [": '__all__ = ["toy", ',
    },
}

INPUTS = """
import torch, ulam_kernels
from ulam_kernels import toy
from pathlib import Path
assert Path(ulam_kernels.__file__).is_relative_to(Path.cwd()), ulam_kernels.__file__
generator = torch.Generator().manual_seed(0)
x, a, b = (torch.randn(shape, generator=generator) for shape in ((3, 40_000), (3,), (3,)))
expected = torch.maximum(x * a[:, None], b[:, None].expand(3, 40_000))
assert torch.equal(toy(x, a, b, backend="reference"), expected)
"""
RUN = """
for threads in (1, 2):
    torch.set_num_threads(threads)
    assert torch.equal(toy(x, a, b, backend="cpu"), expected)
assert torch.equal(torch.compile(toy, fullgraph=True, backend="aot_eager")(x, a, b), expected)
torch.library.opcheck(torch.ops.ulam.toy.default, (x, a, b))
"""
INTERPRETED = """
from ulam_kernels import triton
out = torch.full_like(x, float("nan"))
triton.toy(x, a, b, out)
assert torch.equal(out, expected)
"""


def listed() -> list[str]:
    """The places in CONTRIBUTING.md, in order."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.findall(r"^ *\| \d+ \| `([^`]+)` \|", text, flags=re.MULTILINE)


def copied(folder: Path) -> None:
    """The tree as it is, without what was built."""
    for name in ("csrc", "bindings", "kernels", "engine"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)


def added(folder: Path) -> None:
    """The toy operation, in each place listed and in no other."""
    for place in listed():
        before, text = ADDED[place]
        path = folder / place.replace("NAME", "toy")
        if before is None:
            assert not path.exists()
            path.write_text(text)
            continue
        changed = path.read_text()
        for old, new in {before: text + before, **GROWN.get(place, {})}.items():
            assert changed.count(old) == 1, (place, old)
            changed = changed.replace(old, new)
        path.write_text(changed)


def test_contributing_lists_the_places() -> None:
    assert listed() == list(ADDED) and len(ADDED) <= MOST


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    copied(folder)
    added(folder)
    return folder


def run(folder: Path, *command: str, **variables: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ULAM_")}
    environment |= {"PYTHONPATH": str(folder / "kernels"), **variables}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ to build the extension")
def test_a_toy_operation_runs(tree: Path) -> None:
    # the build of other machines than x86-64: one instruction set; of CUDA nothing, for want of an architecture
    build = ("setup.py", "-q", "build_ext", "--inplace", "--plat-name=portable")
    run(tree, sys.executable, *build, ULAM_CUDA_ARCHITECTURES="none")
    run(tree, sys.executable, "-c", INPUTS + RUN)


@pytest.mark.long
def test_a_toy_operation_is_typed(tree: Path) -> None:
    pytest.importorskip("mypy", reason="comes with the tools of make lint")
    run(tree, sys.executable, "-m", "mypy", "--cache-dir", os.devnull, "-p", "ulam_kernels", MYPYPATH="kernels")


def test_a_toy_operation_runs_in_triton(tree: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    run(tree, sys.executable, "-c", INPUTS + INTERPRETED, TRITON_INTERPRET="1")


@pytest.mark.skipif(find_tool("nvcc") is None, reason="needs nvcc to compile CUDA")
def test_a_toy_operation_compiles_in_cuda(tree: Path) -> None:
    options = ("--fmad=false", "-std=c++17", "-Icsrc/include", "-arch=sm_90", "-o", "toy.ptx")
    run(tree, str(find_tool("nvcc")), "-ptx", *options, "csrc/cuda/toy.cu")
    assert "toy_elements" in (tree / "toy.ptx").read_text()
