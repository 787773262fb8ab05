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


def check_no_function() -> None:
    """Raises RuntimeError if torch.compile, tracing now, met an autograd.Function in the transform that ended last.

    It reads the graph so far by a name that torch does not promise: where there is none, or the Function lies within a
    checkpoint or a branch, nothing is raised.
    """
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslator

        nodes = InstructionTranslator.current_tx().output.graph.nodes
    except (ImportError, AttributeError):
        return
    depth = 0
    for node in reversed(nodes):
        name = getattr(node.target, "__name__", str(node.target))
        if "autograd_function_apply" in name:
            raise RuntimeError(
                "torch.compile: got a network with a torch.autograd.Function in a loss that contains a derivative, "
                "expected torch operations alone, or a call outside: graphs lose the Function's second derivative"
            )
        depth += (name == "_grad_decrement_nesting") - (name == "_grad_increment_nesting")
        if name == "_grad_increment_nesting" and depth <= 0:
            return
