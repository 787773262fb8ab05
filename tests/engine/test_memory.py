"""Freed memory is kept while runs of chains are under way, and as usual before and after."""

import ctypes
import subprocess
import sys

import pytest

obeys = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")
pytestmark = pytest.mark.skipif(not obeys, reason="the C library has no mallopt")

COUNT = """
import resource
import torch
import ulam
from ulam.memory import freed_memory_kept
torch.set_num_threads(1)

def pages(times=20):
    "Pages that were made anew for blocks of 40 MiB, allocated, filled and freed in turn, in blocks."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(10 << 20)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / (40 << 20)
"""
# A program, and whether it prints a number of blocks paged in below 2, or above 12 of at least 20. The first few are
# paged in until the heap has found a place for them.
CASES = {
    "as usual": ("print(pages())", False),
    "from now on": ("assert ulam.keep_freed_memory(); pages(); print(pages())", True),
    "within": ("with freed_memory_kept(): pages(); print(pages())", True),
    "of two runs the last": (
        "one, two = freed_memory_kept(), freed_memory_kept()\n"
        "one.__enter__(); two.__enter__(); one.__exit__(None, None, None); pages(); print(pages())",
        True,
    ),
    "afterwards, for good": (
        "with freed_memory_kept(): ulam.keep_freed_memory()\nwith freed_memory_kept(): pages()\nprint(pages())",
        True,
    ),
    "a run of chains": (
        "counts = []\n"
        "def energy(x):\n"
        "    counts.append(pages(1))\n"
        "    return x.square().sum(1) / 2\n"
        "ulam.mcmc.run(ulam.Energy(energy), ulam.mcmc.HMC(0.1), shape=(2,), chains=4, steps=10, warmup=0)\n"
        "print(sum(counts[-10:]) if len(counts) > 20 else 'too few')",
        True,
    ),
    "a command": (
        "from ulam.cli.main import main\nimport contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert main(['info']) == 0\npages(); print(pages())",
        True,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_paged_in_once_where_memory_is_kept(name):
    program, kept = CASES[name]
    done = subprocess.run([sys.executable, "-c", COUNT + program], capture_output=True, text=True, check=True)
    blocks = float(done.stdout.split()[-1])
    assert blocks < 2 if kept else blocks > 12


GIVE_BACK = """
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

before = resident()
with freed_memory_kept():
    pages()
    print(resident() - before)
print(resident() - before)
"""


def test_memory_is_given_back_after_the_last_run():
    done = subprocess.run([sys.executable, "-c", COUNT + GIVE_BACK], capture_output=True, text=True, check=True)
    inside, after = map(int, done.stdout.split())
    assert inside > 36 and after < 8


TUNE = """
from dataclasses import replace

class Pages(torch.nn.Module):
    def forward(self, x, t):
        for _ in range(4):
            torch.ones(10 << 20)
        return x

denoiser = ulam.Denoiser(Pages(), ulam.schedules.vp_linear(100))
found = ulam.tune(denoiser, (2,), sampler=ulam.samplers.DDIM(5), slots=4, budget=0.1, progress=False, cache=False)
tables = str(found), str(replace(found, paging=0.05))
print(found.paging, *("keep_freed_memory() before all else" in table for table in tables))
"""


def test_tune_says_what_pages_of_freed_memory_cost():
    done = subprocess.run([sys.executable, "-c", COUNT + TUNE], capture_output=True, text=True, check=True)
    share, told, told_of_little = done.stdout.split()
    assert 0.1 < float(share) <= 1
    assert (told, told_of_little) == ("True", "False")
