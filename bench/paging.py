"""What pages of freed memory cost: the same work with and without `ulam.keep_freed_memory()`, a process each.

    python -m bench.paging [--threads 2] [--rounds 3]

Prints the median time of a call and the pages that one has made anew: of the digits network in eager code (64 images)
and compiled with frozen weights, and of the gradient of the item-response posterior (501 parameters, 1,024 chains).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import ulam

CALLS = 20


def digits(how: bool | str) -> Callable[[], object]:
    """A call of the digits network."""
    from bench.tuned import cases

    from ulam.engine.network import _compiled

    case = cases(torch.device("cpu"))["digits"]
    x, t, y = torch.randn(64, *case.shape), torch.full((64,), 500.0), torch.arange(64) % 10
    net = _compiled(case.net, how) if how else case.net
    return torch.inference_mode()(lambda: net(x, t, y=y))


def item_response() -> Callable[[], object]:
    """A gradient of the item-response posterior."""
    from bench.posteriors import ItemResponse

    posterior = ItemResponse()
    target, x = posterior.target(), torch.randn(1024, posterior.dimension) / 10
    return lambda: target.score(x)


CASES: dict[str, Callable[[], Callable[[], object]]] = {
    "digits, eager": lambda: digits(False),
    "digits, compiled (frozen)": lambda: digits("frozen"),
    "item response, gradient": item_response,
}


def child(name: str, keep: bool, threads: int) -> None:
    """Time the calls of a case in this process."""
    torch.set_num_threads(threads)
    if keep and not ulam.keep_freed_memory():
        raise SystemExit("ulam.keep_freed_memory: got no mallopt in the C library, expected glibc's")
    call, times = CASES[name](), []
    for _ in range(3):
        call()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    pages = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / CALLS
    print(json.dumps([statistics.median(times), pages]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1] == "kept", options.threads)
        return
    for name in CASES:
        found: dict[str, list[list[float]]] = {"as usual": [], "kept": []}
        for _ in range(options.rounds):
            for way, runs in found.items():
                command = [
                    sys.executable,
                    "-m",
                    "bench.paging",
                    "--threads",
                    str(options.threads),
                    "--child",
                    name,
                    way,
                ]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
        told = [
            f"{way} {1e3 * statistics.median(seconds for seconds, _ in runs):.4g} ms, {runs[-1][1]:.0f} pages"
            for way, runs in found.items()
        ]
        ratio = statistics.median(usual[0] / kept[0] for usual, kept in zip(*found.values(), strict=True))
        print(f"{name}: {'; '.join(told)}: {ratio:.2f} times", flush=True)


if __name__ == "__main__":
    main()
