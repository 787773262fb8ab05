"""Guidance in float64, a chain at a time, from the papers' formulas; and the engine's with a backend of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from ulam.engine import guided_outputs
from ulam.engine.guided_outputs import Chains
from ulam.guidance import APG, CFGZero

Array = npt.NDArray[np.float64]


def cfg(m: Array, u: Array, w: float) -> Array:
    return u + w * (m - u)


def cfg_zero(m: Array, u: Array, w: float) -> Array:
    """Fan 2025: the projection of m on u, then the weighted difference."""
    s = (m * u).sum() / (u * u).sum()
    return s * u + w * (m - s * u)


def apg(m: Array, u: Array, x: Array, kx: float, km: float, w: float, rule: APG, past: Array) -> tuple[Array, Array]:
    """Sadat 2024, algorithm 1, on D = kx x + km m; the guided m and what momentum remembers."""
    D_c, D_u = kx * x + km * m, kx * x + km * u
    d = difference = D_c - D_u + rule.momentum * past
    if rule.norm is not None:
        d = d * min(1.0, rule.norm / np.sqrt((d * d).sum()))
    direction = D_c / np.sqrt((D_c * D_c).sum())
    parallel = (d * direction).sum() * direction
    D = D_c + (w - 1) * (d - parallel + rule.eta * parallel)
    return (D - kx * x) / km, difference


def rescale(m: Array, u: Array, w: float, phi: float) -> Array:
    """Lin 2024, section 3.4."""
    g = cfg(m, u, w)
    return phi * g * m.std() / g.std() + (1 - phi) * g


RULES = (None, APG(), APG(eta=0.5, norm=2.0, momentum=-0.5), CFGZero(), None, APG(momentum=0.3), None)
PHI = (0.0, 0.0, 0.0, 0.0, 0.7, 0.0, 0.0)
WEIGHTS = (3.0, 7.5, 4.0, 2.5, 5.0, 1.0, 1.0)


def operands(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """m, u, x and what is remembered, of a chain for each of the rules."""
    draw = torch.Generator().manual_seed(len(shape))
    m, u, x, past = (torch.randn(len(RULES), *shape, generator=draw) for _ in range(4))
    return m, u + m / 2, x, past


def chains() -> Chains:
    numbers = torch.tensor([guided_outputs.numbers_of(rule) for rule in RULES]).T
    kx, km = torch.linspace(0.5, 1.5, len(RULES)), torch.linspace(-0.9, -0.2, len(RULES))
    return Chains(torch.tensor(WEIGHTS), *numbers, torch.tensor(PHI), kx, km)


def expected(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The outputs and the memory of all chains of :func:`operands` in float64; chains without a rule as they are."""
    m, u, x, past = (tensor.double().numpy() for tensor in operands(shape))
    outputs, memory, c = m.copy(), past.copy(), chains()
    for b, (rule, w, phi) in enumerate(zip(RULES, WEIGHTS, PHI, strict=True)):
        if isinstance(rule, APG) and w != 1:
            outputs[b], memory[b] = apg(m[b], u[b], x[b], float(c.kx[b]), float(c.km[b]), w, rule, past[b])
        elif isinstance(rule, CFGZero):
            outputs[b] = cfg_zero(m[b], u[b], w)
        elif phi:
            outputs[b] = rescale(m[b], u[b], w, phi)
    return outputs, memory


@contextmanager
def backend_of(module: Any) -> Iterator[None]:
    """Sums and affine maps of the engine's guidance by a backend's own functions, whatever the device."""

    def moments(x: torch.Tensor, y: torch.Tensor, backend: str | None = None) -> torch.Tensor:
        out = torch.full((len(x), 5), float("nan"), dtype=torch.float64)
        module.moments(x, y, out)
        return out

    def affine(
        x: torch.Tensor, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor,
        backend: str | None = None,
    ) -> torch.Tensor:  # fmt: skip
        module.affine(x.contiguous(), m.contiguous(), a, b, out)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guided_outputs, "ulam_kernels", SimpleNamespace(moments=moments, affine=affine))
        yield


def guided(shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the engine makes of :func:`operands`: the outputs and the memory."""
    m, u, x, past = operands(shape)
    own = guided_outputs.rescaled(m, u, chains(), None)
    return guided_outputs.ruled(own, u, x, past, chains(), None), past


def check(shape: tuple[int, ...]) -> torch.Tensor:
    """Hold :func:`guided` against the formulas, and return it."""
    outputs, memory = guided(shape)
    for found, wanted in zip((outputs, memory), expected(shape), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=2e-5, atol=2e-5)
    m, *_ = operands(shape)
    plain = [b for b, rule in enumerate(RULES) if (rule is None and not PHI[b]) or WEIGHTS[b] == 1]
    assert plain and torch.equal(outputs[plain], m[plain])
    return torch.cat([outputs, memory])
