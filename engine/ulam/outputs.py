"""Which tensor of a network's output is its prediction: also in a dict, a tuple or an object that holds one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from ulam_kernels.arguments import described

Output: TypeAlias = "str | int | Callable[[Any], torch.Tensor] | None"

NAMED = 8  # parts of an output that an error names


class OutputError(TypeError):
    """The output of a network cannot be read as its prediction; the message says which parts there are."""


def check_output_option(output: object) -> None:
    """Raises TypeError unless it is a key, a position, a function or None."""
    known = output is None or isinstance(output, (str, int)) or callable(output)
    if not known or isinstance(output, (bool, type, torch.nn.Module)):
        expected = "a key, a position, or a function of what net returns (a module belongs into net)"
        raise TypeError(f"output: got {described(output)}, expected {expected}")


class ReadOutput:
    """A network whose prediction is read from its output by a key, a position or a function."""

    def __init__(self, net: Callable[..., Any], output: Output) -> None:
        self.net, self.output = net, output

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **cond: Any) -> Any:
        """The prediction. Raises OutputError where the output has no such part."""
        return read(self.net(x, t, **cond), self.output)


def read(m: Any, output: Output) -> Any:
    """What ``output`` says of ``m``. Raises OutputError where m has no such part, or where it is no tensor."""
    if callable(output):
        return output(m)
    if isinstance(m, torch.Tensor):
        raise OutputError(f"output: got {output!r} for a network that returns a tensor, expected None")
    parts = parts_of(m)
    if output in parts:
        found = parts[output]
    elif isinstance(output, int) and -len(parts) <= output < len(parts):
        found = list(parts.values())[output]
    else:
        found = getattr(m, output, None) if isinstance(output, str) and not parts else None
        if not isinstance(found, torch.Tensor):
            raise OutputError(f"output: got {output!r} for {_listed(m, parts)}, expected one of its parts")
    if not isinstance(found, torch.Tensor):
        raise OutputError(f"output: got {type(found).__name__} at {output!r}, expected a tensor")
    return found


def only_reading(m: object, shapes: tuple[tuple[int, ...], ...], name: str) -> object:
    """The one tensor in ``m`` that can be a prediction of one of these shapes; ``m`` itself where it holds nothing.

    A tensor that is alone is taken whatever its shape, for an error that says it. Raises OutputError where several fit.
    """
    parts = parts_of(m)
    tensors = {key: part for key, part in parts.items() if isinstance(part, torch.Tensor) and part.is_floating_point()}
    fitting = [key for key, part in tensors.items() if tuple(part.shape) in shapes] or [*tensors]
    if len(fitting) == 1:
        return tensors[fitting[0]]
    if not parts:
        return m
    which = ", ".join(f"output={key!r}" for key in fitting[:NAMED]) or "a function as output="
    raise OutputError(f"{name}: got {_listed(m, parts)}, expected one tensor, or a Denoiser with one of {which}")


def parts_of(m: Any) -> dict[Any, Any]:
    """What a dict, a tuple, a list, a dataclass or an object with ``.sample`` holds, by key, position or name."""
    if isinstance(m, Mapping):
        return dict(m)
    if isinstance(m, tuple) and hasattr(m, "_asdict"):
        return dict(m._asdict())
    if isinstance(m, (tuple, list)):
        return dict(enumerate(m))
    if dataclasses.is_dataclass(m) and not isinstance(m, type):
        return {part.name: getattr(m, part.name) for part in dataclasses.fields(m)}
    sample = getattr(m, "sample", None)
    return {"sample": sample} if isinstance(sample, torch.Tensor) and not isinstance(m, torch.Tensor) else {}


def _listed(m: object, parts: Mapping[Any, Any]) -> str:
    shown = [
        f"{key!r} {list(part.shape) if isinstance(part, torch.Tensor) else type(part).__name__}"
        for key, part in [*parts.items()][:NAMED]
    ]
    more = [f"{len(parts) - NAMED} more"] if len(parts) > NAMED else []
    return f"{type(m).__name__} with {', '.join([*shown, *more]) or 'nothing in it'}"
