"""`ulam.Policy`: a trained network called in a control loop, observations in and actions out."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ulam_kernels.arguments import choice, described, whole
from ulam_kernels.tracing import not_recorded

from ..arguments import check_shape, resolve_device
from ..chain_kernel.compiled import compiled_once
from ..conditioning import Cond
from ..denoiser import Denoiser, Sampler
from ..gradients import check_no_gradient
from ..programs.program import Program
from .arguments import backend_name, check_options
from .network import NetworkOptions
from .submission import job_of
from .walked_slots import PRECISIONS, differences, why_not
from .walker import Walker, walks

MOST_CALLS = 1 << 40


class Policy:
    """Samples the same number of chains again and again, whole chains in one kernel, in memory that is used again.

    Call k gives chains k n, ..., k n + n - 1 of the seed, with the bits of ``ulam.sample(denoiser, sampler, shape,
    range(k * n, (k + 1) * n), seed, cond=cond, chain_kernel="on")``. Several threads take turns; a policy in each is
    faster.

    Args:
        denoiser: float32, a network that :func:`ulam.chain_kernel.compile` reads, on the policy's device.
        sampler: one of :mod:`ulam.samplers` whose rows all evaluate the network, or a compiled program; the rest of
            one, ``program[k:]``, for warm starts.
        shape: of one chain's actions. chains: n, the environments. seed: of the noise.
        cond: an example of the observations, ``[n, ...]`` by name, or :func:`ulam.shared`.
        guidance, uncond: weights of classifier-free guidance and the arguments of its other branch, as
            :func:`ulam.sample` has them.
        mask: bool ``[*shape]`` or ``[n, *shape]``: elements that are known, as the first state of a plan is, and are
            written back after every row [Janner 2022]; each call then takes ``known``.
        precision: of the network's matrices, "float32", "bf16", "bf16_dot" or "tf32x3", see
            :class:`ulam_kernels.networks.Network`.
        device: where the chains are walked and the actions are, "cpu" or "cuda"; observations may be anywhere.
        backend: "cpu", "triton" or "reference".

    Attributes:
        calls: how many there were, k of the next one; may be set, to repeat a call or to begin anew.

    Raises:
        TypeError: a network that does not fit, named with its line; :class:`ulam.Engine` samples from any.
        ValueError: an invalid argument, or a sampler with rows that need more than the network and a step.
    """

    @not_recorded
    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler | Program,
        shape: Sequence[int],
        chains: int = 1,
        seed: int = 0,
        *,
        cond: Cond | None = None,
        guidance: float | Sequence[float] | torch.Tensor | None = None,
        uncond: Cond | None = None,
        mask: torch.Tensor | None = None,
        precision: str = "float32",
        device: torch.device | str = "cpu",
        backend: str | None = None,
    ) -> None:
        options = check_options(denoiser, torch.float32, NetworkOptions())
        self.shape, self._chains = check_shape(shape), whole(chains, "chains", 1, MOST_CALLS)
        where = resolve_device(device)
        backend_name(denoiser, where, backend, torch.float32)
        if against := why_not(where, torch.float32, backend, options, self.shape):
            raise ValueError(f"{against}, or an ulam.Engine")
        choice(precision, "precision", PRECISIONS)
        if mask is not None:
            check_mask(mask, self._chains, self.shape)
        job = job_of(denoiser, self.shape, sampler, self._chains, seed, cond, guidance, uncond, None, None, None, None,
                     0, None, 0.0)  # fmt: skip
        if not walks(job):
            more = ", ".join(trait.replace("_", " ") for trait in job.traits)
            raise ValueError(f"sampler: got {sampler!r} ({more}), expected rows of an evaluation and a step each")
        if different := differences(job):
            raise TypeError(different)
        self._seed, self._lock, self.calls = job.seed, threading.RLock(), 0
        self._compiled = compiled_once(denoiser, self.shape, job.cond)
        self._walker = Walker(self._compiled, job.program, self.shape, self._chains, guided=job.weights is not None,
                              times=denoiser.time_dtype, device=where, backend=backend, precision=precision,
                              mask=None if mask is None else mask.to(where, copy=True))  # fmt: skip
        self._walker.condition(job.cond)
        self._guided = job.guidance is not None
        if job.guidance is not None:
            self._walker.condition(job.uncond, 1)
            self._walker.guide(job.guidance)
        self._ids = np.arange(self._chains)
        self._unknown = mask is not None  # what the mask keeps has not been said yet
        self._example = "{" + ", ".join(f"{name!r}: ..." for name in job.cond) + "}"

    @not_recorded
    def __call__(
        self,
        cond: Cond | None = None,
        *,
        uncond: Cond | None = None,
        x_init: torch.Tensor | None = None,
        known: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The actions ``[n, *shape]`` for these observations, in memory that the next call writes over.

        Args:
            cond, uncond: as at construction; None keeps those of the last call.
            x_init: ``[n, *shape]``, first states in place of noise, at the level of the program's first row.
            known: ``[n, *shape]``, of which the elements of ``mask`` are kept; None keeps those of the last call.

        Raises:
            TypeError, ValueError: an invalid argument.
            RuntimeError: a chain turned NaN or Inf; an argument requires grad while gradients are recorded.
        """
        check_no_gradient("a policy", cond, uncond=uncond, x_init=x_init, known=known)
        if uncond is not None and not self._guided:
            raise ValueError("uncond: got one in a policy without guidance, expected None")
        if known is not None and self._walker.known is None:
            raise ValueError("known: got a tensor in a policy without a mask, expected None, or Policy(mask=...)")
        for name, given in (("x_init", x_init), ("known", known)):
            if given is not None:
                check_states(name, given, (self._chains, *self.shape))
        for name, seen in (("cond", cond), ("uncond", uncond)):
            if seen is not None and not isinstance(seen, Mapping):
                raise TypeError(f"{name}: got {described(seen)}, expected tensors by name, such as {self._example}")
        with self._lock:
            walker = self._walker
            if self._unknown and known is None:
                wanted = f"a float tensor {[self._chains, *self.shape]}"
                raise ValueError(f"known: got None in the first call of a policy with a mask, expected {wanted}")
            self._compiled.refresh()
            walker.follow()  # also where a sample has read the new weights before
            number = whole(self.calls, "calls", 0, MOST_CALLS)
            told = [(branch, seen) for branch, seen in ((0, cond), (1, uncond)) if seen is not None]
            heard = [(branch, walker.heard(dict(seen), branch)) for branch, seen in told]
            for branch, vectors in heard:  # nothing was written before all was checked
                walker.tell(branch, vectors)
            if known is not None and walker.known is not None:
                walker.known.copy_(known)
                self._unknown = False
            walker.begin(self._ids + number * self._chains, self._seed, 0, x_init)
            out = walker.run()
            self.calls = number + 1
            failed = walker.failed()
            if failed or not walker.finite():
                where = "".join(f" in chain {place} at row {row}" for place, row in list(failed.items())[:1])
                raise RuntimeError(f"actions: got NaN or Inf{where}, expected finite numbers")
            return out


def check_states(name: str, given: object, expected: tuple[int, ...]) -> None:
    """Raises ValueError unless it is a float tensor of this shape."""
    if not isinstance(given, torch.Tensor) or not given.is_floating_point() or tuple(given.shape) != expected:
        raise ValueError(f"{name}: got {described(given)}, expected a float tensor {list(expected)}")


def check_mask(mask: object, chains: int, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless it says of each element, or of each chain's, whether it is known."""
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.shape not in (shape, (chains, *shape)):
        raise ValueError(f"mask: got {described(mask)}, expected a bool tensor {list(shape)} or {[chains, *shape]}")
