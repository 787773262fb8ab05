"""The engine: jobs in, finished chains out, all chains of all jobs in one batch of fixed size."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, cast

import torch

from ulam_kernels.arguments import choice, described, real, switch, whole
from ulam_kernels.tracing import not_recorded, outside_graphs

from ..arguments import check_shape, resolve_device
from ..conditioning import Blend, Cond, Shared
from ..denoiser import Denoiser, Sampler
from ..guidance import GuidanceSchedule, Rule
from ..programs.program import Program
from .arguments import backend_name, check_options, check_slots, default_slots
from .best_slots import best_slots
from .delivery import Delivery, Handed
from .job import Callback, Finish, Job, Noise
from .ladder import Ladder
from .loop import Loop
from .network import NetworkOptions
from .repeated import Repeated
from .report import Report
from .results import Finished, Result
from .rollout import Rollout
from .runner import Runner
from .scheduler import Scheduler
from .tuned import Tuned
from .walked_slots import CHOICES, chains_of, precision_of, why_not
from .watchdog import Watchdog

__all__ = ["Engine", "Report", "Result"]

MOST_BRANCHES = 256  # further conditionings, each of which has buffers of its own


class Engine:
    """Samples chains of many jobs in ``slots`` slots: chains with different samplers, step counts, seeds and guidance
    share each evaluation of the network and each fused step.

    The network sees a batch of ``slots``, idle ones as padding, or with a ``ladder`` fewer. While guided chains are in
    the batch it is called twice a tick, with the conditional and then with the unconditional arguments. ``x`` and ``t``
    are the engine's own buffers: a network that keeps them must clone them, and it must not write into them. Per-chain
    tensors given to :meth:`submit` are read when the chains enter their slots.

    On the CPU, PyTorch computes the last elements of a tensor (its size modulo 32) by other code than the rest, whose
    last bits may differ; with ``slots`` a multiple of 32 a chain's bits do not depend on its slot.

    Jobs may be submitted and cancelled from any thread, even while another runs the chains (:meth:`stream`,
    :meth:`run`, :meth:`astream`); if several run them, they take turns, and each chain is delivered once.

    Args:
        denoiser: the network with its schedule. It is called under ``torch.inference_mode``, unless ``options`` say
            that it takes gradients inside. No gradient flows through samples.
        shape: of one chain's sample. slots: chains per batch, or "auto": found by short trials
            (:meth:`best_slots`); by default 256, or as tuned.
        device: where the states live; the network must be there too.
        backend: of the fused operations, see :func:`ulam.backends`. dtype: of the states and results.
        policy: which chains enter first, see :class:`ulam.engine.scheduler.Scheduler`.
        queue: the most chains that may wait; beyond that :meth:`submit` blocks or raises.
        options: how the network is called, or what :func:`ulam.tune` found.
        check_finite: stop chains whose network output is not finite, see :class:`Result`.
        graphs: capture whole ticks as CUDA graphs on a GPU. States then have room for samplers of up to five
            registers, so that no program moves them.
        results: "device", or "host": copied through pinned memory while the GPU works on.
        watchdog: seconds after which a network call that has not returned is reported.
        ladder: smaller batches for the network while few slots hold chains, see :class:`ulam.Ladder`.
        branches: the most further conditionings that a chain may ``blend`` in; each costs a call of the network a tick
            while any chain has one.
        chain_kernel: "on" walks whole chains in one kernel, the network included (:mod:`ulam.chain_kernel`): it is read
            at the first job, and raises where it does not fit. "auto" then calls the network as ever, and the report
            says why. A chain's bits are those of the kernel in any company, not those of torch; "off" is torch's.
            "bf16", "bf16_dot" and "tf32x3" are "on" in that precision, see :class:`ulam_kernels.networks.Network`; "on"
            and "auto" are float32 on every device. On a GPU Triton has the kernel.
            Weights, attributes and hooks of modules that change are seen before the next ticks; globals and attributes
            of classes are not. Of weights on a GPU, writes that torch does not count (through ``.data``, by graphs or
            kernels of one's own) are seen when the engine next begins with empty slots; and conditioning that lives
            there is read when it is submitted.
        trace: mark network and step as ranges for ``torch.profiler`` (and NVTX under its emit_nvtx).

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """

    @outside_graphs
    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        slots: int | str | None = None,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        policy: str = "fifo",
        queue: int | None = None,
        options: NetworkOptions | Tuned | None = None,
        check_finite: bool = True,
        graphs: bool = True,
        results: str = "device",
        watchdog: float | None = None,
        trace: bool = False,
        ladder: Ladder | None = None,
        branches: int = 0,
        chain_kernel: str = "off",
    ) -> None:
        choice(chain_kernel, "chain_kernel", CHOICES)
        network = check_options(
            denoiser, dtype, options, policy=policy, queue=queue, results=results, watchdog=watchdog, ladder=ladder,
            check_finite=check_finite, graphs=graphs, trace=trace,
        )  # fmt: skip
        branches = whole(branches, "branches", 0, MOST_BRANCHES)
        sizes = check_shape(shape)
        slots = default_slots(options) if slots is None else slots
        count = None if isinstance(slots, str) and slots == "auto" else check_slots(slots)
        where = resolve_device(device)
        name, slow = backend_name(denoiser, where, backend, dtype)
        if count is None:
            count = self.best_slots(denoiser, sizes, where, backend=backend, dtype=dtype, options=network)
        self.denoiser, self.shape, self.slots = denoiser, sizes, count
        self._jobs = Repeated(denoiser, sizes)
        scheduler: Scheduler[Job] = Scheduler(count, policy, queue)
        self.report = Report(name, str(where), count, fallbacks=slow, network=str(network))
        with torch.inference_mode(False):
            self._runner = Runner(
                denoiser, sizes, count, where, backend, dtype, network, self.report, check_finite,
                graphs and not (isinstance(options, Tuned) and not options.graphs), trace, ladder, branches,
            )  # fmt: skip
        self._lock = threading.RLock()  # guards scheduler and results; never held while waiting for the device
        self._room = threading.Condition(self._lock)
        self._delivery = Delivery(self._runner.buffers, self.report, self._lock, check_finite, results == "host")
        self._loop = Loop(scheduler, self._runner, self._delivery, self._room)
        self._chain_kernel = chain_kernel  # "off" once it is settled
        self._against_chains = why_not(
            where, dtype, backend, network, sizes, ladder=ladder is not None, branches=branches > 0, trace=trace,
            unchecked=not check_finite,
        )  # fmt: skip
        if chain_kernel not in ("auto", "off") and self._against_chains:
            raise ValueError(f"{self._against_chains}, or chain_kernel='auto'")
        self._closed = False  # new jobs are refused
        self._watchdog: Watchdog | None = None
        if watchdog is not None:
            self._watchdog = Watchdog(self._runner.network, float(watchdog), self.report.add_fallback)

    @classmethod
    def best_slots(
        cls,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        device: torch.device,
        *,
        backend: str | None = None,
        dtype: torch.dtype = torch.float32,
        options: NetworkOptions | None = None,
        cond: Cond | None = None,
    ) -> int:
        """The number of slots at which a network is fastest, found by short trials, cached: `best_slots.best_slots`."""
        return best_slots(cls, denoiser, shape, device, backend=backend, dtype=dtype, options=options, cond=cond)

    @not_recorded
    def submit(
        self,
        sampler: Sampler | Program,
        chains: int | range | Sequence[int] | torch.Tensor,
        seed: int | None = None,
        cond: Cond | None = None,
        guidance: float | Sequence[float] | torch.Tensor | None = None,
        uncond: Cond | None = None,
        x_init: torch.Tensor | Shared | None = None,
        noise: Noise | None = None,
        known: torch.Tensor | Shared | None = None,
        mask: torch.Tensor | Shared | None = None,
        *,
        first_row: int = 0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        guidance_rule: Rule | None = None,
        guidance_schedule: GuidanceSchedule | None = None,
        blend: Blend | None = None,
        callback: Callback | None = None,
        every: int = 1,
        finish: Finish | None = None,
        rollout: Rollout | None = None,
        history: torch.Tensor | None = None,
        priority: int = 0,
        weight: float = 1.0,
        deadline: float | None = None,
        block: bool = False,
    ) -> Job:
        """Queue chains; nothing runs before :meth:`stream`. Arguments and warnings as for :func:`ulam.sample`, and:

        callback: called with a :class:`ulam.Preview` after every ``every`` evaluations of each chain.
        finish: maps final states ``[n, *shape]`` to results ``[n, ...]``, as a latent decoder does.
        rollout: what to record on the way: results then have a :class:`ulam.rollouts.Trajectory`, in place of states
            those of :meth:`run`. history: first values of the sampler's further registers (``Trajectory.fork``).
        priority, weight, deadline: who enters first, see :class:`.scheduler.Scheduler`; deadline in ticks from now.
        block: wait for room in a bounded queue, while another thread runs the chains.

        Raises:
            TypeError, ValueError: an invalid argument, named in the message; the engine is unchanged.
            QueueFull: the bounded queue has no room and ``block`` is False.
            RuntimeError: the engine is closed, or an argument requires grad while gradients are recorded.
        """
        switch(block, "block")
        weight = real(weight, "weight", "a finite number above 0")
        deadline = None if deadline is None else real(deadline, "deadline", "a number of ticks from now, or None")
        job = self._jobs.job_of(
            sampler, chains, seed, cond, guidance, uncond, x_init, noise, known, mask,
            first_row, guidance_interval, guidance_rescale, callback, every, finish, priority, deadline,
            guidance_rule=guidance_rule, guidance_schedule=guidance_schedule, blend=blend,
            branches=len(self._runner.buffers.branches), rollout=rollout, history=history,
        )  # fmt: skip
        self._queue(job, weight, block)
        return job

    def _queue(self, job: Job, weight: float = 1.0, block: bool = False) -> None:
        with self._lock:
            if self._closed or weight != 1.0 or not self._loop.keep(job):
                self._enter(job, weight, block)

    def _enter(self, job: Job, weight: float, block: bool) -> None:
        chains, buffers = job.chains.shape[0], self._runner.buffers
        self._check_open()
        with torch.inference_mode(False):  # the buffers outlive the caller's inference mode
            if self._chain_kernel != "off":
                self._settle_chains(job)
            if self._runner.chains is not None:
                self._runner.chains.check(job)
            inputs = [(buffers.cond, job.cond)] + ([(buffers.uncond, job.uncond)] if job.guidance is not None else [])
            inputs += [(buffers.branches[number], values) for number, (values, _) in enumerate(job.branches)]
            if block:
                for arguments, values in inputs:
                    arguments.check(values)  # refused before any wait
                self._wait_for_room(chains)
            scheduler = self._loop.scheduler
            scheduler.check(chains, job.ticks, job.priority, weight, job.deadline)
            for arguments, values in inputs:
                arguments.declare(values)
            scheduler.submit(job, chains, job.ticks, job.priority, weight, job.deadline)
            self._loop.changed = True

    def _settle_chains(self, job: Job) -> None:
        """Decide, at the first job, whether chains are walked in one kernel, the network included."""
        try:
            if self._against_chains:
                raise TypeError(self._against_chains)
            self._runner.chains = chains_of(
                self.denoiser, self.shape, job, self._runner.buffers, precision_of(self._chain_kernel)
            )
            self._runner.outputs = self._runner.chains.evaluate
            self.report.chain_kernel = "on" if self._chain_kernel == "auto" else self._chain_kernel
        except TypeError as error:
            if self._chain_kernel != "auto":
                raise
            self.report.chain_kernel = str(error).split("\n")[0]
        self._chain_kernel = "off"

    def _wait_for_room(self, chains: int) -> None:
        limit = self._loop.scheduler.capacity
        while limit is not None and chains <= limit < self._loop.scheduler.waiting + chains:
            self._room.wait()
            self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("submit: got a closed engine, expected an open one")

    @outside_graphs
    def cancel(self, job: Job) -> int:
        """Drop a job's undelivered chains; return how many. Others keep their bits. Raises TypeError if not a Job."""
        _check_job(job)
        with self._lock:
            dropped = self._loop.cancel(job) + self._delivery.cancel(job)
            self.report.add_cancelled(dropped)
            self._room.notify_all()
        return int(dropped)

    @outside_graphs
    def drop_waiting(self) -> int:
        """Drop all chains that wait for a slot; return how many. Those in slots run to their end."""
        return self._drop_waiting()

    def _drop_waiting(self) -> int:
        with self._lock:
            dropped = self.waiting
            self._loop.scheduler.drop_waiting()
            self.report.add_cancelled(dropped)
            self._loop.changed = True
            self._room.notify_all()
        return dropped

    @property
    def waiting(self) -> int:
        """Chains that wait for a slot."""
        return self._loop.scheduler.waiting

    @outside_graphs
    def predicted_end(self, job: Job) -> int | None:
        """Ticks from now until the last of a job's chains ends, if nothing else is submitted; None once it has."""
        _check_job(job)
        with self._lock:
            return self._loop.scheduler.predicted_end(job)

    # ------------------------------------------------------------------------------------------- results

    @outside_graphs
    def stream(self) -> Iterator[Result]:
        """Run until no chain is left, yielding each as it finishes. Jobs may be submitted meanwhile.

        An exception in the network is raised as :class:`ulam.NetworkError`; calling again repeats the interrupted
        evaluation. Leaving a stream early loses nothing: the next one, or :meth:`run`, delivers the rest.
        """
        return _each(outside_graphs(self._loop.next_results), True)

    async def astream(self) -> AsyncIterator[Result]:
        """:meth:`stream` for asyncio: the work runs in a thread, results arrive with ``async for``."""
        while (results := await asyncio.to_thread(outside_graphs(self._loop.next_results), True)) is not None:
            for result in filter(None, results):
                yield cast(Result, result)

    def run(self) -> dict[Job, Any]:
        """Run until no chain is left; return each unfinished job's results ``[chains, ...]``, in order of its chains;
        of a job with a ``rollout`` the :class:`ulam.rollouts.Trajectory` of those that are left.

        After an exception, calling again goes on, and also returns what had finished before. Chains that failed, were
        cancelled or were already delivered by :meth:`stream` are NaN.
        """
        if torch.compiler.is_dynamo_compiling():  # not by a decorator: an interrupt in it would lose results
            from ulam_kernels.outside import call

            return call(Engine.run, self)  # type: ignore[no-any-return]
        self._loop.run_out()
        return self._delivery.joined.pop(threading.get_ident())

    @not_recorded
    def finished(self, progress: Callable[[int], object] | None = None) -> Iterator[Finished]:
        """As :meth:`stream`, in groups of chains that end together.

        ``progress`` is called with the number of evaluations (summed over chains) done since its last call.
        """
        if progress is not None and not callable(progress):
            raise TypeError(f"progress: got {described(progress)}, expected a callable or None")
        return _each(outside_graphs(self._loop.next_results), False, progress)

    def _finished(self, progress: Callable[[int], object]) -> Iterator[Finished]:
        return _each(self._loop.next_results, False, progress)

    @outside_graphs
    def close(self, drain: bool = False) -> list[Result]:
        """Refuse new jobs, drop waiting and running chains, end every stream.

        With ``drain`` the chains in slots first run to their end and are returned.
        """
        return self._close(drain)

    def _close(self, drain: bool = False) -> list[Result]:
        switch(drain, "drain")
        drained: list[Result] = []
        with self._lock:
            self._closed = True
            self._drop_waiting()
        if drain:
            drained = list(self.stream())
        with self._lock:
            self._loop.stopped = self._loop.changed = True
        if self._watchdog is not None:
            self._watchdog.close()
        return drained

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()


def _each(next_results: Callable[..., Handed | None], *arguments: object) -> Iterator[Any]:
    """The results of one call of ``next_results`` after another until it returns None, without entries that are None.

    All of it runs in C, so that no interrupt comes between a result's leaving the engine and the caller's loop.
    """
    return filter(None, chain.from_iterable(iter(partial(next_results, *arguments), None)))


def _check_job(job: object) -> None:
    if not isinstance(job, Job):
        raise TypeError(f"job: got {described(job)}, expected what submit returned")
