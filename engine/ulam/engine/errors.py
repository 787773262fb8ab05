"""What an engine raises besides TypeError and ValueError for its arguments, and how it warns."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .job import Job


OURS = ("ulam", "ulam_kernels", "torch")  # packages whose frames a warning skips
WHOLE = ("'indices'", "index tensor", "used as indices")  # in torch's errors for floats where it looks up whole numbers
# In Python's errors for a call: an argument that it does not take, or those that it lacks.
ASKED = re.compile(r"(?:(got an unexpected keyword argument)|missing \d+ required .*arguments?:) (.*)")
MIXED = ("dtype", "ouble", "scalar type", "should be the same")  # for two types where it takes one
GRADIENTS = "options=ulam.NetworkOptions(gradients=True)"


class NetworkError(RuntimeError):
    """The network raised ``__cause__``. The engine is as before the call; running on repeats it.

    ``chains``: the ids of the chains in the batch, by job. ``wants_gradients``: the network takes gradients inside,
    which works only with ``NetworkOptions(gradients=True)``. ``way_out``: what most likely helps, or nothing.
    """

    def __init__(
        self,
        cause: BaseException,
        chains: dict[Job, list[int]],
        wants_gradients: bool = False,
        way_out: str = "",
    ) -> None:
        ids = sorted(chain for of_job in chains.values() for chain in of_job)
        shown = ", ".join(map(str, ids[:8])) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
        detail = f"{type(cause).__name__}: {cause}"
        if wants_gradients:
            detail = f"got one that takes gradients inside ({' '.join(detail.split()):.80}), expected {GRADIENTS}"
        elif way_out:
            detail = f"got an error ({' '.join(detail.split()):.160}), expected {way_out}"
        super().__init__(f"net: {detail} (chains {shown})")
        self.chains, self.wants_gradients, self.way_out = chains, wants_gradients, way_out


def way_out_of(error: BaseException, x: torch.Tensor, t: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> str:
    """What helps against an error that torch raised in a network, where its words and the arguments' types tell."""
    text, floats = str(error), {name: value.dtype for name, value in inputs.items() if value.is_floating_point()}
    if any(words in text for words in WHOLE):
        clock = ["time='index' (--time index), whole training steps"] if t.is_floating_point() else []
        labels = [name for name in floats if inputs[name].dim() == 1]
        return " or ".join([*clock, *(f"whole numbers as cond[{name!r}]" for name in labels)])
    if isinstance(error, TypeError) and (found := ASKED.search(text)) is not None:
        names = re.findall(r"'(\w+)'", found[2])
        return "cond=" + ", ".join(f"{name!r}: ..." for name in names).join("{}") + (" left out" if found[1] else "")
    wide = [name for name, dtype in floats.items() if dtype == torch.float64 != x.dtype]
    if wide and any(words in text for words in MIXED):
        return f"cond[{wide[0]!r}] as {x.dtype}, not {torch.float64}"
    return ""


class QueueFull(RuntimeError):
    """A bounded queue has no room for a job; nothing has changed."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called into this package, however deep inside the warning arises, also by torch.compile."""
    frame, depth = sys._getframe(1), 3
    while frame.f_back is not None and frame.f_back.f_globals.get("__name__", "").split(".")[0] in OURS:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
