"""`ulam.tune`: the fastest way to run a network that is accurate enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm

from ulam_kernels.arguments import described, positive, real

from ..arguments import check_shape, checked_seed, resolve_device
from ..conditioning import Cond, Shared, as_tensor
from ..denoiser import Denoiser, Sampler
from ..engine.arguments import backend_name, check_options, check_slots, default_slots
from ..engine.network import NetworkOptions
from ..engine.tuned import Tuned
from ..programs.program import Program
from ..samplers.ddim import DDIM
from .candidates import EXACT, FP32
from .kept import Kept
from .search import Search
from .trial import TICKS, Setting

BUDGET = 60.0  # seconds


def tune(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    sampler: Sampler | Program | None = None,
    slots: int | Sequence[int] | None = None,
    accuracy: str | float = FP32,
    cond: Cond | None = None,
    guidance: float | None = None,
    uncond: Cond | None = None,
    device: torch.device | str = "cpu",
    backend: str | None = None,
    dtype: torch.dtype = torch.float32,
    options: NetworkOptions | Tuned | None = None,
    doubled: bool = True,
    seed: int = 0,
    budget: float = BUDGET,
    cache: bool = True,
    progress: bool = True,
) -> Tuned:
    """Find the fastest way to run a network, among those that are accurate enough: eager, compiled (also with frozen
    weights), channels-last, under autocast or with weights of 16 bits, both branches of guidance in one batch.

    Each candidate runs in an engine: its ticks are timed by turns with eager's, its outputs compared on states of an
    eager trajectory, its samples compared with eager's of the same noise. What does not lead eager by 2% in the
    median, and in three rounds of four, is not taken. Two branches in one batch are taken only where their bits are
    those of two batches, so that a chain's bits never depend on its neighbours.

    Args:
        denoiser, shape, device, backend, dtype: of the :class:`ulam.Engine` to be made. sampler: DDIM(50) by default.
            Where its run would take more than a twentieth of the budget, samples are compared after fewer of its steps.
        slots: chains in a batch (default 256), or several numbers, of which the fastest is taken.
        accuracy: "exact": the bits of eager in all that is compared. "fp32": outputs at most three times as far from
            those of float64 as eager's are. A number: samples differ from eager's by at most this fraction of their
            range, root mean square.
        cond: the network's conditioning by name, for any number of chains ``[n, ...]``, used in turn, or shared.
            guidance, uncond: as of :func:`ulam.sample`.
        options: what holds for all candidates, such as ``NetworkOptions(gradients=True)``. doubled: try both branches
            in one batch, which :class:`ulam.bulk.Plan` does not take.
        seed: of the noise. budget: seconds; a candidate that is likely to need more than is left is not begun.
        cache: keep what was found for this network (its weights too), device and versions, and look it up.
        progress: show a bar if stderr is a terminal.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message; a network that does not run eagerly, or for
            "fp32" not in float64.
    """
    given = check_options(denoiser, dtype, options, cache=cache, progress=progress, doubled=doubled)
    counts = _counts(slots, options)
    accuracy, limit = _accuracy(accuracy), positive(budget, "budget")
    where = resolve_device(device)
    if guidance is not None:
        guidance = real(guidance, "guidance")
    backend_name(denoiser, where, backend, dtype)
    chosen = DDIM(steps=50) if sampler is None else sampler
    program = denoiser.program(chosen)
    job = {"cond": _on(cond, where), "guidance": guidance, "uncond": _on(uncond, where)}
    timed = program[: int(program.evaluating[min(TICKS, len(program.evaluating)) - 1]) + 1]
    setting = Setting(
        denoiser, check_shape(shape), where, backend, dtype, program, timed, min(counts), checked_seed(seed), job
    )
    kept = Kept(setting, counts, accuracy, given, doubled) if cache else None
    if kept is not None and (found := kept.recall()) is not None:
        return found
    with tqdm(desc="ulam tune", unit="way", disable=None if progress else True) as bar:
        tuned = Search(setting, chosen, accuracy, given, doubled, limit, bar).run(counts)
    if kept is not None:
        kept.keep(tuned)
    return tuned


def _counts(slots: int | Sequence[int] | None, options: NetworkOptions | Tuned | None) -> list[int]:
    if slots is None:
        return [default_slots(options)]
    if isinstance(slots, Sequence) and not isinstance(slots, str) and slots:
        return list(dict.fromkeys(check_slots(count) for count in slots))
    return [check_slots(slots)]


def _accuracy(accuracy: object) -> str | float:
    if isinstance(accuracy, str) and accuracy in (EXACT, FP32):
        return accuracy
    if isinstance(accuracy, float) and 0 < accuracy < 1:
        return accuracy
    raise ValueError(f"accuracy: got {described(accuracy)}, expected 'exact', 'fp32' or a number between 0 and 1")


def _on(cond: Cond | None, device: torch.device) -> Cond | None:
    """Conditioning on the device, at least a chain of each."""
    if cond is None:
        return None
    if not isinstance(cond, Mapping):
        raise TypeError(f"cond: got {described(cond)}, expected tensors by name, or None")
    found = {}
    for name, given in cond.items():
        value = given.tensor if isinstance(given, Shared) else as_tensor("cond", given)
        if not isinstance(value, torch.Tensor) or not (isinstance(given, Shared) or (value.dim() and len(value))):
            raise TypeError(f"cond: got {described(given)} for {name}, expected [n, ...] of n chains, or shared")
        found[name] = given if isinstance(given, Shared) else value.to(device)
    return found
