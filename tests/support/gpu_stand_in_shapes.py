"""What operations on a stand-in device give, before they run."""

from __future__ import annotations

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

SHAPES: dict = {}  # what operations gave before, by operation and arguments without values


def shapes(func, args, kwargs):
    """What the operation gives, without values: for each result (None, size, stride, dtype), or (i,) where it is the
    i-th argument itself, or (None, what) for what is no tensor; and how they are arranged. Raises what it raises."""
    flat, arrangement = tree_flatten((args, kwargs))
    kinds = [(x.size(), x.stride(), x.dtype, x.is_cuda) if isinstance(x, torch.Tensor) else (type(x), x) for x in flat]
    key = func, tuple(kinds), arrangement
    if key not in SHAPES:
        SHAPES[key] = _shapes(func, flat, arrangement)
    return SHAPES[key]


def _shapes(func, flat, arrangement):
    def meta(x):
        if not (isinstance(x, torch.Tensor) and x.is_cuda):
            return x
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")

    def call(leaves):
        args, kwargs = tree_unflatten(leaves, arrangement)
        kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory", "generator")}
        return func(*args, **kwargs)

    leaves = [meta(x) for x in flat]
    try:
        told = call(leaves)
    except NotImplementedError:  # no shape function: tried on copies
        leaves = [x.inner.clone() if isinstance(x, torch.Tensor) and x.is_cuda else x for x in flat]
        told = call(leaves)
    given = {id(leaf): place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)}
    results, out = tree_flatten(told)
    for result in results:
        if id(result) in given and flat[given[id(result)]].shape != result.shape:
            raise NotImplementedError(f"{func}: an out= of another shape")
    described = [
        (None, x)
        if not isinstance(x, torch.Tensor)
        else (given[id(x)],)
        if id(x) in given
        else (None, x.size(), x.stride(), x.dtype)
        for x in results
    ]
    return described, out
