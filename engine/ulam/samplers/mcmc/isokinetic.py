"""Isokinetic dynamics: velocities of length 1 that a score turns, as MCLMC and MAMS need it.

In float64 by elementwise operations in a fixed order, exponentials and logarithms included (`weights`): a chain's bits
depend on no other chain, and are those of csrc/include/ulam/isokinetic.h.
"""

from __future__ import annotations

import torch

from ...arguments import per_chain
from .chain_state import ChainState
from .paths import Path
from .weights import Weights, dot, inverse_root

UNDERFLOW = 1e-280  # squares below it have lost digits in float64


def inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """sum_i a_i b_i of every chain ``[B]``, for a and b ``[B, *shape]``, in the order of `weights.dot`."""
    return dot(a.flatten(1), b.flatten(1))


def unit(v: torch.Tensor) -> torch.Tensor:
    """v / |v|, like v ``[B, *shape]`` float64, as v times 1 / |v|."""
    return per_chain(inverse_root(inner(v, v)), v) * v


def kick(
    u: torch.Tensor, score: torch.Tensor, time: torch.Tensor, weights: Weights | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The exact flow of du/dt = (1 - u u') s / (d - 1) [Steeg & Galstyan 2021; Robnik, De Luca et al. 2022].

    With e = s / |s|, delta = time |s| / (d - 1), w = e u and G = cosh delta + w sinh delta it ends at
    u' = (u + e (sinh delta + w (cosh delta - 1))) / G. The kinetic energy grows by (d - 1) log G, which is minus the
    log of the map's Jacobian on the sphere. Computed by zeta = exp(-delta), p = (1 + w) / 2 and q = (1 - p) zeta^2,
    which do not overflow: G = (p + q) / zeta, and u' lies along (p - q) e + zeta (u - w e).

    u, score: ``[B, *shape]`` float64 of d >= 2 elements. time: ``[B]``. weights: those of the device, where they are
    at hand. Returns u' and the growth ``[B]``.
    """
    d, weights = u[0].numel(), weights or Weights(u.device)
    squares = inner(score, score)
    inverse = inverse_root(torch.where(squares > 0, squares, 1.0))
    e, delta = per_chain(inverse, score) * score, time * (squares * inverse) / (d - 1)
    zeta, fall = weights.decay(-delta)
    p = (0.25 * inner(e + u, e + u)).clamp(0, 1)
    q = (1 - p) * zeta * zeta
    turned = per_chain(p - q, e) * e + per_chain(zeta, u) * (u - per_chain(2 * p - 1, e) * e)
    size = inner(turned, turned)
    still = size < UNDERFLOW  # straight against a score so strong that nothing else is left: u stays
    turned = torch.where(per_chain(still, u), u, per_chain(inverse_root(torch.where(still, 1.0, size)), u) * turned)
    log_g = delta + weights.log(p + q, (1 - p) * (fall * (fall + 2)))
    return turned, (d - 1) * torch.where(still, -delta, log_g)


def isokinetic_step(state: ChainState, at: Path, step: torch.Tensor, beta: torch.Tensor, wanted: bool) -> Path:
    """A kick of step / 2, x += step u, a kick of step / 2; x in place, v float64 of length 1.

    beta: ``[B]`` float64, 1 / T. E / T and the kinetic energy, whose loss is counted, change by O(step^3) in sum.
    """
    u, first = kick(at.v, _whitened(state, at.score, beta), 0.5 * step, state.weights)
    move = per_chain(step, u) * u
    at.x.copy_(at.x.double() + (move if state.scale is None else move * state.scale.double()))
    found, score = state.evaluate(at.x, wanted)
    u, second = kick(u, _whitened(state, score, beta), 0.5 * step, state.weights)
    return Path(at.x, u, score, at.energy if found is None else found, at.lost - (first + second))


def _whitened(state: ChainState, score: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """sqrt(P) s / T in float64."""
    wide = per_chain(beta, score) * score.double()
    return wide if state.scale is None else wide * state.scale.double()


def check_turns(name: str, elements: int) -> None:
    """Raises ValueError for states of one element."""
    if elements < 2:
        raise ValueError(
            f"shape: got states of {elements} element, expected at least 2 for {name}: a velocity of length 1 "
            "does not turn on a line"
        )
