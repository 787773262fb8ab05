"""What tuning found, kept between processes: a JSON file, by network, weights, device, versions and arguments."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import torch

from ..engine.network import DTYPES, SHORT, NetworkOptions
from ..engine.remembered import Remembered, key_of
from ..engine.tuned import Candidate, Tuned
from .trial import Setting


class Kept:
    """The result of one tuning, in ``ulam/tuned.json`` of the cache folder; nothing for what is no torch module."""

    def __init__(
        self, setting: Setting, counts: list[int], accuracy: str | float, given: NetworkOptions, doubled: bool
    ) -> None:
        self._file = Remembered("tuned.json", _is_tuned)
        job = setting.job
        denoiser = setting.denoiser
        self._key = None if callable(denoiser.output) else key_of(
            denoiser, setting.shape, setting.device, setting.backend, setting.dtype, job["cond"] or {},
            weights=[_weights(net) for net in denoiser.nets], program=setting.program.sampler,
            rows=len(setting.program), schedule=repr(denoiser.schedule), predicts=denoiser.predicts,
            output=denoiser.output, slots=counts, accuracy=accuracy, options=repr(given), guidance=job["guidance"],
            seed=setting.seed, doubled=doubled,
        )  # fmt: skip

    def recall(self) -> Tuned | None:
        """What was found before, or None."""
        found = self._file.read().get(self._key) if self._key is not None else None
        return None if found is None else _tuned(found)

    def keep(self, tuned: Tuned) -> None:
        """Keep what was found now."""
        if self._key is not None:
            self._file.write(self._key, asdict(tuned, dict_factory=_plain))


def _weights(net: object) -> str:
    """SHA-256 of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for value in net.state_dict().values() if isinstance(net, torch.nn.Module) else ():
        if isinstance(value, torch.Tensor) and value.numel():
            plain = value.detach().cpu().contiguous()
            digest.update(memoryview(plain.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return digest.hexdigest()


def _plain(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: SHORT[value] if isinstance(value, torch.dtype) else value for name, value in pairs}


def _tuned(found: dict[str, Any]) -> Tuned:
    candidates = [Candidate(**{**one, "options": _options(one["options"])}) for one in found["candidates"]]
    return Tuned(**{**found, "options": _options(found["options"]), "candidates": tuple(candidates)})


def _options(found: dict[str, Any]) -> NetworkOptions:
    dtypes = {name: DTYPES[found[name]] for name in ("autocast", "weights") if found[name] is not None}
    return NetworkOptions(**{**found, **dtypes})


def _is_tuned(found: Any) -> bool:
    try:
        return _tuned(found).chosen is not None
    except (TypeError, ValueError, LookupError, AttributeError, StopIteration):
        return False
