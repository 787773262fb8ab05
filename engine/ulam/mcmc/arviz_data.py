"""Chains as ArviZ's data: the names of their elements, and what is known of every draw."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from ulam_kernels.arguments import described
from ulam_kernels.ops import fill_normal

from ..noise import ROW

Names: TypeAlias = "str | Sequence[str] | None"
Coords: TypeAlias = "Mapping[str, Sequence[Any]] | None"
Dims: TypeAlias = "Sequence[str] | Mapping[str, Sequence[str]] | None"
Draws: TypeAlias = "torch.Tensor | Mapping[str, torch.Tensor]"
BLOCK = 1 << 22  # normals that are made at once


def arviz() -> Any:
    """The package, without what it says of its future once a day. Raises ImportError where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
            import arviz
    except ImportError as error:
        raise ImportError("arviz: got no installation, expected one: pip install 'ulam[mcmc]'") from error
    return arviz


def is_axis(name: str) -> bool:
    """Whether ArviZ has this name for an axis: it would drop a variable of it without a word."""
    return name in ("", "chain", "draw") or re.fullmatch(r".*_dim_\d+", name) is not None


def inference_data(
    draws: Draws | None,
    statistics: Mapping[str, torch.Tensor],
    names: Names,
    coords: Coords,
    dims: Dims,
    observables: Mapping[str, torch.Tensor] | None = None,
) -> Any:
    """An ``arviz.InferenceData`` of draws ``[chain, draw, *shape]``, or several by name, and statistics
    ``[chain, draw]``.

    ``observables`` ``[chain, draw, *sizes]`` are variables beside the draws, or alone where those are None.

    Raises ImportError without ArviZ, TypeError or ValueError for names, coords or dims that do not fit: see
    :meth:`ulam.mcmc.Chains.to_arviz`.
    """
    posterior: dict[str, Any] = {}
    axes: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    if draws is None:
        _check_none(names, coords, dims)
    elif isinstance(draws, Mapping):
        axes, sizes = _named_dims(draws, names, dims)
        posterior = {name: values.cpu().numpy() for name, values in draws.items()}
    else:
        posterior, axes, sizes = _of_states(draws, names, dims)
    for name, observable in (observables or {}).items():
        if name in posterior:
            raise ValueError(f"names: got {name!r}, expected another name: it is that of an observable")
        posterior[name] = observable.cpu().numpy()
    return arviz().from_dict(
        posterior=posterior,
        sample_stats={name: tensor.cpu().numpy() for name, tensor in statistics.items()},
        coords=_checked_coords(coords, sizes),
        dims=axes,
    )


def _check_none(names: Names, coords: Coords, dims: Dims) -> None:
    for name, given in (("names", names), ("coords", coords), ("dims", dims)):
        if given is not None:
            raise ValueError(f"{name}: got {described(given)}, expected None: there are observables alone, no states")


def _named_dims(
    draws: Mapping[str, torch.Tensor], names: Names, dims: Dims
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """The names of the axes of each parameter that has some, and the sizes of all these axes."""
    if names is not None:
        raise ValueError(f"names: got {described(names)}, expected None: the parameters of a model have their own")
    axes: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    if dims is not None and not isinstance(dims, Mapping):
        raise TypeError(f"dims: got {described(dims)}, expected names of axes by parameter, such as {{'mu': ['city']}}")
    for name, of_one in ({} if dims is None else dims).items():
        if name not in draws:
            raise ValueError(f"dims: got {described(name)}, expected names of parameters: {', '.join(draws)}")
        shape = tuple(draws[name].shape[2:])
        axes[name] = _checked_dims(of_one, shape)
        for axis, size in zip(axes[name], shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise ValueError(f"dims: got {axis!r} of sizes {sizes[axis]} and {size}, expected one size for a name")
    return axes, sizes


def _of_states(
    draws: torch.Tensor, names: Names, dims: Dims
) -> tuple[dict[str, Any], dict[str, list[str]], dict[str, int]]:
    """The variables of states, the names of their axes, and the sizes of these."""
    values, shape = draws.cpu().numpy(), tuple(draws.shape[2:])
    axes: dict[str, list[str]] = {}
    if isinstance(names, str) or names is None:
        posterior = {"x" if names is None else names: values}
        if dims is not None:
            axes = dict.fromkeys(posterior, _checked_dims(dims, shape))
    else:
        posterior = {name: values[:, :, i] for i, name in enumerate(_element_names(names, shape, dims))}
    if bad := [name for name in posterior if is_axis(name)]:
        raise ValueError(f"names: got {bad[0]!r}, expected another name")
    sizes = {name: size for of_one in axes.values() for name, size in zip(of_one, shape, strict=True)}
    return posterior, axes, sizes


def hamiltonian(
    energies: torch.Tensor,
    shape: tuple[int, ...],
    *,
    ids: torch.Tensor,
    seed: int,
    next_step: int,
    temperature: torch.Tensor,
) -> torch.Tensor:
    """H = E(x) + |v|^2 / 2 ``[chain, draw]`` float64 where the path that leaves each draw begins.

    The draws are those of consecutive transitions of HMC, ``energies`` ``[chain, draw]`` theirs, ``next_step`` the
    number of the transition after the last. Each momentum v ~ N(0, T), whitened by the mass, is noise-v1 of its
    transition, and made anew here. ``temperature``: ``[]`` or ``[chain]``.
    """
    chains, draws = energies.shape
    steps = next_step - draws + 1 + np.arange(draws)
    kinetic, ids, size = torch.empty(chains, draws, dtype=torch.float64), ids.cpu(), math.prod(shape)
    block = max(BLOCK // max(chains * size, 1), 1)
    for begin in range(0, draws, block):
        of_block = torch.from_numpy(ROW.draws(steps[begin : begin + block]))
        z = torch.empty(chains * len(of_block), size, dtype=torch.float32)
        chain, draw = ids.repeat_interleave(len(of_block)), of_block.repeat(chains)
        fill_normal(z, seed=torch.full_like(chain, seed), chain=chain, draw=draw)
        kinetic[:, begin : begin + block] = z.double().square().sum(1).view(chains, -1) / 2
    return energies.cpu() + kinetic * (temperature[:, None] if temperature.dim() else temperature)


def _checked_dims(dims: object, shape: tuple[int, ...]) -> list[str]:
    right = f"{len(shape)} names, one for each axis of a state {list(shape)}"
    if isinstance(dims, str) or not isinstance(dims, Sequence) or not all(isinstance(name, str) for name in dims):
        raise TypeError(f"dims: got {described(dims)}, expected {right}")
    if len(dims) != len(shape) or len({*dims, "chain", "draw"}) != len(shape) + 2:
        raise ValueError(f"dims: got {described(dims)}, expected {right}, all different and not chain or draw")
    return list(dims)


def _checked_coords(coords: object, sizes: Mapping[str, int]) -> dict[str, list[Any]]:
    if coords is None:
        return {}
    if not isinstance(coords, Mapping):
        raise TypeError(f"coords: got {described(coords)}, expected labels by the names in dims, or None")
    for name, labels in coords.items():
        if name not in sizes:
            raise ValueError(
                f"coords: got {described(name)}, expected names of dims: {', '.join(sizes) or 'none given'}"
            )
        if isinstance(labels, str) or not hasattr(labels, "__len__") or len(labels) != sizes[name]:
            raise ValueError(f"coords: got {described(labels)} for {name}, expected {sizes[name]} labels")
    return {name: list(labels) for name, labels in coords.items()}


def _element_names(names: object, shape: tuple[int, ...], dims: object) -> list[str]:
    right = "one name, or one for each element of a flat state"
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names: got {described(names)}, expected {right}")
    if len(shape) != 1 or len(names) != shape[0] or len(set(names)) != len(names):
        raise ValueError(f"names: got {described(names)}, expected {right}: all different, for states of {list(shape)}")
    if dims is not None:
        raise ValueError(f"dims: got {described(dims)} beside a name for each element, expected None")
    return list(names)
