"""What torch.compile leaves out of its graphs: imported where it traces alone, for torch takes a second to load it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")
REASON = "ulam runs this call as it is, outside of the graph: compile without fullgraph=True"


@torch.compiler.disable(reason=REASON)  # type: ignore[no-untyped-call, untyped-decorator]
def call(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """The function's result, with a break in the graph, and none made of what it calls."""
    return function(*args, **kwargs)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def constant(function: Callable[..., T], /, *args: Any) -> T:
    """The function's result, computed when torch traces the call: a constant of the graph, for equal arguments."""
    return function(*args)
