"""What a run records at the states it keeps: functions of the state, and what samplers with velocities have besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from ulam_kernels.arguments import choice, described

from ..evaluation import in_eval_mode, modules_in
from ..memory import room_for
from ..samplers.mcmc.chain_sampler import ChainSampler
from .arviz_data import is_axis

Functions: TypeAlias = "Mapping[str, Callable[[torch.Tensor], Any]]"
RECORDS = ("velocities", "kinetic")
TAKEN = ("x", "energy")  # names that the verdict has for others
RIGHT = "functions of x [chains, *shape] by their names, or None"


class Observables:
    """Named functions of the states x ``[B, *shape]``, each ``[B, *sizes]`` of real numbers or bools.

    Each is called without a graph, with its modules in eval mode, on a copy of x that it may change. Float32 and
    float64 are kept, shorter floats become float32, whole numbers and bools float64.
    """

    def __init__(self, functions: Functions) -> None:
        self.functions = dict(functions)
        self._modules = {name: modules_in(function) for name, function in self.functions.items()}

    def __call__(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Their values at x, by name. Raises TypeError or ValueError for one that is not ``[B, *sizes]``."""
        return {name: self._value(name, x) for name in self.functions}

    def room(self, x: torch.Tensor, ids: torch.Tensor, kept: int) -> dict[str, torch.Tensor]:
        """Room for them ``[B, kept, *sizes]``, whose sizes and dtypes are those at the first states x.

        Raises as a call does, and ValueError for an observable that is not finite there; ``ids`` ``[B]``: the chains'.
        """
        values, started = self(x), torch.isfinite(x.flatten(1)).all(1)  # a run that goes on may have lost chains
        for name, value in values.items():
            bad = (started & ~torch.isfinite(value.reshape(len(x), -1)).all(1)).nonzero()[:, 0]
            if len(bad):
                raise ValueError(
                    f"observables: got {name} that is not finite at the start of chain {int(ids[bad[0]])}, expected "
                    "finite numbers"
                )
        with room_for(f"steps: got {kept} draws of observables, expected what fits into memory: a larger thin="):
            return {name: value.new_empty(len(x), kept, *value.shape[1:]) for name, value in values.items()}

    def _value(self, name: str, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), in_eval_mode(self._modules[name]):
            value = self.functions[name](x.clone())
        right = f"a tensor [{len(x)}, *sizes] of real numbers, the chains first"
        if not isinstance(value, torch.Tensor) or value.is_complex() or value.layout is not torch.strided:
            raise TypeError(f"observables: got {described(value)} of {name}, expected {right}")
        if not value.dim() or len(value) != len(x) or not value.numel():
            raise ValueError(f"observables: got shape {list(value.shape)} of {name}, expected {right}")
        if not value.is_floating_point():
            return value.detach().to(x.device, torch.float64)
        return value.detach().to(x.device, torch.promote_types(value.dtype, torch.float32))


def checked_observables(functions: object, parameters: Iterable[str] = ()) -> Observables | None:
    """Raises TypeError or ValueError for what are not functions by their names; ``parameters``: names of a model's."""
    if functions is None:
        return None
    if not isinstance(functions, Mapping):
        raise TypeError(f"observables: got {described(functions)}, expected {RIGHT}")
    if not functions:
        raise ValueError(f"observables: got none, expected {RIGHT}")
    for name, function in functions.items():
        if not isinstance(name, str) or not callable(function) or isinstance(function, type):
            raise TypeError(f"observables: got {described(name)}: {described(function)}, expected {RIGHT}")
        if name in (*TAKEN, *parameters) or is_axis(name) or "[" in name:
            why = ": a parameter of the model has it" if name in parameters else ""
            raise ValueError(f"observables: got the name {name!r}, expected another{why}")
    return Observables(functions)


def checked_record(record: object, sampler: ChainSampler) -> tuple[str, ...]:
    """Names among :data:`RECORDS`. Raises TypeError or ValueError for others, and for what the sampler lacks."""
    if record is None:
        return ()
    if isinstance(record, str) or not isinstance(record, Sequence):
        raise TypeError(f"record: got {described(record)}, expected a list of names among {', '.join(RECORDS)}")
    names = tuple(dict.fromkeys(choice(name, "record", RECORDS) for name in record))
    for name in names:
        if not sampler.has_velocity:
            raise ValueError(f"record: got {name!r}, expected nothing: {type(sampler).__name__} keeps no velocity")
        if name == "kinetic" and not sampler.has_kinetic_energy:
            raise ValueError(
                f"record: got 'kinetic', expected no more than velocities: {type(sampler).__name__}'s have length 1"
            )
    return names
