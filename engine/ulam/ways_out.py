"""What helps against an error that a network raised, where its words and the types of what it was given tell."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

WHOLE = (
    "'indices'",
    "index tensor",
    "used as indices",
    "for index",
)  # in torch's errors for floats where it looks up whole numbers
MIXED = ("dtype", "ouble", "scalar type", "should be the same")  # for two types where it takes one
# In Python's errors for a call: an argument that it does not take, or those that it lacks.
TAKEN = re.compile(r"takes (from )?\d+ (to \d+ )?positional arguments? but \d+ were given")
ASKED = re.compile(r"(?:(got an unexpected keyword argument)|missing \d+ required .*arguments?:) (.*)")


def way_out_of(error: BaseException, x: torch.Tensor, t: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> str:
    """What helps against an error that torch raised in a network, where its words and the arguments' types tell."""
    text, floats = str(error), {name: value.dtype for name, value in inputs.items() if value.is_floating_point()}
    if any(words in text for words in WHOLE):
        clock = ["time='index' (--time index), whole training steps"] if t.is_floating_point() else []
        labels = [name for name in floats if inputs[name].dim() == 1]
        return " or ".join([*clock, *(f"whole numbers as cond[{name!r}]" for name in labels)])
    if isinstance(error, TypeError) and TAKEN.search(text) is not None:
        return "a network that takes (x, t, **cond), such as lambda x, t: net(x)"
    if isinstance(error, TypeError) and (found := ASKED.search(text)) is not None:
        names = re.findall(r"'(\w+)'", found[2])
        return "cond=" + ", ".join(f"{name!r}: ..." for name in names).join("{}") + (" left out" if found[1] else "")
    wide = [name for name, dtype in floats.items() if dtype == torch.float64 != x.dtype]
    if wide and any(words in text for words in MIXED):
        return f"cond[{wide[0]!r}] as {x.dtype}, not {torch.float64}"
    return ""
