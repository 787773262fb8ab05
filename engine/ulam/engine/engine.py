"""The engine: jobs in, finished chains out, all chains of all jobs in one batch of fixed size."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import torch

import ulam_kernels.dispatch
from ulam_kernels.arguments import choice, described, positive, real, switch
from ulam_kernels.ops import FLOATS
from ulam_kernels.tracing import check_not_recorded, outside_graphs

from ..arguments import chain_ids, check_shape, resolve_device, whole_number
from ..conditioning import Cond, Shared, check_cond, check_guidance
from ..denoiser import Denoiser, Sampler
from ..gradients import check_no_gradient
from ..programs.program import Program
from .arguments import (
    check_callback,
    check_first_row,
    check_first_states,
    check_guidance_options,
    check_network_device,
    check_norms,
    check_seed,
    check_slots,
    check_start,
    fallbacks,
)
from .delivery import Delivery
from .inpainting import check_known
from .job import Callback, Finish, Job, Noise
from .loop import Loop
from .network import NetworkOptions
from .report import Report
from .results import Batch, Finished, Outbox, Result
from .runner import Runner
from .scheduler import POLICIES, Scheduler
from .watchdog import Watchdog

__all__ = ["Engine", "Report", "Result"]


class Engine:
    """Samples chains of many jobs in ``slots`` slots: chains with different samplers, step counts, seeds and guidance
    share each evaluation of the network and each fused step.

    The network always sees a batch of ``slots``; idle slots are padding. While there are guided chains in the batch it
    is called twice a tick, with the conditional and then with the unconditional arguments. ``x`` and ``t`` are the
    engine's own buffers: a network that keeps them must clone them, and it must not write into them. Per-chain tensors
    given to :meth:`submit` are read when the chains enter their slots.

    On the CPU, PyTorch computes the last elements of a tensor (its size modulo 32) with other code than the rest, whose
    last bits may differ; with ``slots`` a multiple of 32 no network's chain depends on the slot that it is in.

    Jobs may be submitted and cancelled from any thread, also while another runs the chains (:meth:`stream`,
    :meth:`run`, :meth:`astream`); where several do, they take turns, and each chain is delivered once.

    Args:
        denoiser: the network with its schedule. It is called under ``torch.inference_mode``, unless ``options`` say
            that it takes gradients inside. No gradient flows through samples.
        shape: of one chain's sample. slots: chains in one batch, or "auto": found by short trials
            (:func:`ulam.engine.best_slots.best_slots`).
        device: where the states live; the network must be there.
        backend: of the fused operations, see :func:`ulam.backends`. dtype: of the states and results.
        policy: which chains enter first, see :class:`ulam.engine.scheduler.Scheduler`.
        queue: the most chains that may wait; :meth:`submit` then blocks or raises.
        options: how the network is called.
        check_finite: stop chains whose network output is not finite, see :class:`Result`.
        graphs: capture whole ticks as CUDA graphs on a GPU. States are then reserved for samplers of up to five
            registers, so that no program moves them.
        results: "device", or "host": through pinned memory beside the work on the GPU.
        watchdog: seconds after which a network call that has not come back is reported.
        trace: mark network and step as ranges for ``torch.profiler`` (and NVTX under its emit_nvtx).

    Raises:
        TypeError, ValueError: an argument that cannot be, named in the message.
    """

    @outside_graphs
    def __init__(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        slots: int | str = 256,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        policy: str = "fifo",
        queue: int | None = None,
        options: NetworkOptions | None = None,
        check_finite: bool = True,
        graphs: bool = True,
        results: str = "device",
        watchdog: float | None = None,
        trace: bool = False,
    ) -> None:
        if not isinstance(denoiser, Denoiser):
            raise TypeError(f"denoiser: got {type(denoiser).__name__}, expected a ulam.Denoiser")
        sizes = check_shape(shape)
        automatic = isinstance(slots, str) and slots == "auto"
        if not automatic:
            check_slots(slots)
        if not isinstance(dtype, torch.dtype) or dtype not in (*FLOATS, torch.float64):
            raise ValueError(f"dtype: got {described(dtype)}, expected float32, bfloat16, float16 or float64")
        if queue is not None and whole_number("queue", queue) < 1:
            raise ValueError(f"queue: got {queue}, expected at least 1 chain, or None")
        choice(policy, "policy", POLICIES)
        choice(results, "results", ("device", "host"))
        if watchdog is not None:
            watchdog = positive(watchdog, "watchdog")
        if options is not None and not isinstance(options, NetworkOptions):
            raise TypeError(f"options: got {described(options)}, expected a ulam.NetworkOptions, or None")
        for name, flag in (("check_finite", check_finite), ("graphs", graphs), ("trace", trace)):
            switch(flag, name)
        where = resolve_device(device)
        module = ulam_kernels.dispatch.select(backend, where.type, dtype)
        check_network_device(denoiser, where)
        if automatic:
            from .best_slots import best_slots

            slots = best_slots(denoiser, sizes, where, backend=backend, dtype=dtype, options=options)
        count = check_slots(slots)
        self.denoiser, self.shape, self.slots = denoiser, sizes, count
        self._scheduler: Scheduler[Job] = Scheduler(count, policy, queue)
        name = ulam_kernels.dispatch.name_of(module)
        self.report = Report(name, str(where), count, fallbacks=fallbacks(name, backend, dtype))
        with torch.inference_mode(False):
            self._runner = Runner(
                denoiser,
                sizes,
                count,
                where,
                backend,
                dtype,
                options or NetworkOptions(),
                self.report,
                check_finite,
                graphs,
                trace,
            )
        self._outbox = Outbox(self._runner, results == "host")
        self._delivery = Delivery(self._outbox)
        self._turn = threading.RLock()  # whose turn it is to run the chains
        self._lock = threading.RLock()  # over the scheduler and the results; nothing waits for the device under it
        self._room = threading.Condition(self._lock)
        self._loop = Loop(self._scheduler, self._runner, self._outbox, self._room)
        self._closed = False  # no more jobs
        self._stopped = False  # no more ticks
        self._watchdog = Watchdog(self._runner.network, watchdog, self.report.add_fallback) if watchdog else None

    @outside_graphs
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
        callback: Callback | None = None,
        every: int = 1,
        finish: Finish | None = None,
        priority: int = 0,
        weight: float = 1.0,
        deadline: float | None = None,
        block: bool = False,
    ) -> Job:
        """Queue chains; nothing runs before :meth:`stream`. Arguments and warnings as in :func:`ulam.sample`, and:

        callback: called with a :class:`ulam.Preview` every ``every`` evaluations of each chain.
        finish: maps final states ``[n, *shape]`` to results ``[n, ...]``, as a latent decoder does.
        priority, weight, deadline: who enters first, see :class:`.scheduler.Scheduler`; deadline in ticks from now.
        block: wait for room in a bounded queue, while another thread runs the chains.

        Raises:
            TypeError, ValueError: an argument that cannot be, named in the message; the engine is as before.
            QueueFull: the bounded queue has no room and ``block`` is False. RuntimeError: the engine is closed, or an
            argument requires grad while gradients are recorded.
        """
        check_not_recorded("submit")
        switch(block, "block")
        weight = real(weight, "weight", "a finite number above 0")
        if deadline is not None:
            deadline = real(deadline, "deadline", "a number of ticks from now, or None")
        check_no_gradient("sampling", cond, x_init=x_init, guidance=guidance, known=known, mask=mask)
        check_no_gradient("sampling", uncond)
        if not isinstance(sampler, Program) and not hasattr(sampler, "program"):
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
        first_row = check_first_row(first_row)
        check_first_states(x_init, len(ids), self.shape)
        check_norms(program, self.shape)
        if x_init is None and not isinstance(sampler, Program):
            check_start(sampler, self.denoiser.schedule)
        seed = check_seed(seed, x_init is not None and not first_row and program.needs_noise)
        if noise is not None and not callable(noise):
            raise TypeError(f"noise: got {type(noise).__name__}, expected a callable noise(row, chains) or None")
        interval, rescale = check_guidance_options(guidance, guidance_interval, guidance_rescale)
        check_callback(callback, every, finish)
        kept = check_known(known, mask, program, len(ids), self.shape)
        if kept is not None and noise is not None:
            raise ValueError("noise: got a callable beside known, whose noise is noise-v1 always")
        conditional = check_cond("cond", cond, len(ids))
        weights, unconditional = check_guidance(guidance, conditional, uncond, len(ids))
        job = Job(
            program, ids, seed, conditional, unconditional, weights, x_init, noise, kept, interval, rescale,
            callback, every, finish, whole_number("priority", priority), deadline, first_row,
        )  # fmt: skip
        with self._lock, torch.inference_mode(False):  # the buffers outlive the caller's mode
            self._check_open()
            inputs = [(self._runner.buffers.cond, conditional)]
            if weights is not None:
                inputs.append((self._runner.buffers.uncond, unconditional))
            for buffers, values in inputs:
                buffers.check(values)
            self._wait_for_room(len(ids), block)
            self._scheduler.check(len(ids), job.ticks, job.priority, weight, deadline)
            for buffers, values in inputs:
                buffers.check(values)  # a job that came while this one waited may have been the first
                buffers.declare(values)
            self._scheduler.submit(job, len(ids), job.ticks, job.priority, weight, deadline)
            self._loop.changed = True
        return job

    def _wait_for_room(self, chains: int, block: bool) -> None:
        limit = self._scheduler.capacity
        while block and limit is not None and chains <= limit < self._scheduler.waiting + chains:
            self._room.wait()
            self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("submit: the engine is closed")

    @outside_graphs
    def cancel(self, job: Job) -> int:
        """Drop a job's chains that have not been delivered; how many. Other jobs keep their bits."""
        _check_job(job)
        with self._lock:
            dropped, running = self._scheduler.cancel(job)
            self._loop.cancel(job, running)
            dropped += self._outbox.cancel(job) + self._delivery.cancel(job)
            self.report.cancelled += dropped
            self._room.notify_all()
        return int(dropped)

    @outside_graphs
    def drop_waiting(self) -> int:
        """Drop all chains that wait for a slot; how many. Those in slots run to their end."""
        with self._lock:
            dropped = self.waiting
            self._scheduler.drop_waiting()
            self.report.cancelled += dropped
            self._loop.changed = True
            self._room.notify_all()
        return dropped

    @property
    def waiting(self) -> int:
        """Chains that wait for a slot."""
        return self._scheduler.waiting

    @outside_graphs
    def predicted_end(self, job: Job) -> int | None:
        """Ticks from now until the last of a job's chains ends, if nothing else is submitted; None when it has."""
        _check_job(job)
        with self._lock:
            return self._scheduler.predicted_end(job)

    # ------------------------------------------------------------------------------------------- results

    @outside_graphs
    def stream(self) -> Iterator[Result]:
        """Run until no chain is left, yielding each as it finishes. Jobs may be submitted meanwhile.

        An exception of the network arrives as :class:`ulam.NetworkError`; calling again repeats the interrupted
        evaluation. A stream that is left early loses nothing: the next one, or :meth:`run`, delivers what this one did
        not.
        """
        return filter(None, chain.from_iterable(iter(self._next_chains, None)))

    async def astream(self) -> AsyncIterator[Result]:
        """:meth:`stream` for asyncio: the work runs in a thread, results arrive with ``async for``."""
        while (results := await asyncio.to_thread(self._next_chains)) is not None:
            for result in filter(None, results):
                yield result

    def run(self) -> dict[Job, torch.Tensor]:
        """Run until no chain is left; each unfinished job's results ``[chains, ...]``, in the order of its chains.

        After an exception, calling again goes on and returns what had finished before too. Chains that failed, were
        cancelled or that :meth:`stream` has delivered already are NaN.
        """
        if torch.compiler.is_dynamo_compiling():  # not by a function around this one: an interrupt there costs results
            from ulam_kernels.outside import call

            return call(Engine.run, self)  # type: ignore[no-any-return]
        with self._turn:
            while (batch := self._next_batch()) is not None:
                self._take(batch, apart=False)
            with self._lock:
                self._delivery.join()
        return self._delivery.joined.pop(threading.get_ident())

    @outside_graphs
    def finished(self, progress: Callable[[int], object] | None = None) -> Iterator[Finished]:
        """As :meth:`stream`, by groups of chains that end together.

        ``progress`` is called with the number of evaluations (summed over chains) done since its last call.
        """
        check_not_recorded("finished")
        return filter(None, chain.from_iterable(iter(partial(self._next_groups, progress), None)))

    @outside_graphs
    def _next_chains(self) -> Iterator[Result | None] | None:
        """Run until chains are out; None once there is none left."""
        return self._delivery.chains() if self._advance(True, None) else None

    @outside_graphs
    def _next_groups(self, progress: Callable[[int], object] | None) -> Iterator[Finished | None] | None:
        """Run until groups are out; None once there is none left."""
        return self._delivery.groups() if self._advance(False, progress) else None

    def _advance(self, apart: bool, progress: Callable[[int], object] | None) -> bool:
        """Run until something can be handed out, chain by chain or in groups; False once no chain is left."""
        with self._turn:
            while True:
                with self._lock:
                    if self._delivery.ready(apart):
                        return True
                if (batch := self._next_batch(progress)) is None:
                    return False
                self._take(batch, apart)

    def _next_batch(self, progress: Callable[[int], object] | None = None) -> Batch | None:
        """Run until something is out; None once no chain is left."""
        with self._lock:
            self._delivery.settle()
            self._loop.settle()
        while not self._stopped:
            if self._runner.previews:
                self._loop.call_back()
            with self._lock:
                batch = self._outbox.next()
            if batch is not None:
                return batch
            if self._scheduler.busy:
                self._loop.run_to_next_event(progress)
            elif not self._outbox.wait():
                return None
        return None

    def _take(self, batch: Batch, apart: bool) -> None:
        """Take out a batch's groups; an exception of a ``finish`` leaves its group where it is."""
        with self._lock:
            if apart and all(part.group.job.finish is None for part in batch.parts):
                self._delivery.take_all(batch)
        while True:
            with self._lock:
                part = batch.parts[0] if batch.parts else None
            if part is None:
                return
            states, finish = self._outbox.states(batch, part), part.group.job.finish
            if finish is not None:
                states = finish(states)
            with self._lock:
                self._delivery.take(batch, part, states, apart)

    @outside_graphs
    def close(self, drain: bool = False) -> list[Result]:
        """End: new jobs are refused, waiting and running chains are dropped, a stream ends.

        With ``drain`` those in the slots run to their end first and are returned.
        """
        drained: list[Result] = []
        with self._lock:
            self._closed = True
            self.drop_waiting()
        if drain:
            drained = list(self.stream())
        with self._lock:
            self._stopped = self._loop.changed = True
        if self._watchdog is not None:
            self._watchdog.close()
        return drained

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_job(job: object) -> None:
    if not isinstance(job, Job):
        raise TypeError(f"job: got {described(job)}, expected what submit returned")
