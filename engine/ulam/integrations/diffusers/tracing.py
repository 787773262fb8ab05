"""Fused calls where torch records what it runs: torch.compile leaves them out of its graphs, tracers are refused.

A fused call depends on how far its loop has come and writes memory that no tracer sees, so that a recorded call could
give the numbers of one call only, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ulam_kernels.tracing import recorder

F = TypeVar("F", bound=Callable[..., Any])


def with_graph_break(function: F) -> F:
    """The function, which torch.compile calls as it is, with a break in its graph, and all that it calls likewise.

    `ulam_kernels.tracing.outside_graphs` decides that at every call; this is for where the caller has asked already.
    """
    reason = "a fused scheduler's calls stay outside of the graph: compile without fullgraph=True"
    return torch.compiler.disable(function, reason=reason)  # type: ignore[no-any-return,no-untyped-call]


def check_not_recorded(what: str) -> None:
    """Raises RuntimeError where something records or transforms operations: it would miss what `what` does."""
    by = recorder()
    if by is not None:
        raise RuntimeError(f"{what}: got a call under {by}, expected one outside, or under torch.compile")
