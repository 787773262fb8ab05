"""The engine: jobs in, finished chains out, all chains of all jobs in one batch of fixed size."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

import ulam_kernels.dispatch
from ulam_kernels.ops import FLOATS, MAX_ELEMENTS

from .conditioning import Cond, check_cond, check_guidance
from .denoiser import Denoiser, Sampler
from .job import Job, Noise
from .noise import chain_ids, seed_int64, whole_number
from .runner import Runner
from .scheduler import Group, Scheduler


@dataclass(frozen=True, eq=False)
class Result:
    """A finished chain: its job, its id, its final state ``x`` ``[*shape]``."""

    job: Job
    chain: int
    x: torch.Tensor


@dataclass
class Report:
    """What an engine has done so far. ``evaluations`` counts chains times evaluations, idle slots not included.

    ``seconds`` and ``network_seconds`` are the host's; on a GPU they measure launches, not work.
    """

    backend: str
    device: str
    slots: int
    chains: int = 0
    evaluations: int = 0
    ticks: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    fallbacks: tuple[str, ...] = ()


class Engine:
    """Samples chains of many jobs in ``slots`` slots: chains with different samplers, step counts, seeds and guidance
    share each evaluation of the network and each fused step.

    The network always sees a batch of ``slots``; idle slots are padding. While there are guided chains in the batch it
    is called twice a tick, with the conditional and then with the unconditional arguments. ``x`` and ``t`` are the
    engine's own buffers: a network that keeps them must clone them, and it must not write into them. Per-chain tensors
    given to :meth:`submit` are read when the chains enter their slots.

    Args:
        denoiser: the network with its schedule. It is called under ``torch.inference_mode``.
        shape: of one chain's sample. slots: chains in one batch.
        device: where the states live; the network must be there.
        backend: of the fused operations, see :func:`ulam.backends`. dtype: of the states and results.

    Raises:
        TypeError, ValueError: an argument that cannot be, named in the message.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        slots: int = 256,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser: got {type(denoiser).__name__}, expected a ulam.Denoiser")
        sizes = _shape(shape)
        slots = whole_number("slots", slots)
        if slots < 1:
            raise ValueError(f"slots: got {slots}, expected at least 1")
        if dtype not in (*FLOATS, torch.float64):
            raise ValueError(f"dtype: got {dtype}, expected float32, bfloat16, float16 or float64")
        where = resolve_device(device)
        module = ulam_kernels.dispatch.select(backend, where.type, dtype)
        _check_network_device(denoiser, where)
        self.denoiser, self.shape, self.slots = denoiser, sizes, slots
        self._scheduler: Scheduler[Job] = Scheduler(slots)
        with torch.inference_mode(False):
            self._runner = Runner(denoiser, sizes, slots, where, backend, dtype)
        name = ulam_kernels.dispatch.name_of(module)
        self.report = Report(name, str(where), slots, fallbacks=_fallbacks(name, backend, dtype))
        self._left: deque[Group[Job]] = deque()  # groups that are done, their states still in the slots
        self._ready: deque[tuple[Result, int]] = deque()  # results on their way out, with their place in the job
        self._results: dict[Job, torch.Tensor] = {}
        self._closed = False

    def submit(
        self,
        sampler: Sampler,
        chains: int | range | Sequence[int] | torch.Tensor,
        seed: int = 0,
        cond: Cond | None = None,
        guidance: float | Sequence[float] | torch.Tensor | None = None,
        uncond: Cond | None = None,
        x_init: torch.Tensor | None = None,
        noise: Noise | None = None,
    ) -> Job:
        """Queue chains; nothing runs before :meth:`stream`. Arguments as in :func:`ulam.sample`.

        Raises:
            TypeError, ValueError: an argument that cannot be, named in the message; the engine is as before.
        """
        if self._closed:
            raise RuntimeError("submit: the engine is closed")
        if not hasattr(sampler, "program"):
            came = type(sampler).__name__
            raise TypeError(f"sampler: got {came}, expected one of ulam.samplers, such as DDIM(steps=50)")
        ids = chain_ids(chains)
        if not len(ids):
            raise ValueError("chains: got none, expected at least 1")
        if len(torch.unique(ids)) != len(ids):
            raise ValueError("chains: got an id twice in one job (use two jobs)")
        program = self.denoiser.program(sampler)
        if program.nfe == 0:
            raise ValueError(f"sampler: {sampler!r} never evaluates the network")
        if x_init is not None:
            _check_x_init(x_init, (len(ids), *self.shape))
        if noise is not None and not callable(noise):
            raise TypeError(f"noise: got {type(noise).__name__}, expected a callable noise(row, chains) or None")
        conditional = check_cond("cond", cond, len(ids))
        weights, unconditional = check_guidance(guidance, conditional, uncond, len(ids))
        self._runner.cond.check(conditional)
        if weights is not None:
            self._runner.uncond.check(unconditional)
        job = Job(program, ids, seed_int64(seed), conditional, unconditional, weights, x_init, noise)
        with torch.inference_mode(False):  # the buffers outlive the caller's mode
            self._runner.load(program)
            self._runner.cond.declare(conditional)
            if weights is not None:
                self._runner.uncond.declare(unconditional)
        self._scheduler.submit(job, len(ids), job.ticks)
        return job

    def stream(self) -> Iterator[Result]:
        """Run until no chain is left, yielding each as it finishes. Jobs may be submitted meanwhile.

        An exception of the network passes through; calling again repeats the interrupted evaluation. A stream that is
        left early loses nothing: the next one, or :meth:`run`, delivers what this one did not.
        """
        groups = self.groups()
        while True:
            while self._ready:
                yield self._ready.popleft()[0]
            group, states = next(groups, (None, None))
            if group is None or states is None:
                return
            finished = states.clone()
            places = range(group.chains.start, group.chains.stop)
            for x, place, chain in zip(finished, places, group.job.chains[group.chains].tolist(), strict=True):
                self._ready.append((Result(group.job, chain, x), place))

    def run(self) -> dict[Job, torch.Tensor]:
        """Run until no chain is left; each unfinished job's samples ``[chains, *shape]``, in the order of its chains.

        After an exception, calling again goes on and returns what had finished before too. Chains that :meth:`stream`
        has delivered already are NaN.
        """
        for group, states in self.groups():
            self._result(group.job)[group.chains] = states
        while self._ready:
            result, place = self._ready.popleft()
            self._result(result.job)[place] = result.x
        results, self._results = self._results, {}
        return results

    def _result(self, job: Job) -> torch.Tensor:
        if job not in self._results:
            shape, like = (len(job.chains), *self.shape), self._runner.state
            self._results[job] = torch.full(shape, float("nan"), dtype=like.dtype, device=like.device)
        return self._results[job]

    def groups(self, progress: Callable[[int], object] | None = None) -> Iterator[tuple[Group[Job], torch.Tensor]]:
        """As :meth:`stream`, by groups of chains that end together: a view of their states, valid until the next one.

        ``progress`` is called with the number of evaluations (summed over chains) done since its last call.
        """
        while not self._closed:
            while self._left:
                group = self._left.popleft()
                self.report.chains += group.size
                yield group, self._runner.state[0, group.slots]
            if not self._scheduler.busy:
                return
            begin, network = time.perf_counter(), self._runner.network_seconds
            try:
                with _in_eval_mode(self.denoiser.net), torch.inference_mode():
                    self._run_to_next_event(progress)
            finally:
                self.report.seconds += time.perf_counter() - begin
                self.report.network_seconds += self._runner.network_seconds - network

    def _run_to_next_event(self, progress: Callable[[int], object] | None) -> None:
        """Fill the free slots and tick until a group is done."""
        scheduler, runner, report = self._scheduler, self._runner, self.report
        if runner.between_ticks:
            for group in scheduler.admit():
                runner.enter(group)
        guided = any(group.job.guidance is not None for group in scheduler.groups)
        active = scheduler.active
        for _ in range(scheduler.ticks_until_event):
            runner.tick(scheduler.tick, scheduler.groups, guided)
            scheduler.tick += 1
            report.ticks += 1
            report.evaluations += active
            if progress is not None:
                progress(active)
        for group in scheduler.retire():
            runner.leave(group)
            self._left.append(group)

    def close(self) -> None:
        """Drop all chains; a stream ends, and new jobs are refused."""
        self._closed = True

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _in_eval_mode(net: object) -> Iterator[None]:
    """A network samples in eval mode; a network in training goes back to it."""
    training = [module for module in net.modules() if module.training] if isinstance(net, torch.nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape: got {shape!r}, expected the sizes of one sample, such as (3, 32, 32)")
    sizes = tuple(whole_number("shape", size) for size in shape)
    if any(size < 1 for size in sizes):
        raise ValueError(f"shape: got {sizes}, expected sizes of at least 1")
    if math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"shape: got {sizes}, a sample may have at most 2^30 elements")
    return sizes


def resolve_device(device: torch.device | str) -> torch.device:
    """The device by its full name, such as cuda:0. Raises ValueError for one that is not here."""
    try:
        where = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device: got {device!r}: {error}") from None
    if where.type == "cpu":
        return torch.device("cpu")
    if where.type != "cuda":
        raise ValueError(f"device: got {device!r}, expected cpu or cuda")
    count = torch.cuda.device_count()
    index = where.index if where.index is not None or not count else torch.cuda.current_device()
    if index is None or index >= count:
        raise ValueError(f"device: got {device!r}, but torch sees {count} CUDA devices here")
    return torch.device("cuda", index)


def _check_network_device(denoiser: Denoiser, device: torch.device) -> None:
    if isinstance(denoiser.net, torch.nn.Module):
        for name, parameter in denoiser.net.named_parameters():
            if parameter.device != device:
                raise ValueError(f"device: got {device}, but the network's {name} is on {parameter.device}")


def _check_x_init(x_init: object, shape: tuple[int, ...]) -> None:
    if not isinstance(x_init, torch.Tensor) or not x_init.is_floating_point():
        raise TypeError(f"x_init: got {type(x_init).__name__}, expected a float tensor {list(shape)} or None")
    if tuple(x_init.shape) != shape:
        raise ValueError(f"x_init: got shape {list(x_init.shape)}, expected {list(shape)} (chains first)")


def _fallbacks(name: str, backend: str | None, dtype: torch.dtype) -> tuple[str, ...]:
    """What runs on the slow reference without having been asked for."""
    asked = backend or os.environ.get("ULAM_BACKEND")
    if name != "reference" or asked == "reference" or dtype == torch.float64:
        return ()
    return (ulam_kernels.dispatch.why_reference(),)
