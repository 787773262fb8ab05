"""Derivatives by central differences."""

from __future__ import annotations

import torch


def differences(function, y, v, h=1e-3):
    """First and second derivatives along v to order 4, from four further states."""
    with torch.no_grad():
        two, one, at, _one, _two = (function(y + k * h * v) for k in (2, 1, 0, -1, -2))
        return (8 * (one - _one) - (two - _two)) / (12 * h), (16 * (one + _one) - (two + _two) - 30 * at) / (12 * h**2)


def close(found, expected, tolerance):
    assert float((found - expected).norm()) <= tolerance * float(expected.norm()) + 1e-9
