"""An energy's network inside one native call, where it fits: energy and score of all chains together."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

import ulam_kernels
import ulam_kernels.dispatch

from ..chain_kernel.compiled import kind_of, remembered
from ..chain_kernel.energies import CompiledEnergy, compile_energy, vectors_of
from ..conditioning import Cond, Shared, check_cond
from ..samplers.mcmc.chain_state import Evaluate, Evaluated

CHOICES = ("auto", "on", "off")
BACKENDS = ("cpu", "reference")
_LOCK = threading.RLock()


class EnergyKernel:
    """What :class:`ulam.Energy` with ``chain_kernel`` "auto" or "on" evaluates, compiled once for each kind of state.

    state: "on" where the last run's energy was evaluated here, else why it was not.
    """

    def __init__(self, fn: Callable[..., Any], required: bool) -> None:
        self._fn, self._required = fn, required
        self._known: dict[object, Any] = {}
        self.state = ""

    def bind(
        self, x: torch.Tensor, rows: torch.Tensor, chains: int, cond: Cond | None, backend: str | None
    ) -> Evaluate | None:
        """The energy and score of these rows of a run of ``chains`` chains like x, or None where they do not fit.

        Raises TypeError where they do not fit and must.
        """
        try:
            compiled = self._compiled(x, chains, cond, backend)
        except TypeError as error:
            if self._required:
                raise
            self.state = str(error)
            return None
        self.state = "on"
        given = {} if cond is None else check_cond("cond", cond, chains)
        own = {name: value if isinstance(value, Shared) else value[rows.cpu()] for name, value in given.items()}
        vectors = vectors_of(compiled, own, len(rows), x.dtype)
        network, score = compiled.network, compiled.score

        def evaluate(at: torch.Tensor, wanted: bool) -> Evaluated:
            with torch.no_grad():
                energy, found = ulam_kernels.evaluate_network(
                    network if wanted else score, at.contiguous(), chain_vectors=vectors, backend=backend
                )
            return None if energy is None else energy.double(), found

        return evaluate

    def _compiled(self, x: torch.Tensor, chains: int, cond: Cond | None, backend: str | None) -> CompiledEnergy:
        name = ulam_kernels.dispatch.name_of(ulam_kernels.dispatch.select(backend, x.device.type, x.dtype))
        if x.device.type != "cpu" or name not in BACKENDS:
            raise TypeError(f"device: got {x.device} with the backend {name!r}, expected the CPU's")
        if torch.is_autocast_enabled("cpu"):
            raise TypeError("autocast: got one around the run, expected float32 throughout")
        given = {} if cond is None else check_cond("cond", cond, chains)
        key = tuple(x.shape[1:]), tuple((name, kind_of(value)) for name, value in given.items())
        with _LOCK:
            return remembered(self._known, key, self._fn, lambda: compile_energy(self._fn, x.shape[1:], cond))
