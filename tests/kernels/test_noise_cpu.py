"""noise-v1 on the native CPU backend: golden vectors, every instruction set, all 2^32 words."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ulam
import ulam_kernels
from ulam_kernels import _cpu

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "noise-v1.json").read_text())
CHUNK = 1 << 22


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request):
    """Each instruction set of this machine in turn."""
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(before)


def int64(text: str) -> torch.Tensor:
    value = int(text, 16)
    return torch.tensor([value - (1 << 64) if value >> 63 else value])


def bits(x: torch.Tensor) -> list[str]:
    return [f"{value & 0xFFFFFFFF:08x}" for value in x.flatten().view(torch.int32).tolist()]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden_vectors(case, instruction_set):
    out = torch.full((1, len(case["normals_hex"])), float("nan"))
    ids = {name: int64(case[name]) for name in ("seed", "chain", "draw")}
    ulam_kernels.fill_normal(out, **ids, tag=case["tag"], offset=4 * case["first_block"])
    assert bits(out) == case["normals_hex"]


# Portable code takes minutes.
SETS = [pytest.param(name, marks=pytest.mark.long) if name == "portable" else name for name in _cpu.instruction_sets()]


@pytest.mark.parametrize("instruction_set", SETS, indirect=True)
def test_all_words(instruction_set):
    """The checksums of radius, cosine and sine over all 2^32 inputs (the standard's section 9)."""
    lines, threads = [], torch.get_num_threads()
    for chunk in range(1024):
        sums = _cpu.noise_checksums(chunk * CHUNK, CHUNK, threads)
        lines.append(f"{chunk} " + " ".join(f"{value:016x}" for value in sums))
        expected = GOLDEN["exhaustive"]["chunks"].get(str(chunk))
        assert expected is None or lines[-1].split()[1:] == expected, f"chunk {chunk}"
    digests = {hashlib.md5(("\n".join(lines) + end).encode()).hexdigest() for end in ("\n", "")}
    assert GOLDEN["exhaustive"]["md5"] in digests


@pytest.mark.parametrize("elements", [1, 2, 3, 5, 31, 63, 64, 65, 127, 257, 1000, 20_003])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 37, 4093])
def test_vectorised_equals_reference_at_odd_sizes_and_offsets(elements, offset, instruction_set):
    chain = torch.tensor([0, 2**63 - 1, 12345])
    seed, draw = torch.tensor([-1, 0, 2**40]), torch.tensor([3, -1, 2**33 + 16])
    outs = []
    for backend in ("cpu", "reference"):
        out = torch.full((3, elements), float("nan"))
        ulam_kernels.fill_normal(
            out, seed=seed, chain=chain, draw=draw, tag=1, scale=1.7, offset=offset, backend=backend
        )
        outs.append(bits(out))
    assert outs[0] == outs[1]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_thread_count_changes_no_bit(threads):
    before = torch.get_num_threads()
    whole = ulam.noise.normal((3, 64, 65), seed=9, chains=20, row=4)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(whole, ulam.noise.normal((3, 64, 65), seed=9, chains=20, row=4))
    finally:
        torch.set_num_threads(before)


def test_public_function_follows_the_golden_cases():
    for case in GOLDEN["cases"]:
        if case["first_block"] or int(case["chain"], 16) >= 2**63:  # public chain ids are int64
            continue
        z = ulam.noise.normal(
            (len(case["normals_hex"]),),
            seed=int(case["seed"], 16),
            chains=[int(case["chain"], 16)],
            row=case["step"],
            stage=case["stage"],
            tag=case["tag"],
        )
        assert bits(z) == case["normals_hex"], case["name"]


def test_negative_seed_is_twos_complement():
    negative = ulam.noise.normal((9,), seed=-3, chains=2)
    assert torch.equal(negative, ulam.noise.normal((9,), seed=2**64 - 3, chains=2))
    assert not torch.equal(negative, ulam.noise.normal((9,), seed=3, chains=2))


def test_independent_of_batch_and_order():
    whole = ulam.noise.normal((3, 5, 7), seed=1, chains=range(10), row=2**28 + 5, stage=3)
    some = ulam.noise.normal((3, 5, 7), seed=1, chains=[7, 2], row=2**28 + 5, stage=3)
    assert torch.equal(some, whole[[7, 2]])


def test_statistics_of_a_million_normals():
    """Mean, variance, skewness, kurtosis and lag correlations within five standard errors of N(0, 1)."""
    z = ulam.noise.normal((1 << 20,), seed=7, chains=[3], row=11).double().flatten()
    n = z.numel()
    for power, exact, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(z.pow(power).mean().item() - exact) < 5 * (variance / n) ** 0.5, power
    for lag in (1, 2, 3, 4, 64):
        assert abs((z[lag:] * z[:-lag]).mean().item()) < 5 / n**0.5, lag


@pytest.mark.parametrize(
    "bad, named",
    [
        ({"seed": 2**64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"chains": [-1]}, "chains"),
        ({"chains": [2**63]}, "chains"),
        ({"chains": "ab"}, "chains"),
        ({"row": -1}, "row"),
        ({"stage": 16}, "stage"),
        ({"tag": 15}, "tag"),
        ({"shape": (-1,)}, "shape"),
        ({"shape": (1 << 31,)}, "2\\^30"),
    ],
)
def test_bad_input_is_named(bad, named):
    with pytest.raises((TypeError, ValueError), match=named):
        ulam.noise.normal(**{"shape": (2,), "seed": 0, "chains": 1, **bad})


def test_one_openmp_runtime():
    """The extension's threads are torch's: it maps no second OpenMP library into its process.

    In a process of its own, for other packages in this one may have brought theirs.
    """
    script = """
import pathlib
import ulam
ulam.noise.normal((100_000,), seed=0, chains=64)
paths = (line.split()[-1] for line in pathlib.Path("/proc/self/maps").read_text().splitlines())
print(*{path for path in paths if pathlib.Path(path).name.startswith(("libgomp", "libomp", "libiomp"))})
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 1, done.stdout
