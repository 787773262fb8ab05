"""An engine's report of its work."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch


@dataclass
class Report:
    """What an engine has done so far. Seconds are the host's; on a GPU those of the parts measure launches, not work.

    evaluations: of the network, summed over chains, without idle slots. seconds: inside and between ticks, of which
    network_seconds in the network, step_seconds in the fused operations. failed: chains that turned NaN or Inf.
    rows: that the network saw at ticks, those of idle slots among them.
    chain_kernel: "on" where whole chains are walked in one kernel, else "off", or why the network is called instead.
    batch: chains per network call, below ``slots`` after it ran out of memory. ladder: what was found of each smaller
    batch that an :class:`ulam.Ladder` allows. captures: CUDA graphs of ticks that
    were captured, in capture_seconds. energy_joules: of the whole device, since the engine was made; None without NVML.
    """

    backend: str
    device: str
    slots: int
    batch: int = 0
    chains: int = 0
    failed: int = 0
    cancelled: int = 0
    evaluations: int = 0
    rows: int = 0
    ticks: int = 0
    seconds: float = 0.0
    network_seconds: float = 0.0
    step_seconds: float = 0.0
    captures: int = 0
    capture_seconds: float = 0.0
    network: str = "eager"
    chain_kernel: str = "off"
    ladder: tuple[str, ...] = ()
    fallbacks: tuple[str, ...] = ()
    _energy: _Energy | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.batch = self.batch or self.slots
        self._energy = _Energy.of(torch.device(self.device))

    @property
    def samples_per_second(self) -> float:
        """Finished chains per second."""
        return self.chains / self.seconds if self.seconds else 0.0

    @property
    def evaluations_per_second(self) -> float:
        """Evaluations of the network, summed over chains, per second."""
        return self.evaluations / self.seconds if self.seconds else 0.0

    @property
    def occupancy(self) -> float:
        """The fraction of the rows that the network saw which held a chain."""
        return self.evaluations / self.rows if self.rows else 0.0

    @property
    def host_seconds(self) -> float:
        """Seconds of scheduling and bookkeeping: neither network nor fused operations."""
        return self.seconds - self.network_seconds - self.step_seconds

    @property
    def peak_memory_bytes(self) -> int | None:
        """The most memory that torch has allocated on the GPU; None on the CPU."""
        device = torch.device(self.device)
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None

    @property
    def energy_joules(self) -> float | None:
        return self._energy.joules if self._energy is not None else None

    @property
    def joules_per_sample(self) -> float | None:
        """None without NVML's energy counter or before the first chain has ended."""
        joules = self.energy_joules
        return joules / self.chains if joules is not None and self.chains else None

    def add_fallback(self, reason: str) -> None:
        """Note, once, why something slower runs."""
        if reason not in self.fallbacks:
            self.fallbacks += (reason,)

    def add_rung(self, note: str) -> None:
        """Note what was found of a smaller batch: ``16 of 64 slots: the same bits``."""
        if note not in self.ladder:
            self.ladder += (note,)

    def add_capture(self, seconds: float) -> None:
        """Count a CUDA graph and the seconds that its capture took."""
        self.captures += 1
        self.capture_seconds += seconds

    def set_delivered(self, chains: int, failed: int) -> None:
        """Count so many chains as delivered by now, and so many among them as failed; the same again if repeated."""
        self.chains, self.failed = chains, failed

    def add_cancelled(self, chains: int) -> None:
        """Count chains that were dropped before they were delivered."""
        self.cancelled += chains

    def shrink(self, batch: int, reason: str) -> None:
        """Note that the network sees ``batch`` chains per call from now on, and why."""
        self.batch = batch
        self.add_fallback(f"the network ran out of memory ({reason}): it sees {batch} chains a call")

    def as_dict(self) -> dict[str, Any]:
        """All fields and derived figures, for JSON."""
        names = (
            "samples_per_second",
            "evaluations_per_second",
            "occupancy",
            "host_seconds",
            "peak_memory_bytes",
            "energy_joules",
            "joules_per_sample",
        )
        plain = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        return {**plain, **{name: getattr(self, name) for name in names}}


class _Energy:
    """NVML's energy counter of one GPU, from the time it is made."""

    def __init__(self, handle: Any, nvml: Any) -> None:
        self._handle, self._nvml = handle, nvml
        self._begin = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    @classmethod
    def of(cls, device: torch.device) -> _Energy | None:
        if device.type != "cuda":
            return None
        try:
            import pynvml

            pynvml.nvmlInit()
            name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            return cls(pynvml.nvmlDeviceGetHandleByUUID(name), pynvml)
        except Exception:  # no driver, or no counter on this GPU: the report says None
            return None

    @property
    def joules(self) -> float:
        millijoules = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - self._begin
        return float(millijoules) / 1000
