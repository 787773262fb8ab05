"""The forward process: x_t = alpha_t x_0 + sigma_t z and a linear target, with noise-v1."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

import ulam_kernels
from ulam_kernels import Table
from ulam_kernels.arguments import described, real
from ulam_kernels.autograd import forward_mode, recorded
from ulam_kernels.dispatch import select
from ulam_kernels.examples import quick_examples
from ulam_kernels.reprs import short_repr
from ulam_kernels.table import C_NEXT, HI, LO, MATRIX, READS_Z, width
from ulam_kernels.tracing import eager, plain_tensors, readable, transforming
from ulam_kernels.validation import check_real, ready

from ..arguments import Time, check_plain, per_chain, seed_int64, training_step
from ..noise import RANK_BITS, TRAINING, example_ids, for_examples, rank_here, training_keys
from ..programs.predictions import check_predicts
from ..schedules import Schedule, VariancePreserving, before, check_schedule, posterior
from ..schedules.tensors import Levels

FLAGS = 0b11 | READS_Z  # both registers are written: r0 <- a x + b z and r1 <- c x + d z


@dataclass(eq=False)
class Noised:
    """A training batch: ``x_t`` and ``target`` like x_0, ``times`` [B] as they were given.

    target is what a network with this prediction should return, a combination of x_0 and z.
    """

    x_t: torch.Tensor
    target: torch.Tensor
    times: torch.Tensor
    _levels: Levels | Callable[[], Levels]

    __repr__ = short_repr

    @property
    def t(self) -> torch.Tensor:
        """What the network is told, [B] float32."""
        return self.times.to(self.x_t.device, torch.float32)

    @property
    def levels(self) -> Levels:
        """(alpha, sigma) of x_t = alpha x_0 + sigma z, [B] float64 each."""
        if callable(self._levels):
            self._levels = self._levels()
        return self._levels

    @property
    def alpha(self) -> torch.Tensor:
        """alpha_t, [B] float64."""
        return self.levels[0]

    @property
    def sigma(self) -> torch.Tensor:
        """sigma_t, [B] float64."""
        return self.levels[1]

    @property
    def snr(self) -> torch.Tensor:
        """alpha^2 / sigma^2, [B] float64."""
        return (self.alpha / self.sigma) ** 2


def add_noise(
    x_0: torch.Tensor,
    t: Time,
    schedule: Schedule,
    predicts: str = "eps",
    *,
    seed: int = 0,
    step: int | None = None,
    chains: int | range | Sequence[int] | torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    backend: str | None = None,
) -> Noised:
    """x_t = alpha_t x_0 + sigma_t z and the target of ``predicts``, for x_0 ``[B, *shape]`` and one t a chain.

    z is noise-v1 of (seed, chain, step): a batch can be made again, however the data are batched. Gradients flow to
    x_0, t, ``noise`` and what a learned schedule is made of. It compiles with ``fullgraph=True``, and torch.func
    transforms it.

    Args:
        x_0: float32, bfloat16, float16 (float64: reference backend). t: a number or [B], time as the schedule has it;
            one out of range gives NaN where the host does not read it: on a GPU, compiled, under torch.func.
        predicts: eps, x0, v, score, flow or mean. step: the training step, or the epoch if ``chains`` are indices of
            data.
        chains: ids of the examples, those of :func:`ulam.noise.examples` by default.
        noise: z itself, float32 [B, *shape] (float64 for such data), in place of noise-v1; no step is needed then.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """
    check_schedule(schedule)
    check_predicts(predicts)
    if predicts == "raw":
        raise ValueError("predicts: got 'raw', expected eps, x0, v, score, flow or mean (for EDM use objectives.edm)")
    check_predicts(predicts, schedule)
    return noised(x_0, t, schedule, predicts, seed, step, chains, noise, backend)


def noised(
    x_0: torch.Tensor,
    t: Time,
    schedule: Schedule,
    predicts: str,
    seed: int,
    step: int | None,
    chains: int | range | Sequence[int] | torch.Tensor | None,
    noise: torch.Tensor | None,
    backend: str | None = None,
) -> Noised:
    """:func:`add_noise` of a schedule and a prediction that were checked; the target of "raw" is that of F."""
    if not isinstance(x_0, torch.Tensor) or not x_0.is_floating_point() or x_0.dim() < 2 or not x_0.numel():
        raise ValueError(f"x_0: got {described(x_0)}, expected a float tensor [B, *shape], not empty")
    if noise is None:
        if step is None:
            raise TypeError(
                "step: got None, expected the number of the training step (or noise=): it numbers the noise"
            )
        step = training_step(step)
        if chains is None and (batch := _of_training_steps(x_0, t, schedule, predicts, seed, step, backend)):
            return batch
    check_plain(x_0, "x_0")
    given = tensor_times(t, x_0)
    if predicts == "mean":
        given = whole_times(
            given, "predicts: got 'mean' at t = {}, expected whole training steps: it is of one of them"
        )
    alpha, sigma = (level.to(x_0.device) for level in schedule.levels(given))
    if predicts == "score" and readable(sigma) and bool((sigma == 0).any()):
        raise ValueError("t: got one with sigma 0, expected sigma above 0: the score is undefined without noise")
    if noise is None:
        z = for_examples(x_0, seed=seed, step=step, chains=chains, backend=backend)  # type: ignore[arg-type]
    else:
        z = _checked_noise(noise, x_0)
        if chains is not None:
            example_ids(chains, len(x_0))
    x = x_0.to(z.dtype)
    x_t = _mixed(x, z, alpha, sigma, backend)
    exact = {"eps": z, "x0": x}.get(predicts)
    if exact is None:
        target = _mixed(x, z, *target_coefficients(predicts, alpha, sigma, schedule, given), backend)
    else:
        target = exact.clone()
    return Noised(x_t.to(x_0.dtype), target.to(x_0.dtype), given, (alpha, sigma))


def tensor_times(t: Time, x_0: torch.Tensor, name: str = "t") -> torch.Tensor:
    """t as a tensor ``[B]``: where it lies if it is one, else float64 on the CPU. ``name``: its name in errors."""
    if isinstance(t, np.ndarray):
        if t.dtype.kind not in "iuf":
            raise TypeError(f"{name}: got {t.dtype}, expected integers or floats")
        t = torch.from_numpy(np.array(t, dtype=np.float64))
    if not isinstance(t, torch.Tensor):
        if isinstance(t, (bool, np.bool_)) or not isinstance(t, (int, float, np.number)):
            raise TypeError(f"{name}: got {described(t)}, expected a number or a tensor of one a chain")
        if not torch.compiler.is_compiling():
            t = real(t, name, most=sys.float_info.max)
        return torch.full(x_0.shape[:1], float(t), dtype=torch.float64)
    check_plain(t, name)
    check_real(t, name)
    if t.dim() > 1 or (t.dim() == 1 and t.shape != x_0.shape[:1]):
        raise ValueError(f"{name}: got shape {list(t.shape)}, expected a number or [{len(x_0)}], one a chain")
    return t.expand(x_0.shape[:1])


def whole_times(times: torch.Tensor, message: str) -> torch.Tensor:
    """Training steps ``[B]``; ValueError with the message for a fraction, NaN for it where the host does not read."""
    if not times.is_floating_point():
        return times
    fractional = times.detach() % 1 != 0
    if not readable(times):
        return torch.where(fractional, torch.nan, times)
    if bool(fractional.any()):
        raise ValueError(message.format(f"{float(times.detach()[fractional][0]):g}"))
    return times


def _checked_noise(noise: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
    wide = torch.float64 if x_0.dtype == torch.float64 else torch.float32
    check_plain(noise, "noise")
    if noise.shape != x_0.shape:
        raise ValueError(f"noise: got shape {list(noise.shape)}, expected {list(x_0.shape)} like x_0")
    if noise.dtype != wide or noise.device != x_0.device:
        raise TypeError(f"noise: got {noise.dtype} on {noise.device}, expected {wide} on {x_0.device}")
    return noise


def _mixed(x: torch.Tensor, z: torch.Tensor, a: torch.Tensor, b: torch.Tensor, backend: str | None) -> torch.Tensor:
    """a x + b z, with a and b ``[B]`` rounded once: one fused operation, or plain torch where that has a derivative."""
    a, b = a.to(x.dtype), b.to(x.dtype)
    if transforming() or forward_mode():
        return per_chain(a, x) * x + per_chain(b, x) * z
    return ulam_kernels.affine(x, z, a, b, backend=backend)


def target_coefficients(
    predicts: str, alpha: torch.Tensor, sigma: torch.Tensor, schedule: Schedule, t: torch.Tensor
) -> Levels:
    """The target's coefficients of x_0 and z, float64, at times t whose levels these are."""
    one, zero = torch.ones_like(alpha), torch.zeros_like(alpha)
    if predicts == "raw":  # (x_0 - c_skip x_t) / c_out [Karras 2022, table 1], without its cancellation
        data: float = schedule.sigma_data  # type: ignore[attr-defined]
        root = torch.sqrt(sigma**2 + data**2)
        return sigma / (data * root), -data / root
    if predicts == "score":
        return zero, -1 / sigma
    if predicts == "mean":
        on_x, _, alpha_s = step_back(schedule, t.to(sigma.device))
        return alpha_s, sigma * on_x
    return {"eps": (zero, one), "x0": (one, zero), "v": (-sigma, alpha), "flow": (-one, one)}[predicts]


def step_back(schedule: Schedule, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(on_x, on_D, alpha_s) of whole training steps, as :func:`ulam.programs.predictions.step_back` of their levels."""
    assert isinstance(schedule, VariancePreserving), "the prediction was checked"
    alpha, sigma = schedule.levels(t)
    alpha_s, sigma_s = before(schedule, t)
    on_x, on_D, _ = posterior(alpha, torch.where(t == 0, 1.0, sigma), alpha_s, sigma_s)  # sigma_0 may be 0
    return on_x, on_D, alpha_s


# ---------------------------------------------------------------------------------------- whole training steps, fused


def _of_training_steps(
    x_0: torch.Tensor, t: Time, schedule: Schedule, predicts: str, seed: int, step: int, backend: str | None
) -> Noised | None:
    """The batch by one fused operation that reads the row of its t in a table of all training steps.

    None where another way is needed: for other schedules, t that is no int64 tensor, or what torch differentiates,
    records or compiles.
    """
    if torch.compiler.is_compiling() or not isinstance(schedule, VariancePreserving) or not isinstance(t, torch.Tensor):
        return None
    if t.dtype != torch.int64 or x_0.dtype == torch.float64 or recorded(x_0) or forward_mode() or not eager(x_0, t):
        return None
    table = _table(schedule, predicts, x_0.device)
    state = x_0.new_empty(2, *x_0.shape)
    try:
        if not (
            _by_cpu(state, x_0, t, table, seed, step, backend) or _by_step(state, x_0, t, table, seed, step, backend)
        ):
            return None
    except IndexError:
        schedule.levels(t)  # says which
        raise
    return Noised(state[0], state[1], t, lambda: schedule.levels(t))


def _by_cpu(
    state: torch.Tensor, x_0: torch.Tensor, t: torch.Tensor, table: Table, seed: int, step: int, backend: str | None
) -> bool:
    """Whether the native CPU backend made the batch: small ones have no time for checks and ids in Python."""
    names = seed_int64(seed), rank_here() << RANK_BITS, TRAINING.draw(step)
    return quick_examples()(state, x_0, t, table.coef, table.flags, *names, backend, torch.get_num_threads())


def _by_step(
    state: torch.Tensor, x_0: torch.Tensor, t: torch.Tensor, table: Table, seed: int, step: int, backend: str | None
) -> bool:
    seeds, ids, draws = training_keys(len(x_0), seed, step, x_0.device)
    x_0, coef, flags = x_0.contiguous(), table.coef, table.flags
    reads = t, seeds, ids, draws, None, None, None, x_0, None, None, coef, flags
    if x_0.is_neg() or not ready(state, None, None, *reads):
        return False
    run = select(backend, x_0.device.type, torch.float32).step
    run(state, coef, flags, t, None, None, None, seeds, ids, draws, None, None, None, x_0)
    return True


@lru_cache(maxsize=16)
def _table(schedule: VariancePreserving, predicts: str, device: torch.device) -> Table:
    """A row for every training step."""
    with plain_tensors():
        t = torch.arange(schedule.steps)
        alpha, sigma = schedule.levels(t)
        on = torch.stack([alpha, sigma, *target_coefficients(predicts, alpha, sigma, schedule, t)], 1)
        coef = torch.zeros(len(on), width(2))
        coef[:, LO], coef[:, HI], coef[:, C_NEXT] = -torch.inf, torch.inf, 1.0
        coef[:, MATRIX:].unflatten(1, (2, 5))[..., ::4] = on.view(-1, 2, 2).float()  # type: ignore[no-untyped-call]
        flags = torch.full((len(on),), FLAGS, dtype=torch.int32)
        return Table(coef.to(device), flags.to(device), 2)
