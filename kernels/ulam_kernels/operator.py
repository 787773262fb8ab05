"""The operations as ``torch.ops.ulam.*``, so that ``torch.compile`` keeps them in its graph.

Each has a schema that declares what it mutates, a fake for tracing, and one implementation for every device: the
public function, which validates and selects the backend when the compiled graph runs. That function calls the operator
only while a graph is being traced; eager calls go straight to the backend, because PyTorch's dispatcher would cost
them several times what the launch does.

A schema names the arguments of its function. What is neither tensor nor number comes in parts: a table as ``coef`` and
``flags``, a density as its fields, pairs as two lists.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ulam_kernels.tracing import operator_runs

IDS = "Tensor seed, Tensor chain, Tensor draw"
NOISE = "Tensor? seed=None, Tensor? chain=None, Tensor? draw=None, Tensor? noise=None"
BACKEND = "str? backend=None"

F = TypeVar("F", bound=Callable[..., Any])
Values = dict[str, Any]
schemas: dict[str, str] = {}
functions: dict[str, Callable[..., Any]] = {}  # the public function of each operator, or the private one of a variant
implementations: dict[str, Callable[..., Any]] = {}
library = torch.library.Library("ulam", "DEF")  # the registrations live as long as this object


def nothing(**_: Any) -> None:
    """What operators that write in place return."""


def like_first(**values: Any) -> torch.Tensor:
    """A tensor like the first argument."""
    return torch.empty_like(next(iter(values.values())))


def per_chain(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    """One number for each chain of the first argument."""

    def fake(**values: Any) -> torch.Tensor:
        first: torch.Tensor = next(iter(values.values()))
        return first.new_empty(first.shape[:1], dtype=dtype)

    return fake


def operator(
    schema: str,
    fake: Callable[..., Any] = nothing,
    pack: Callable[[Values], None] | None = None,
    tags: tuple[torch.Tag, ...] = (),
) -> Callable[[F], F]:
    """Register a public function as the operator of a schema, "name(arguments) -> results".

    Args:
        fake: what the operator returns for fake tensors, of the arguments by name; :func:`nothing` for ().
        pack: puts together, in place, the arguments that come in parts.
        tags: of torch, beside those that every operator has.
    """
    name = schema.partition("(")[0]

    def register(function: F) -> F:
        # The layouts that the graph was traced with are kept: states are updated in place and must be contiguous.
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order, *tags))
        names = [argument.name for argument in getattr(torch.ops.ulam, name).default._schema.arguments]

        @operator_runs()
        def run(*given: Any) -> Any:
            values = dict(zip(names, given, strict=False))  # without those that have their defaults
            if pack is not None:
                pack(values)
            made = function(**values)
            return None if fake is nothing else made

        schemas[name], functions[name], implementations[name] = schema, function, run
        library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"ulam::{name}", lambda *given: fake(**dict(zip(names, given, strict=False))), lib=library
        )
        return function

    return register
