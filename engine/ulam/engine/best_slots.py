"""`slots="auto"`: the number of slots at which a network is fastest, found by short trials and cached.

More slots lower the cost per chain until the device is saturated; beyond that they only cost memory and latency. That
turning point is the knee.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from ..conditioning import Cond, Shared, check_cond
from ..denoiser import Denoiser
from ..samplers.ddim import DDIM
from .errors import NetworkError
from .network import NetworkOptions
from .remembered import Remembered, key_of

log = logging.getLogger("ulam")
MOST = 1 << 16
WORTH = 1.1  # a doubling must raise the rate by this factor
TICKS = 3  # per timed trial
SLOWEST = 5.0  # seconds per tick, beyond which trials stop
MEMORY = 0.5  # fraction of the device's memory, beyond which trials stop


def best_slots(
    engine: Callable[..., Any],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    backend: str | None = None,
    dtype: torch.dtype = torch.float32,
    options: NetworkOptions | None = None,
    cond: Cond | None = None,
) -> int:
    """The slots at the knee of chains x evaluations per second, among 1, 2, 4, ..., 65,536.

    Each trial runs the engine for three ticks with that many chains. Trials stop after two doublings in a row that gain
    less than 10%, at half of the device's memory, or at ticks longer than five seconds. The result, the fewest slots
    within 10% of the best rate, is cached for networks of this class and parameter shapes, on this device, with these
    arguments, in ``ulam/slots.json`` under ``$XDG_CACHE_HOME`` (default ``~/.cache``); networks that are not a
    ``torch.nn.Module`` are tried every time.

    Args:
        engine: the class of the trial engines, :class:`ulam.Engine` (which imports this module).
        denoiser, shape, device, backend, dtype, options: of the :class:`ulam.Engine` to be made.
        cond: further arguments of the network for one chain, ``[1, ...]``, or shared.

    Raises:
        TypeError: the network needs arguments that ``cond`` lacks.
    """
    given = options or NetworkOptions()
    inputs = check_cond("cond", cond, 1)
    key = key_of(denoiser, shape, device, backend, dtype, inputs, options=repr(given))
    kept = remembered()
    if key is not None and (known := kept.read().get(key)) is not None:
        return int(known)
    rates: dict[int, float] = {}
    slots, idle = 1, 0
    while slots <= MOST and idle < 2:
        rate = _rate(engine, denoiser, shape, device, backend, dtype, given, inputs, slots)
        log.info("slots=%d: %.1f evaluations/s", slots, rate)
        idle = idle + 1 if rate < WORTH * max(rates.values(), default=0.0) else 0
        rates[slots] = rate
        if rate == 0 or slots / rate > SLOWEST or not _has_room(device):
            break
        slots *= 2
    best = min(count for count, rate in rates.items() if WORTH * rate >= max(rates.values()))
    if key is not None:
        kept.write(key, best)
    return best


def _rate(
    engine: Callable[..., Any],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    device: torch.device,
    backend: str | None,
    dtype: torch.dtype,
    options: NetworkOptions,
    cond: dict[str, torch.Tensor | Shared],
    slots: int,
) -> float:
    """Evaluations per second with this many chains, the better of two trials; 0 if they do not fit in memory."""
    per_chain = {
        name: value if isinstance(value, Shared) else value.expand(slots, *value.shape[1:])
        for name, value in cond.items()
    }
    rates = []
    try:
        trial = engine(denoiser, shape, slots, device, backend, dtype, options=options)
        for _ in range(3):  # the first warms up
            trial.submit(DDIM(steps=TICKS), slots, cond=per_chain)
            begin = time.perf_counter()
            trial.run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates.append(slots * TICKS / (time.perf_counter() - begin))
            if slots / rates[0] > SLOWEST:
                return rates[0]
    except torch.OutOfMemoryError:
        return 0.0
    except NetworkError as error:
        if isinstance(error.__cause__, torch.OutOfMemoryError):
            return 0.0
        if isinstance(error.__cause__, TypeError):
            raise TypeError(
                f"slots: got 'auto', whose trials called the network with x, t and cond={sorted(cond)} "
                f"({error.__cause__}), expected what it needs by slots=ulam.Engine.best_slots(..., cond={{...}})"
            ) from error
        raise
    return 0.0 if trial.report.batch < slots else max(rates[1:])


def _has_room(device: torch.device) -> bool:
    """Whether the peak memory so far is below the limit."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) < MEMORY * torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < MEMORY * total


def remembered() -> Remembered:
    """The results of earlier trials."""
    return Remembered("slots.json", lambda slots: type(slots) is int and 1 <= slots <= MOST)
