"""How rows clip the x_0 estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from ulam_kernels.arguments import as_float, described, is_real


@dataclass(frozen=True)
class DynamicThreshold:
    """clip=DynamicThreshold(): D <- clip(D, -s, s) / s with s the `quantile` of |D| over a chain, in [1, cap].

    [Imagen, Saharia 2022, sec. 2.3]. cap=1 is the static clip to [-1, 1]; diffusers calls it sample_max_value. Raises
    ValueError for an invalid argument.
    """

    quantile: float = 0.995
    cap: float = math.inf

    def __post_init__(self) -> None:
        for name, value in (("quantile", self.quantile), ("cap", self.cap)):
            if not is_real(value):
                raise ValueError(f"{name}: got {described(value)}, expected a number")
        if not 0 < as_float(self.quantile) <= 1:
            raise ValueError(f"quantile: got {described(self.quantile)}, expected a number in (0, 1]")
        if not as_float(self.cap) >= 1:
            raise ValueError(f"cap: got {described(self.cap)}, expected a number of at least 1")


Clip: TypeAlias = tuple[float, float] | DynamicThreshold | None
