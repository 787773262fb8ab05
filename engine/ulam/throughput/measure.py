"""`ulam.throughput.measure`: every way and part of a work, timed in turn within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import permutations

import torch
from tqdm.auto import tqdm

from ulam_kernels.arguments import positive

from ..conditioning import arguments_of
from ..engine.arguments import backend_name
from ..engine.tuned import Tuned
from ..evaluation import in_eval_mode, modules_in, way_out_of
from ..files import one_line
from ..tuning.tune import tune
from . import parts
from .measured import Measured, Part, Way, how_to, judged
from .peaks import peak_bytes
from .plain_loop import PlainLoop, Unlike
from .timing import Timing, ratio, rounds, summary
from .ways import COMPILED, DIFFUSERS, KERNEL, LOOP, OURS, THEIRS, TUNED, ULAM, Other, Ready, ready, seconds_of
from .work import Work

BUDGET = 120.0  # seconds
PARTS, TUNING, COMPILING, LAST = 0.05, 0.35, 0.2, 0.95  # of the budget
LEAST_ROUNDS, MOST_ROUNDS = 5, 101
ROUND = 0.04  # of the budget, which a round of all ways may take: runs are cut to so many evaluations
FEWEST = 2  # evaluations of a run
TIMED = 0.02  # seconds that what is timed takes at least: short runs are repeated
ROUNDS = 0.1  # of the budget, which the rounds take at least


def measure(
    work: Work,
    *,
    budget: float = BUDGET,
    accuracy: str | float = "fp32",
    compiles: bool = True,
    others: Mapping[str, Other] | None = None,
    progress: bool = True,
) -> Measured:
    """Time the work in plain PyTorch, through ``torch.compile``, in diffusers' loop and in ulam, plain and tuned.

    All ways run in turn, round by round, so that drifts of the machine hit them alike; what is said to be faster leads
    by 2% in three rounds of four. Runs are cut to their first evaluations where whole ones would
    leave no time for rounds.

    Args:
        work: what is done. budget: seconds for all of it; what would take more than is left is left out, and said.
        accuracy: of what :func:`ulam.tune` may choose. compiles: try ``torch.compile`` of the plain loop, and tune.
        others: further ways by name, each called with the work and a number of evaluations: a function that runs these.
        progress: show a bar if stderr is a terminal.

    Raises TypeError or ValueError for an invalid argument, or a network that does not run.
    """
    if not isinstance(work, Work):
        raise TypeError(f"work: got {type(work).__name__}, expected a ulam.throughput.Work")
    limit = positive(budget, "budget")
    modules = [module for net in work.denoiser.nets for module in modules_in(net)]
    shown = tqdm(desc="ulam bench", total=5, unit="part", disable=None if progress else True)
    with in_eval_mode(modules), shown as bar:
        return _Bench(work, limit, accuracy, others or {}, bar).run(compiles)


class _Bench:
    def __init__(
        self, work: Work, budget: float, accuracy: str | float, others: Mapping[str, Other], bar: tqdm[None]
    ) -> None:
        self._work, self._budget, self._accuracy, self._bar = work, budget, accuracy, bar
        self._others = others
        self._begin = time.perf_counter()
        self._ready: dict[str, Ready] = {}
        self._out: dict[str, str] = {}  # why ways were left out
        self._tuned: Tuned | None = None

    def run(self, compiles: bool) -> Measured:
        work = self._work
        once = self._evaluation()
        self._part("parts")
        timed_parts = parts.timed_parts(work, PARTS * self._budget)
        evaluations = min(len(work.program.evaluating), max(FEWEST, int(ROUND * self._budget / (6 * once))))
        self._part("tuning")
        if compiles:
            self._tune()
        else:
            self._out |= dict.fromkeys((TUNED, COMPILED), "not asked for")
        self._part("warm-ups")
        for name in (LOOP, ULAM, KERNEL, DIFFUSERS, *self._others, TUNED):
            self._prepare(name, evaluations)
        if compiles:
            self._compile(evaluations)
        self._part("rounds")
        left = LAST * self._budget - (time.perf_counter() - self._begin)
        repeats = math.ceil(TIMED / (once * evaluations))
        functions = {name: _repeated(way.run, repeats) for name, way in self._ready.items()}
        times = rounds(functions, max(ROUNDS * self._budget, left), LEAST_ROUNDS, MOST_ROUNDS)
        times = {name: [value / repeats for value in values] for name, values in times.items()}
        self._part("memory")
        return self._measured(times, timed_parts, evaluations)

    def _part(self, name: str) -> None:
        self._bar.set_postfix_str(name)
        self._bar.update()

    def _evaluation(self) -> float:
        """Seconds of one evaluation, once warm. Raises ValueError where the network fails, or has no plain loop."""
        work = self._work
        try:
            loop = PlainLoop(work, 1)
            x = torch.randn(work.batch, device=work.device)
            seconds_of(lambda: loop(x))
            return min(seconds_of(lambda: loop(x)) for _ in range(2))
        except Unlike as error:
            raise ValueError(f"sampler: got {work.program.sampler}: {error}, expected one with a plain loop") from None
        except (RuntimeError, TypeError, ValueError) as error:
            told = torch.zeros(1, dtype=work.denoiser.time_dtype)
            inputs = arguments_of(work.cond, torch.device(work.device))
            right = way_out_of(error, torch.zeros(1), told, inputs) or f"one that runs on {list(work.batch)}"
            raise ValueError(f"model: got a network that fails ({one_line(error)}), expected {right}") from None

    def _tune(self) -> None:
        work = self._work
        job = {name: value for name, value in work.job.items() if value is not None}
        try:
            self._tuned = tune(
                work.denoiser, work.shape, sampler=work.sampler, slots=work.slots, accuracy=self._accuracy,
                device=work.device, backend=work.backend, budget=TUNING * self._budget, cache=False, progress=False,
                **job,
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            self._out[TUNED] = str(error)
            return
        if self._tuned.chosen is self._tuned.candidates[0]:
            self._out[TUNED] = "no candidate leads eager code: it is ulam as it is"

    def _prepare(self, name: str, evaluations: int) -> None:
        if name in self._out:
            return
        try:
            self._ready[name] = ready(name, self._work, evaluations, self._tuned, self._others)
        except Unlike as error:
            self._out[name] = str(error)

    def _compile(self, evaluations: int) -> None:
        """The plain loop through torch.compile, unless that is likely to take more than is left."""
        found = () if self._tuned is None else self._tuned.candidates
        needed = max((one.warm_up or 0.0 for one in found if one.options.compile), default=COMPILING * self._budget)
        left = LAST * self._budget - (time.perf_counter() - self._begin)
        if needed > left:
            self._out[COMPILED] = f"not tried: {max(0.0, left):.0f} s were left of {self._budget:.0f}"
        else:
            self._prepare(COMPILED, evaluations)

    def _measured(self, times: dict[str, list[float]], timed_parts: dict[str, Timing], evaluations: int) -> Measured:
        work = self._work
        each = {name: [value / evaluations for value in values] for name, values in times.items()}
        medians = {name: summary(values).median for name, values in each.items()}
        ratios = {(a, b): ratio(each[a], each[b]) for a, b in permutations(each, 2)}
        share = None
        if LOOP in medians:
            share = 1 - timed_parts[parts.PLAIN_STEP].median / medians[LOOP]
            share = share if share > 0 else None
        options = "" if self._tuned is None else str(self._tuned.options)
        best, verdict = judged(ratios, medians, how_to(options), share)
        step_bytes, elements = parts.bytes_of_step(work), work.elements
        bandwidth = parts.MOVED * 4 * elements / timed_parts[parts.MEMORY].median
        if parts.STEP in timed_parts:  # in the caches it may move its bytes faster than torch's addition does
            bandwidth = max(bandwidth, step_bytes / timed_parts[parts.STEP].median)
        samples = self._samples()
        ways = []
        for name in (*THEIRS, *self._others, *OURS):
            if name not in each:
                ways.append(Way(name, told=self._out.get(name, "not tried")))
                continue
            timing = summary(each[name])
            ways.append(
                Way(
                    name, timing, ratios.get((LOOP, name)),
                    work.slots / (timing.median * len(work.program.evaluating)), self._ready[name].warm_up,
                    peak_bytes(self._ready[name].run, torch.device(work.device)), _difference(samples, name),
                    options if name == TUNED else "",
                )
            )  # fmt: skip
        nets = [net for net in work.denoiser.nets if isinstance(net, torch.nn.Module)]
        name, slow = backend_name(work.denoiser, torch.device(work.device), work.backend, torch.float32)
        return Measured(
            work.program.sampler, repr(work.denoiser.schedule), len(work.program.evaluating), work.slots,
            tuple(work.shape), work.guidance, str(work.device), name,
            sum(value.numel() for net in nets for value in net.parameters()), evaluations,
            len(next(iter(each.values()))), time.perf_counter() - self._begin, tuple(ways),
            tuple(Part(part, timing) for part, timing in timed_parts.items()), share, step_bytes, bandwidth,
            step_bytes / bandwidth, best, verdict, "" if self._tuned is None else str(self._tuned), slow,
        )  # fmt: skip

    def _samples(self) -> dict[str, torch.Tensor]:
        """The samples of each way from noise-v1."""
        found = {}
        for name, way in self._ready.items():
            if way.samples is not None:
                with suppress(RuntimeError):  # out of memory
                    found[name] = way.samples().float()
        return found


def _repeated(run: Callable[[], object], repeats: int) -> Callable[[], object]:
    def runs() -> None:
        for _ in range(repeats):
            run()

    return runs


def _difference(samples: dict[str, torch.Tensor], name: str) -> float | None:
    if name == LOOP or name not in samples or LOOP not in samples:
        return None
    span = samples[LOOP].max() - samples[LOOP].min()
    return float((samples[name] - samples[LOOP]).square().mean().sqrt() / span)
