"""Whether a function is weakly differentiable, as Stein's lemma asks: SURE does not hold for one that jumps.

A weakly differentiable D is absolutely continuous on almost every line [Evans & Gariepy 2015, theorem 4.21], so a
difference over a segment is the mean of the derivative along it. For a point drawn uniformly on the segment from
y - h v to y + h v,

    T = v' (D(y + h v) - D(y - h v)) / (2 h) - v' (dD/dy) v at the point,    E T = 0 whatever h,

while a jump adds its size over 2 h to E T: what the derivative misses of the divergence. h is sigma here, so that
segments are as long as the noise: they meet the jumps that matter for SURE.
"""

from __future__ import annotations

import math

import torch

from ulam_kernels.tracing import recorder

from ..arguments import per_chain
from ..evaluation import in_eval_mode, modules_in, without_collectives
from ..noise import SEGMENT, normal_for
from .autograd import Function
from .differences import precision_rules, reduced_precision
from .probes import dot, signs, uniform
from .pullback import Pullback
from .risk import IDENTITY, Linear

SEGMENTS = 1024  # at least, in all
CHANCE = 5.0  # standard errors


def check_weakly_differentiable(
    D: Function,
    y: torch.Tensor,
    sigma: torch.Tensor,
    function: object,
    name: str,
    seed: int,
    operator: Linear = IDENTITY,
) -> None:
    """Raises ValueError where the derivative of D, or of H^+' D for a linear operator H, misses jumps.

    At y ``[B, *shape]`` with noise ``sigma`` [B]. It takes three evaluations and a backward pass for a segment of each
    chain, and as many segments as make :data:`SEGMENTS`. Slopes so steep that none of their points is met count as
    jumps: the estimate misses them too. ``function``, named ``name``: whose modules are in eval mode meanwhile. Raises
    RuntimeError where the call is recorded or compiled: there are no numbers to compare.
    """
    by = "torch.compile" if torch.compiler.is_compiling() else recorder()
    if by is not None:
        raise RuntimeError(f"check: got True under {by}, expected False, or a call outside: numbers are compared")
    modules = modules_in(function)
    devices = [] if y.device.type == "cpu" else [y.device]
    y, sides, found = y.detach(), [], []
    with (
        torch.no_grad(),
        in_eval_mode(modules),
        without_collectives(modules),
        torch.random.fork_rng(devices=devices, device_type=y.device.type),
    ):
        for row in range(math.ceil(SEGMENTS / len(y))):
            difference, slope = _segments(D, y, sigma, seed, row, operator)
            sides.append(difference)
            found.append(slope)
        off = precision_rules(D(y), reduced_precision(y, modules)).off
    by_differences, by_derivative = torch.cat(sides), torch.cat(found)
    missed = by_differences - by_derivative
    stderr = float(missed.std() / len(missed) ** 0.5)
    left, right = float(by_differences.mean()), float(by_derivative.mean())
    if not abs(left - right) <= CHANCE * stderr + off * (abs(left) + abs(right)):
        raise ValueError(
            f"{name}: got {getattr(function, '__name__', type(function).__name__)}, whose divergence per element is "
            f"{left:.4g} by differences over sigma but {right:.4g} by its derivative (+- {stderr:.1g}), expected one "
            "without jumps (SURE needs a weakly differentiable denoiser), or divergence='difference'"
        )


def _segments(
    D: Function, y: torch.Tensor, sigma: torch.Tensor, seed: int, row: int, operator: Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergences per element of one segment a chain, by its ends and by the derivative at a random point, ``[B]``."""
    n = y[0].numel()
    z = normal_for(SEGMENT, (n + 1,), seed=seed, chains=len(y), row=row, device=y.device)
    v = signs(z[:, :n]).view(y.shape).to(y.dtype)
    place = (2 * uniform(z[:, n]) - 1) * sigma
    h, at = (per_chain(length, y).to(y.dtype) for length in (sigma, place))
    products = Pullback(D, y + at * v)
    back = operator.inverse(v).to(products.value.dtype)
    difference = dot(back, D(y + h * v) - D(y - h * v)) / (2 * sigma)
    return difference / n, dot(v, products(back)) / n
