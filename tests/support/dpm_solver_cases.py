"""The schedules, orders and variants in which the DPM-Solvers are tested."""

from __future__ import annotations

from sampler_cases import VP
from ulam import schedules
from ulam.schedules import Schedule

ZERO_SNR = schedules.zero_terminal_snr(VP["linear"])
VE = schedules.ve(0.01, 50)
SCHEDULES: dict[str, Schedule] = {"cosine": VP["cosine"], "ve": VE, "flow": schedules.flow()}
ORDERS = [(order, variant) for order in (1, 2, 3) for variant in ("midpoint", "heun") if order > 1 or variant == "heun"]
