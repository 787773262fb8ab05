"""What GPU figures are measured with: a cold timer, launch costs, CUDA graphs, the energy counter, the machine."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import torch

AHEAD_CYCLES = 1_500_000  # the GPU idles so long (about 0.8 ms) while the host enqueues what is timed
PACKAGES = ("torch", "triton", "numpy", "diffusers", "nvidia-ml-py")


def why_no_gpu() -> str | None:
    """Why nothing can be measured here, or None."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if torch.version.hip is not None:
        return "an NVIDIA GPU is needed, torch is built for ROCm"
    if torch.cuda.get_device_capability() < (8, 0):
        major, minor = torch.cuda.get_device_capability()
        return f"compute capability 8.0 or newer is needed, the current device has {major}.{minor}"
    return None


def slug(device: str) -> str:
    """A device's name as files have it."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


@dataclass(frozen=True)
class Spread:
    """Microseconds a call: median, quartiles and best of ``runs`` runs."""

    median: float
    lower_quartile: float
    upper_quartile: float
    best: float
    runs: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        lower, median, upper = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        return cls(median, lower, upper, min(values), len(values))


class ColdTimer:
    """Microseconds of GPU work that a call enqueues, by CUDA events, when the L2 cache holds nothing of it.

    Before the call a buffer larger than L2 is written, then read: written lines would otherwise be brought back to
    memory while the call runs, at its cost. The GPU is kept busy until the host has enqueued the call, so launch costs
    are not in the figure (:func:`host_cost` has them) unless the call synchronises.
    """

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties().L2_cache_size
        self.bytes = max(4 * cache, 1 << 28)
        self._buffer = torch.empty(self.bytes // 4, device="cuda")
        self._sum = torch.empty((), device="cuda")
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, function: Callable[[], object]) -> float:
        torch.cuda._sleep(AHEAD_CYCLES)
        self._buffer.fill_(1.0)
        torch.sum(self._buffer, 0, out=self._sum)
        self._begin.record()
        function()
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) * 1e3


def interleaved(
    functions: dict[str, Callable[[], object]],
    timer: Callable[[Callable[[], object]], float],
    seconds: float,
    least: int,
) -> dict[str, Spread]:
    """Time every function in turn, A B C A B C ..., for so many seconds and at least so many rounds."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    end, rounds = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or rounds < least:
        for name, function in functions.items():
            times[name].append(timer(function))
        rounds += 1
    return {name: Spread.of(values) for name, values in times.items()}


def host_cost(
    function: Callable[[], object], synchronize: Callable[[], object], calls: int = 30, batches: int = 60
) -> Spread:
    """Microseconds until a call returns, in batches without a wait that are shorter than the launch queue."""
    costs = []
    for _ in range(batches):
        synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        costs.append((time.perf_counter() - begin) / calls * 1e6)
    synchronize()
    return Spread.of(costs)


def gpu_microseconds(function: Callable[[], object]) -> float:
    """Microseconds of GPU work that a call enqueues, by CUDA events, the caches as they are."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e3


def captured(function: Callable[[], object], times: int = 1) -> Callable[[], None]:
    """A CUDA graph of so many calls, as a function that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            function()
    graph.replay()
    torch.cuda.synchronize()

    def replay(kept: Callable[[], object] = function) -> None:  # a graph keeps no tensor alive that it works on
        graph.replay()

    return replay


def energy_per_call(
    function: Callable[[], object],
    read_millijoules: Callable[[], int],
    synchronize: Callable[[], object],
    batch: int,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Millijoules a call and watts, between two ticks of the energy counter at least ``seconds`` apart, under load.

    batch: calls between two reads, about 10 ms of them: the counter of an H100 moves every 20 to 100 ms.

    Raises:
        RuntimeError: the counter did not move for 2 seconds longer than it had to.
    """
    calls = 0

    def run_to_tick(after: float) -> int:
        nonlocal calls
        last = read_millijoules()
        while True:
            for _ in range(batch):
                function()
            synchronize()
            calls += batch
            now, at = read_millijoules(), clock()
            if at >= after and now != last:
                return now
            if at > after + 2.0:
                raise RuntimeError(f"the energy counter stands at {now} mJ and does not move")
            last = now

    first = run_to_tick(clock() + 0.1)
    began, calls = clock(), 0
    used = run_to_tick(began + seconds) - first
    return {"millijoules_per_call": used / calls, "watts": used / 1e3 / (clock() - began), "calls": calls}


class Nvml:
    """NVML's view of torch's current device. ``missing`` says why there is none."""

    def __init__(self) -> None:
        self.missing: str | None = None
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties().uuid}"
            self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except Exception as error:  # no package, no library, or a device that NVML does not name so
            self.missing = f"{type(error).__name__}: {error}"

    def driver(self) -> str:
        return f"unknown ({self.missing})" if self.missing else str(self._nvml.nvmlSystemGetDriverVersion())

    def clocks(self) -> dict[str, Any]:
        """MHz of the multiprocessors and of the memory, now and at most."""
        if self.missing:
            return {"unknown": self.missing}
        kinds = {"sm": self._nvml.NVML_CLOCK_SM, "memory": self._nvml.NVML_CLOCK_MEM}
        ask = {"mhz": self._nvml.nvmlDeviceGetClockInfo, "max_mhz": self._nvml.nvmlDeviceGetMaxClockInfo}
        try:
            return {f"{n}_{what}": get(self._handle, kind) for what, get in ask.items() for n, kind in kinds.items()}
        except self._nvml.NVMLError as error:
            return {"unknown": str(error)}

    def millijoules(self) -> int:
        """The energy used since the driver was loaded.

        Raises:
            RuntimeError: NVML or the device has no such counter.
        """
        if self.missing:
            raise RuntimeError(self.missing)
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except self._nvml.NVMLError as error:
            raise RuntimeError(f"NVML: {error}") from error


def device_facts(nvml: Nvml) -> dict[str, Any]:
    """What the figures are measured on."""
    device = torch.cuda.get_device_properties()
    return {
        "device": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "l2_mib": round(device.L2_cache_size / 2**20, 1),
        "driver": nvml.driver(),
        "clocks": nvml.clocks(),
        "cuda": torch.version.cuda,
        "versions": {package: version(package) for package in PACKAGES},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
