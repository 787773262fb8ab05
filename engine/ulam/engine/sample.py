"""`ulam.sample`: one call from a denoiser and a sampler to samples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm

from ulam_kernels.arguments import choice, switch
from ulam_kernels.tracing import not_recorded

from ..arguments import chain_ids, check_shape, resolve_device
from ..chain_kernel.compiled import CompiledChain
from ..conditioning import Blend, Cond, Shared
from ..denoiser import Denoiser, Sampler
from ..guidance import GuidanceSchedule, Rule
from ..programs.program import Program
from .arguments import DEFAULT_SLOTS, backend_name, check_options, check_slots
from .engine import Engine
from .errors import warn
from .job import Job, Noise
from .ladder import Ladder
from .network import NetworkOptions
from .repeated import call_again, keep_call
from .submission import job_of
from .tuned import Tuned
from .walked_slots import CHOICES, precision_of, why_not
from .walker import read, walked, walks


@not_recorded
def sample(
    denoiser: Denoiser,
    sampler: Sampler | Program,
    shape: Sequence[int],
    chains: int | range | Sequence[int] | torch.Tensor,
    seed: int | None = None,
    *,
    cond: Cond | None = None,
    guidance: float | Sequence[float] | torch.Tensor | None = None,
    uncond: Cond | None = None,
    slots: int | None = None,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    dtype: torch.dtype = torch.float32,
    x_init: torch.Tensor | Shared | None = None,
    noise: Noise | None = None,
    known: torch.Tensor | Shared | None = None,
    mask: torch.Tensor | Shared | None = None,
    first_row: int = 0,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    guidance_rule: Rule | None = None,
    guidance_schedule: GuidanceSchedule | None = None,
    blend: Blend | None = None,
    options: NetworkOptions | Tuned | None = None,
    ladder: Ladder | None = None,
    chain_kernel: str = "off",
    progress: bool = True,
) -> torch.Tensor:
    """Sample ``[chains, *shape]``; row i is chain i of ``chains``.

    A chain's result depends on its id and the seed, never on who shares the batch: same bits for any number and order
    of chains at equal ``slots``, and for any ``slots`` where the network treats the rows of a batch independently.

    Args:
        denoiser: network, schedule, prediction. sampler: of :mod:`ulam.samplers`, or a program. shape: of one sample.
        chains: a number n (chains 0 to n - 1), a range, or distinct ids in [0, 2^63). seed: an integer (0).
        cond: the network's conditioning by name, tensors, arrays or lists ``[chains, ...]`` (or :func:`ulam.shared`).
        guidance: weight w of classifier-free guidance, m = m_uncond + w (m_cond - m_uncond) [Ho & Salimans 2022],
            one number or one per chain; with ``uncond``, the conditioning of the unconditional evaluation.
        slots: chains per batch (default: min(chains, 256), or as tuned). device, backend, dtype: :class:`ulam.Engine`.
        x_init: ``[chains, *shape]``, or shared ``[*shape]``: states at the first row's noise level. Warns where a run
            without it starts far below the noisiest, and where it would repeat noise: see ``first_row``, ``seed``.
        first_row: the noise row of the program's first row. A chain run in two pieces, ``program[:k]`` and then
            ``program[k:]`` with the first's result as ``x_init`` and ``first_row=k``, has the bits of one run.
        noise: ``noise(row, chains) -> z``, standard normal ``[len(chains), *shape]``, asked for rows that add noise.
        guidance_interval: (lo, hi), the times t at which guidance applies, with weight 1 elsewhere [Kynkaanniemi 2024].
            guidance_rescale: phi in [0, 1] [Lin 2024, section 3.4].
        guidance_rule: :class:`ulam.guidance.APG` or `CFGZero` in place of the weighted difference. guidance_schedule:
            a factor on the weight for each evaluation, a sequence or a function of its t.
        blend: pairs (cond, b) of further conditionings, each evaluated too: m_cond becomes m_cond + sum b (m - m_cond),
            with weights b, one number or one per chain. Composed prompts of weights w_0, w_1, ... [Liu 2022] are
            guidance = sum w and b_k = w_k / sum w; a key that one lacks is that of ``cond``.
        known, mask: for inpainting (:class:`ulam.samplers.RePaint`): an image, and 1 where it is kept, 0 where it is
            sampled, each ``[chains, *shape]`` or what broadcasts to it, or shared.
        options: how the network is called, or what :func:`ulam.tune` found; one that takes gradients inside needs
            ``NetworkOptions(gradients=True)``. ladder: smaller batches for the last chains, :class:`ulam.Ladder`.
        chain_kernel: whole chains in one kernel, :class:`Engine`. progress: a bar if stderr is a terminal.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message, before anything runs.
        RuntimeError: an argument requires grad while gradients are recorded: none flows through samples.
    """
    asked = tuple(locals().values())
    switch(progress, "progress")
    choice(chain_kernel, "chain_kernel", CHOICES)
    if chain_kernel != "off" and (last := call_again(*asked)) is not None:
        return _walked(*last, denoiser, resolve_device(device), backend, chain_kernel, progress)
    blends, sizes = len(blend) if isinstance(blend, Sequence) else 0, check_shape(shape)
    given = _Given(denoiser, sizes, slots, device, backend, dtype, chains, options, ladder, blends, chain_kernel, asked)
    engine = None if chain_kernel != "off" and given.walk() else given.engine()
    job = job_of(
        denoiser, sizes, sampler, chains, seed, cond, guidance, uncond, x_init, noise, known, mask,
        first_row, guidance_interval, guidance_rescale,
        guidance_rule=guidance_rule, guidance_schedule=guidance_schedule, blend=blend, branches=blends,
    )  # fmt: skip
    if engine is None and (found := given.walked(job, progress)) is not None:
        return found
    return _collected(engine or given.engine(), job, dtype, progress)


def default_slots_for(
    chains: int | range | Sequence[int] | torch.Tensor, options: NetworkOptions | Tuned | None
) -> int:
    """As tuned, or one for each chain up to the default."""
    return options.slots if isinstance(options, Tuned) else min(max(len(chain_ids(chains)), 1), DEFAULT_SLOTS)


class _Given(NamedTuple):
    """The arguments of an engine."""

    denoiser: Denoiser
    shape: tuple[int, ...]
    slots: int | None
    device: torch.device | str
    backend: str | None
    dtype: torch.dtype
    chains: int | range | Sequence[int] | torch.Tensor
    options: NetworkOptions | Tuned | None
    ladder: Ladder | None
    branches: int
    chain_kernel: str
    arguments: tuple[Any, ...]  # all of `sample`, in its order

    def engine(self) -> Engine:
        slots = default_slots_for(self.chains, self.options) if self.slots is None else self.slots
        return Engine(
            self.denoiser, self.shape, slots, self.device, self.backend, self.dtype, options=self.options,
            ladder=self.ladder, branches=self.branches, chain_kernel=self.chain_kernel,
        )  # fmt: skip

    def walk(self) -> bool:
        """Whether nothing but the job and the network is against whole chains in one kernel, without an engine.

        Raises TypeError or ValueError for an invalid argument, named in the message.
        """
        network = check_options(self.denoiser, self.dtype, self.options, ladder=self.ladder)
        if self.slots is not None:
            check_slots(self.slots)
        device = resolve_device(self.device)
        backend_name(self.denoiser, device, self.backend, self.dtype)
        uses = {"ladder": self.ladder is not None, "branches": self.branches > 0}
        return not why_not(device, self.dtype, self.backend, network, self.shape, **uses)

    def walked(self, job: Job, progress: bool) -> torch.Tensor | None:
        """The results of a job whose chains need no slots; None where they need them.

        Raises TypeError for a network that does not fit, unless it is then to be called as ever.
        """
        if not walks(job):
            return None
        device = resolve_device(self.device)
        try:
            compiled = read(self.denoiser, self.shape, job)
            out = _walked(compiled, job, self.denoiser, device, self.backend, self.chain_kernel, progress)
        except TypeError:
            if self.chain_kernel != "auto":
                raise
            return None
        if device.type == "cpu":
            keep_call(compiled, job, *self.arguments)
        return out


def _walked(
    compiled: CompiledChain, job: Job, denoiser: Denoiser, device: torch.device, backend: str | None, chain_kernel: str,
    progress: bool,
) -> torch.Tensor:  # fmt: skip
    """The results of chains that need no slots, as :func:`_collected` gives them."""
    with _bar(job) if progress else nullcontext() as bar:
        told = None if bar is None else bar.update
        out, failed = walked(compiled, denoiser, job, device, backend, precision_of(chain_kernel), told)
    _tell(job, failed)
    for place in failed:
        out[place] = float("nan")
    return out


def _collected(engine: Engine, job: Job, dtype: torch.dtype, progress: bool) -> torch.Tensor:
    """The results of an engine's one job, in the order of its chains; NaN, with a warning, where chains failed."""
    engine._queue(job)
    count = len(job.chains)
    out = torch.empty(count, *engine.shape, dtype=dtype, device=engine.report.device)
    failed: dict[int, int] = {}
    with _bar(job, progress) as bar:
        for group in engine._finished(bar.update):
            out[group.chains] = group.states
            failed |= group.failed
            for place in group.failed:
                out[place] = float("nan")
    _tell(job, failed)
    return out


def _bar(job: Job, shown: bool = True) -> tqdm[Any]:
    """Of a job's evaluations, on a terminal."""
    return tqdm(total=len(job.chains) * job.ticks, unit="eval", desc="ulam", disable=None if shown else True)


def _tell(job: Job, failed: dict[int, int]) -> None:
    """Warn of chains that turned NaN or Inf, by their places and the rows where they did."""
    if not failed:
        return
    place, row = next(iter(failed.items()))
    what = f"{len(failed)} of {len(job.chains)} chains turned NaN or Inf (chain {job.ids[place]} at row {row}, ...)"
    warn(f"{what}: they are NaN in the result", RuntimeWarning)
