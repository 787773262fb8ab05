"""Guidance beyond the fused step's own, per chain: m = p m_c + q m_u + s x with numbers from sums over the chain.

A chain that asks for none of it has p = 1 and q = s = 0, terms of 0 are not read, so its output keeps its bits.
Everything is float32 or float64; p, q and s are made in float64 of sums in a fixed order and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import ulam_kernels

from ..arguments import per_chain
from ..guidance import APG, CFGZero, Rule

NONE, PROJECTED, ZERO = 0.0, 1.0, 2.0  # kinds of rules, as the slots hold them
ROUNDING = 1e-14  # of a mean square: a variance below it is that of a constant


def numbers_of(rule: Rule | None) -> tuple[float, float, float, float]:
    """(kind, eta, norm, momentum) of a rule."""
    if isinstance(rule, APG):
        return PROJECTED, rule.eta, torch.inf if rule.norm is None else rule.norm, rule.momentum
    return (ZERO if isinstance(rule, CFGZero) else NONE), 1.0, torch.inf, 0.0


def prediction(m: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A network's output for samples of this shape, without the learned variances that may follow it."""
    return m[:, : shape[0]] if shape else m


def weighted(m: torch.Tensor, u: torch.Tensor | None, weight: torch.Tensor) -> torch.Tensor:
    """u + w (m - u) with weights ``[B]``, as the fused step guides: m itself where w = 1, or where there is no u."""
    if u is None:
        return m
    w = per_chain(weight, m)
    return torch.where(w == 1, m, u + w * (m - u))


@dataclass(frozen=True, eq=False)
class Chains:
    """What the rules read of every slot, ``[slots]``: weight w; kind, eta, norm, momentum of :func:`numbers_of`; phi of
    the rescaled form; kx, km, of D = kx x + km m.
    """

    weight: torch.Tensor
    kind: torch.Tensor
    eta: torch.Tensor
    norm: torch.Tensor
    momentum: torch.Tensor
    phi: torch.Tensor
    kx: torch.Tensor
    km: torch.Tensor


def blended(
    m: torch.Tensor, branches: Sequence[tuple[torch.Tensor, torch.Tensor]], backend: str | None
) -> torch.Tensor:
    """m + sum_k b_k (m_k - m), for branches (m_k, b_k), ``[B, ...]`` and ``[B]``."""
    own = torch.ones(len(m), dtype=torch.float64, device=m.device)
    for _, weight in branches:
        own = own - weight.double()
    for other, weight in branches:
        m = _affine(m, other, own, weight.double(), backend)
        own = torch.ones_like(own)
    return m


def rescaled(m: torch.Tensor, u: torch.Tensor, chains: Chains, backend: str | None) -> torch.Tensor:
    """Classifier-free guidance with the conditional output's standard deviation, per chain [Lin 2024, section 3.4].

    With g = u + w (m - u): phi g std(m) / std(g) + (1 - phi) g. Chains with w = 1 or phi = 0 keep m exactly; chains
    whose g is constant have g.
    """
    w, phi, n = chains.weight.double(), chains.phi.double(), m[0].numel()
    sum_m, sum_u, mm, mu, uu = (ulam_kernels.moments(m, u, backend=backend) / n).T
    of_m = mm - sum_m**2
    mean = sum_u + w * (sum_m - sum_u)
    square = w**2 * mm + 2 * w * (1 - w) * mu + (1 - w) ** 2 * uu
    of_g = square - mean**2
    ratio = torch.where(of_g > ROUNDING * square, _root(of_m.clamp(min=0) / of_g), 1.0)
    scale = 1 + phi * (ratio - 1)
    applies = (phi > 0) & (w != 1)
    return _affine(m, u, torch.where(applies, scale * w, 1.0), torch.where(applies, scale * (1 - w), 0.0), backend)


def ruled(
    m: torch.Tensor, u: torch.Tensor, x: torch.Tensor, past: torch.Tensor, chains: Chains, backend: str | None
) -> torch.Tensor:
    """The outputs of chains with a rule, guided; of others, and of those with w = 1, m exactly.

    x: the states before the update. past: d of the evaluation before of chains with momentum, replaced by this one's.
    """
    w = chains.weight.double()
    projects, zero = (chains.kind == PROJECTED) & (w != 1), (chains.kind == ZERO) & (w != 1)
    kx, km, momentum = chains.kx.double(), chains.km.double(), chains.momentum.double()
    one, none = torch.ones_like(w), torch.zeros_like(w)

    # CFG-Zero*
    sums = ulam_kernels.moments(m, u, backend=backend)
    s = torch.where(sums[:, 4] > 0, sums[:, 3] / sums[:, 4], 0.0)
    p, q = torch.where(zero, w, one), torch.where(zero, (1 - w) * s, none)

    # APG: D = a D_c + b d, so that m = (a + b) m_c - b m_u + (a - 1) kx / km x + b momentum / km d'
    carries = torch.where(chains.kind == PROJECTED, momentum, none)
    d = _affine(_affine(m, u, km, -km, backend), past, one, carries, backend)
    estimate = _affine(x, m, kx, km, backend)
    _, _, dd, along, length = ulam_kernels.moments(d, estimate, backend=backend).T
    b = (w - 1) * torch.clamp(chains.norm.double() / _root(dd), max=1.0)
    a = 1 - b * (1 - chains.eta.double()) * torch.where(length > 0, along / length, 0.0)
    known = projects & (km != 0)
    a, b = torch.where(known, a, one), torch.where(known, b, none)
    p, q = torch.where(known, a + b, p), torch.where(known, -b, q)
    divisor = torch.where(known, km, one)
    m = _affine(m, u, p, q, backend)
    m = _affine(m, x, one, (a - 1) * kx / divisor, backend)
    m = _affine(m, past, one, b * carries / divisor, backend)
    kept = projects.double()  # of the others it stays: what it is must not depend on whether the tick was guided
    past.copy_(_affine(d, past, kept, 1 - kept, backend))
    return m


def _root(x: torch.Tensor) -> torch.Tensor:
    """The square root, whose last bits do not depend on where in a tensor it stands."""
    root = x.sqrt()
    return torch.where((x > 0) & (x < torch.inf), (root + x / root) / 2, root)


def _affine(x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, backend: str | None) -> torch.Tensor:
    """a x + b m with numbers of each chain, given in float64, perhaps as a column of a table."""
    wide = torch.promote_types(torch.promote_types(x.dtype, m.dtype), torch.float32)
    out = torch.empty_like(x, dtype=wide, memory_format=torch.contiguous_format)
    a, b = a.to(wide).contiguous(), b.to(wide).contiguous()
    return ulam_kernels.affine(x, m, a, b, out=out, backend=backend)
