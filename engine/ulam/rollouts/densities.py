"""The density of a trajectory's rows, under the network that sampled it or another, with gradients.

Row k of a program draws x' from N(mean, a_z^2), mean = sum_j A_0j r_j + A_0D D + A_0m m, r the registers that the
network would have left on the way, which :mod:`ulam.rollouts.replay` makes again. What is known of x' = mean + a_z z is
used: with z made again from noise-v1 and x* the fused step's own arithmetic on the new output,

    z' = (x' - mean_new) / a_z = z - (x* - x') / a_z

where x* - x' is exactly 0 for an output of the same bits, and without cancellation for others. Gradients come from the
mean, which is linear in m where D is not clipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ulam_kernels.arguments import described

from ..denoiser import Denoiser
from ..engine.trajectory import Trajectory
from .pairs import Pairs
from .replay import Replay


def log_prob(
    denoiser: Denoiser,
    trajectory: Trajectory,
    rows: slice | Sequence[int] | None = None,
    *,
    pairs: Pairs | None = None,
    batch: int | None = None,
) -> torch.Tensor:
    """log N(x'; mean, a_z^2) of recorded rows, float64, differentiable through the network.

    With the network that sampled, called as the engine called it, it is what ``trajectory.log_prob`` holds, to 1e-6 an
    element. The states are constants. A sampler with history is a chain of all states so far: the mean is that of the
    registers which this network would have left on these states, with gradients through them too. The network is called
    in eval mode, under the caller's autocast, for each evaluation that the pairs need once (twice if guided). NaN from
    the row on at which a chain failed.

    Args:
        rows: of the program, a slice, a sequence, or bool ``[K]``; by default all of ``trajectory.rows`` that add
            noise. The result is ``[n, len(rows)]``.
        pairs: (places, rows) int64 ``[b]`` each, any chains of the trajectory at any rows in any order, a mini-batch;
            the result is then ``[b]``.
        batch: how many states the network is given in a call, the last of which is filled up; by default as many as
            the engine's slots (``trajectory.slots``), or the next multiple of 32 where the pairs are fewer. Libraries
            choose their algorithms by the size of the batch; where that is all they look at, the network that sampled
            has the same bits in ``batch=trajectory.slots``, and ratios begin at 1 exactly.

    Raises:
        TypeError, ValueError: an invalid argument; a row that was not recorded, adds no noise and so has no density, or
            reads outputs from before the trajectory; states that were not recorded; guidance by a rule, rescaled or
            blended; known images, learned variances, noise scaled by norms, a clip by a quantile.
    """
    replay = Replay(denoiser, trajectory, rows, pairs, batch)
    z = replay.noise(replay.registers)
    scales = trajectory.log_scales().to(z.device)[replay.at]
    found = -0.5 * z.flatten(1).square().sum(1) + z[0].numel() * scales
    return replay.shaped(torch.where(replay.failed, torch.nan, found))


def kl(
    denoiser: Denoiser,
    reference: Denoiser,
    trajectory: Trajectory,
    rows: slice | Sequence[int] | None = None,
    *,
    pairs: Pairs | None = None,
    batch: int | None = None,
) -> torch.Tensor:
    """KL(row under ``denoiser`` || row under ``reference``) = |mean - mean_ref|^2 / (2 a_z^2), at the recorded states.

    float64, differentiable through both networks (call the reference's parameters with ``requires_grad_(False)``).
    Arguments, shapes and errors: see :func:`log_prob`.
    """
    if not isinstance(reference, Denoiser):
        raise TypeError(f"reference: got {described(reference)}, expected an ulam.Denoiser")
    new, old = (Replay(one, trajectory, rows, pairs, batch) for one in (denoiser, reference))
    apart = new.means(new.registers)[0] - old.means(old.registers)[0]
    a_z = new.column(lambda p: p.A[:, 0, -1])
    found = apart.flatten(1).square().sum(1) / (2 * a_z.square())
    return new.shaped(torch.where(new.failed, torch.nan, found))
