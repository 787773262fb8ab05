"""Which attributes of an object count: those that it computes from."""

from __future__ import annotations

import types
from collections.abc import Mapping
from functools import cached_property

import torch

from ...denoiser import Denoiser

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
HOOK_OPTIONS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
UNREAD = frozenset(  # of a module
    {"training", "_non_persistent_buffers_set", "_is_full_backward_hook", "_flat_weight_refs", *HOOK_OPTIONS}
)
GRAPHS = frozenset({"_graph", "_lineno_map", "_prologue_start", "meta"})  # of torch.fx: the code made from them counts
CACHES = frozenset({"_found", "_modes"})  # of a Denoiser: what its network was found to allow


def contents(cell: types.CellType) -> object:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()  # empty until its variable is set


def object_state(value: object, state: Mapping[str, object]) -> list[tuple[str, object]]:
    """Attributes by name, without caches and the place that weights were loaded from."""
    parts = [item for base in type(value).__mro__ for item in vars(base).items()]
    left_out = {"_name_or_path", *(name for name, part in parts if isinstance(part, cached_property))}
    if isinstance(value, Denoiser):
        left_out |= CACHES
    return [(name, part) for name, part in sorted(state.items()) if name not in left_out]


def network_state(value: torch.nn.Module) -> list[tuple[str, object]]:
    """What a module computes from in eval mode, besides its class."""
    facts = hooks(value)
    for name, part in object_state(value, vars(value)):
        if name == "_compiled_call_impl":  # torch's, that runs the same code
            facts.append((name, part is not None))
        elif name in GRAPHS and isinstance(value, torch.fx.GraphModule):
            continue
        elif name not in UNREAD and not name.endswith("_hooks"):
            facts.append((name, part))
    return facts


def hooks(module: torch.nn.Module) -> list[tuple[str, object]]:
    """The hooks that run with a module, in order, and how; not their keys, which a process counts."""
    options = [getattr(module, name, {}) for name in HOOK_OPTIONS]
    found = {kind: vars(module).get(kind, {}) for kind in HOOKS}
    return [
        (kind, [(hook, *(key in option for option in options)) for key, hook in kept.items()])
        for kind, kept in found.items()
        if kept
    ]
