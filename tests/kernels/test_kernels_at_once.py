"""Several Python threads call the native kernels at once: each gets the bits that it gets alone.

They share what is read (tables, network outputs, noise, densities) and write tensors of their own. make sanitize runs
this under ThreadSanitizer too, with one OpenMP thread for each of them.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch

import ulam_kernels
from bit_comparison import same_bits
from layout_cases import innermost, random_case
from mcmc_cases import Cases, Outputs, evaluated
from reduce_cases import MIXED, mixed_table, random_inputs, reduced
from tick_cases import random_cursor, random_output
from ulam_kernels import Table, _cpu, likelihood, torch_normal
from ulam_kernels.cpu import BoundStep
from walk_cases import random_walk

Calls = dict[str, Callable[[], Outputs]]
THREADS = 4


def rows(rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], Outputs]]]:
    """reduce, then the step; the step of other layouts; blend, noise and affine."""
    chains, table, row = len(MIXED), mixed_table(2), torch.arange(len(MIXED))

    def of_rows(start: torch.Tensor, inputs: dict[str, torch.Tensor]) -> Outputs:
        state, net = start.clone(), torch.full_like(start[0], np.nan)
        scales = reduced(state, table, row, **inputs)
        ulam_kernels.step(state, table, row, net_in=net, scales=scales, **inputs)
        return [state, net, scales]

    for shape in ((3, 32, 33), (5,)):
        inputs = random_inputs(rng, shape, torch.float32, chains, guided=True, explicit=False)
        start = torch.from_numpy(rng.normal(size=(2, chains, *shape))).float()
        yield f"rows {shape}", partial(of_rows, start, inputs)
    case = random_case(rng, (3, 8, 8), 5, (torch.float32,) * 3, 3)

    def of_layouts() -> Outputs:
        start, other, at, given = case
        state, net = start.clone(), innermost(given["net_in"].clone())
        ulam_kernels.step(state, other, at, **{**given, "net_in": net})
        return [state, net]

    yield "layouts", of_layouts
    ids = {name: inputs[name] for name in ("seed", "chain", "draw")}
    x, known, mask = (torch.from_numpy(rng.random((chains, 999))).float() for _ in range(3))
    a, b = torch.from_numpy(rng.random((2, chains))).float()

    def of_chains() -> Outputs:
        blended, noise = x[None].clone(), torch.empty_like(x)
        ulam_kernels.blend(blended, known, mask, a, b, **ids)
        ulam_kernels.fill_normal(noise, **ids)
        return [blended, noise, ulam_kernels.affine(x, known, a, b)]

    yield "chains", of_chains


def ticks(rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], Outputs]]]:
    """The look-up, counting on, a bound step, torch's normals, the likelihoods."""
    chains = 300
    times, row = torch.linspace(0, 1, 50), torch.from_numpy(rng.integers(0, 50, chains))
    cursor, model = random_cursor(rng, chains), random_output(rng, (chains, 64), torch.float32)

    def of_ticks() -> Outputs:
        own, now, out = cursor.clone(), torch.zeros(2, chains, dtype=torch.int64), torch.empty(chains)
        ulam_kernels.look_up(times, row, out)
        ulam_kernels.advance(own, now, model=model)
        return [own, now, out]

    yield "ticks", of_ticks
    one, zero = np.ones(1), np.zeros(1)
    matrix = np.array([[[0.5, 0.0, 0.25, 0.0]]])
    writes = np.ones((1, 1), dtype=bool)
    table = Table.pack(one, zero, -np.inf * one, np.inf * one, zero, zero, zero, matrix, writes, ~writes[0])
    x, score = torch.from_numpy(rng.normal(size=(2, chains, 64))).float()
    bound, levels = BoundStep(table, x.shape), (x.clamp(-1, 1) * 127.5).round() / 127.5

    def of_bound_steps() -> Outputs:
        out = torch.empty_like(x)
        bound(0, out, x, score, None)
        return [out, torch_normal(torch.empty(5003), torch.Generator().manual_seed(3))]

    yield "bound steps", of_bound_steps
    yield (
        "likelihoods",
        lambda: [
            ulam_kernels.moments(x, score),
            likelihood.gaussian_kl(x, score, score, x),
            likelihood.discretised_log_likelihood(levels, score, x),
        ],
    )


def of_mcmc() -> Iterator[tuple[str, Callable[[], Outputs]]]:
    cases = Cases(7)
    for sampler, density in zip(("ula", "mala", "baoab", "hmc"), cases.densities()[1:9:2], strict=True):
        run, evaluate = cases.run(density, sampler, 40, True), evaluated(density, cases.normal(40, density.dimension))
        yield f"run {sampler}", partial(run, "cpu")
        yield f"evaluate, as for {sampler}", partial(evaluate, "cpu")
    for name, step in cases.steps(33, 70):
        yield name, partial(step, "cpu")


def of_walks(rng: np.random.Generator) -> Iterator[tuple[str, Callable[[], Outputs]]]:
    """Networks of several widths, so that the memory that a thread keeps grows between its calls."""
    for chains, together in ((3, False), (9, True), (40, False), (40, True)):
        walk = random_walk(rng, chains, 7, 2, guided=True, scaled=True, together=together)
        yield f"walk of {chains} chains {together}", lambda walk=walk: list(walk.run("cpu"))  # type: ignore[misc]


@pytest.mark.parametrize("instructions", _cpu.instruction_sets())
def test_every_thread_gets_the_bits_that_it_gets_alone(instructions: str) -> None:
    before = _cpu.instruction_set()
    rng = np.random.default_rng(11)
    calls: Calls = dict([*rows(rng), *ticks(rng), *of_mcmc(), *of_walks(rng)])
    _cpu.use_instruction_set(instructions)
    try:
        alone = {name: call() for name, call in calls.items()}
        wrong = differences(calls, alone)
    finally:
        _cpu.use_instruction_set(before)
    assert not wrong


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return same_bits(a, b) if a.is_floating_point() else torch.equal(a, b)


def differences(calls: Calls, alone: dict[str, Outputs]) -> list[str]:
    """What goes wrong where every thread makes the calls in an order of its own, a few times over."""
    gate, wrong = threading.Barrier(THREADS), []

    def work(number: int) -> None:
        try:
            order = random.Random(number)
            gate.wait()
            for name in (name for _ in range(4) for name in order.sample(sorted(calls), len(calls))):
                if not all(map(same, calls[name](), alone[name])):
                    wrong.append(f"{name} in thread {number}")
        except BaseException as error:  # of any kind: a thread must not end unseen
            wrong.append(f"{error!r} in thread {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong
