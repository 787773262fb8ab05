"""Weights that are known by their logarithms, roots, and sums over a chain's elements, with the same bits everywhere.

Sums, products, quotients and roots of float64, each rounded once: the bits of csrc/include/ulam/weights.h, on any
device.
"""

from __future__ import annotations

import math

import numpy as np
import torch

LEAST = -708.0  # below it exp is taken for 0
ROUNDER = 1.5 * 2.0**52  # added, it rounds to an integer, which then sits in the low bits
LOG2_E = float.fromhex("0x1.71547652b82fep0")
LN2 = float.fromhex("0x1.62e42feep-1"), float.fromhex("0x1.a39ef35793c76p-33")  # the upper 32 bits, and the rest
LANES = 1024  # of a sum over elements
ROOT_HALF = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)


class Weights:
    """exp and log of weights on a device: the coefficients of their series."""

    def __init__(self, device: torch.device) -> None:
        exp, log = [1 / math.factorial(k) for k in range(17)], [1 / (2 * k + 1) for k in range(16)]
        series = torch.tensor([exp[:16], log, exp[1:]], dtype=torch.float64, device=device)
        self._exp, self._log, self._rise = series[..., None].unbind()

    def exp(self, x: torch.Tensor) -> torch.Tensor:
        """exp(x) of x <= 0, ``[B]`` float64, to 3e-16 of its value; 0 below -708. NaN passes.

        x = n ln 2 + r with abs(r) <= ln(2) / 2 [Cody & Waite 1980], and the series of exp(r) up to r^15.
        """
        r, power = _reduced(x)
        return torch.where(x < LEAST, 0.0, _in_pairs(self._exp, r) * power)

    def decay(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(e^x, e^x - 1) of x <= 0, ``[B]`` float64, both to a few units of their last places; 0 and -1 below -708.

        From one series, that of (e^r - 1) / r. NaN passes.
        """
        r, power = _reduced(x)
        rise = power * (r * _in_pairs(self._rise, r))
        return torch.where(x < LEAST, 0.0, power + rise), (power - 1.0) + rise

    def log(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """log(z) of 0 < z <= 1, where y is z - 1 with more digits, ``[B]`` float64.

        z = 2^k f with sqrt(1/2) <= f < sqrt(2), and log f = 2 artanh(s) by its series, s = (f - 1) / (f + 1). NaN
        passes.
        """
        bits = z.view(torch.int64)
        k = (bits - ROOT_HALF) >> 52
        t = torch.where(k == 0, y, (bits - (k << 52)).view(torch.float64) - 1.0)
        s, n = t / (2.0 + t), k.double()
        found = n * LN2[0] + ((2.0 * s) * _in_pairs(self._log, s * s) + n * LN2[1])
        return torch.where(z.isnan(), z, found)

    def log_sum(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """log(e^a + e^b), -inf where both are, ``[B]`` float64.

        a + log(1 + x) with x = e^(b - a) for a >= b, and log(1 + x) = 2 artanh(x / (2 + x)) by its series.
        """
        high, low = torch.maximum(a, b), torch.minimum(a, b)
        x = self.exp(low - high)
        s = x / (2.0 + x)
        return torch.where(high == -math.inf, high, high + (2.0 * s) * _in_pairs(self._log, s * s))


def _reduced(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(r, 2^n) of x <= 0, which is held to at least -708, as n ln 2 + r."""
    clipped = x.clamp(min=LEAST)
    shifted = clipped * LOG2_E + ROUNDER
    n = shifted - ROUNDER
    power = ((shifted.view(torch.int64) << 52) + (1023 << 52)).view(torch.float64)
    return (clipped - n * LN2[0]) - n * LN2[1], power


def inverse_root(x: torch.Tensor) -> torch.Tensor:
    """1 / sqrt(x), float64, root and quotient each rounded once."""
    return x.rsqrt() if x.device.type == "cpu" else 1.0 / x.sqrt()  # on a CPU torch's sqrt, by MKL, is off by a unit


def rounded_root(x: torch.Tensor) -> torch.Tensor:
    """sqrt(x), float64, rounded once, without derivatives."""
    return torch.from_numpy(np.sqrt(x.numpy())) if x.device.type == "cpu" else x.sqrt()


def _in_pairs(series: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """sum_k series_k x^k of 16 terms ``[16, 1]``, in pairs, then pairs of pairs [Estrin 1960]."""
    terms = series[0::2] + series[1::2] * x
    while len(terms) > 1:
        x = x * x
        terms = terms[0::2] + terms[1::2] * x
    return terms[0]


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """sum a b over the last dimension, ``[...]`` float64, in the order of :mod:`ulam_kernels.mcmc.checks`."""
    terms = a.double() * b.double()
    total = terms[..., :LANES].clone()
    for first in range(LANES, terms.shape[-1], LANES):
        part = terms[..., first : first + LANES]
        total[..., : part.shape[-1]] += part
    filled, width = total.shape[-1], 1 << max(total.shape[-1] - 1, 0).bit_length() >> 1
    while width:
        total[..., : filled - width] += total[..., width:filled]
        filled, width = width, width >> 1
    return total[..., 0]
