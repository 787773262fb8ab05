"""`slots="auto"`: the number of slots at which a network is fastest, found by short trials and cached.

More slots lower the cost per chain until the device is saturated; beyond that they only cost memory and latency. That
turning point is the knee.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ulam_kernels import __version__

from ..conditioning import Cond, Shared
from ..denoiser import Denoiser
from ..files import parse_json, whole
from ..samplers.ddim import DDIM
from .errors import NetworkError
from .network import NetworkOptions

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
    key = _key(denoiser, shape, device, backend, dtype, given, cond or {})
    if key is not None and (known := _read().get(key)) is not None:
        return known
    rates: dict[int, float] = {}
    slots, idle = 1, 0
    while slots <= MOST and idle < 2:
        rate = _rate(engine, denoiser, shape, device, backend, dtype, given, cond or {}, slots)
        log.info("slots=%d: %.1f evaluations/s", slots, rate)
        idle = idle + 1 if rate < WORTH * max(rates.values(), default=0.0) else 0
        rates[slots] = rate
        if rate == 0 or slots / rate > SLOWEST or not _has_room(device):
            break
        slots *= 2
    best = min(count for count, rate in rates.items() if WORTH * rate >= max(rates.values()))
    if key is not None:
        _write(key, best)
    return best


def _rate(
    engine: Callable[..., Any],
    denoiser: Denoiser,
    shape: tuple[int, ...],
    device: torch.device,
    backend: str | None,
    dtype: torch.dtype,
    options: NetworkOptions,
    cond: Cond,
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


# --------------------------------------------------------------------------------------------------------- the cache


def cache_file() -> Path:
    """The file that holds the cached results."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ulam" / "slots.json"


def _key(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    device: torch.device,
    backend: str | None,
    dtype: torch.dtype,
    options: NetworkOptions,
    cond: Cond,
) -> str | None:
    """A digest of all that the result depends on; None for a network whose result cannot be cached."""
    net = denoiser.net
    if not isinstance(net, torch.nn.Module):
        return None
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu {torch.get_num_threads()}"
    facts: Mapping[str, Any] = {
        "network": f"{type(net).__module__}.{type(net).__qualname__}",
        "parameters": [(name, list(p.shape), str(p.dtype)) for name, p in net.named_parameters()],
        "arguments": [(name, type(value).__name__) for name, value in sorted(cond.items())],
        "shape": list(shape),
        "device": where,
        "backend": backend or os.environ.get("ULAM_BACKEND"),
        "dtype": str(dtype),
        "options": repr(options),
        "versions": [__version__, torch.__version__],
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read() -> dict[str, int]:
    """All cached results; none, with a warning, if the file cannot be read or holds something else."""
    path = cache_file()
    try:
        data = parse_json("slots", path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is not readable and is ignored: %s", path, error)
        return {}
    if not isinstance(data, dict) or not all(type(n) is int and 1 <= n <= MOST for n in data.values()):
        log.warning("%s holds something else than slots by network and is ignored", path)
        return {}
    return data


def _write(key: str, slots: int) -> None:
    """Cache a result by replacing the whole file. If it cannot be written, a warning is logged."""
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as (partial,):
            partial.write_text(json.dumps({**_read(), key: slots}, indent=1))
    except OSError as error:
        log.warning("the best number of slots cannot be kept in %s: %s", path, error)
