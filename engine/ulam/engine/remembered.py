"""What trials found, remembered between processes: JSON files by digests of all that a result depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ulam_kernels import __version__

from ..conditioning import Cond
from ..denoiser import Denoiser
from ..files import parse_json, whole

log = logging.getLogger("ulam")


def key_of(
    denoiser: Denoiser,
    shape: tuple[int, ...],
    device: torch.device,
    backend: str | None,
    dtype: torch.dtype,
    cond: Cond,
    **more: Any,
) -> str | None:
    """A digest of network, device, arguments and versions; None for a network whose results cannot be remembered."""
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
        "versions": [__version__, torch.__version__],
        **more,
    }
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


class Remembered:
    """Results by key in ``ulam/NAME`` under ``$XDG_CACHE_HOME`` (default ``~/.cache``).

    valid: whether a value read from the file can be a result. What cannot be read or written is logged, no error.
    """

    def __init__(self, name: str, valid: Callable[[Any], bool]) -> None:
        self.path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ulam" / name
        self._valid = valid

    def read(self) -> dict[str, Any]:
        """All results; none, with a warning, if the file cannot be read or holds something else."""
        try:
            data = parse_json(self.path.stem, self.path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s is not readable and is ignored: %s", self.path, error)
            return {}
        if not isinstance(data, dict) or not all(self._valid(value) for value in data.values()):
            log.warning("%s holds something else than %s by network and is ignored", self.path, self.path.stem)
            return {}
        return data

    def write(self, key: str, value: Any) -> None:
        """Keep a result, by replacing the whole file."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with whole(self.path) as (partial,):
                partial.write_text(json.dumps({**self.read(), key: value}, indent=1))
        except OSError as error:
            log.warning("the best %s cannot be kept in %s: %s", self.path.stem, self.path, error)
