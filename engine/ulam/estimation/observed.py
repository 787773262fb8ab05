"""Denoisers and plain functions as D(y) for observations y = x + sigma z: for estimates, and for losses that train.

A plain function is called as D(y, sigma), sigma ``[B]`` in the dtype of y, if it has a second parameter without a
default, and as D(y) otherwise; it returns a tensor like y.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ulam_kernels.arguments import described, positive
from ulam_kernels.tracing import graph_constant, transformed
from ulam_kernels.validation import check_real

from ..arguments import per_chain
from ..conditioning import arguments_of, rowwise
from ..denoiser import Denoiser
from ..evaluation import check_like, check_output, modules_in
from ..schedules import Schedule, ve
from .autograd import Function
from .estimator import LARGEST_SIGMA, Estimator, Inputs, Sigma, noise_levels

Plain: TypeAlias = Callable[..., torch.Tensor]

_schedules: dict[str, Schedule] = {}  # of the operator below, by name


class _PlainFunction(torch.nn.Module):
    """A plain function as the network of a Denoiser; the modules that it refers to are its own, as for eval mode."""

    def __init__(self, function: Plain, takes_sigma: bool) -> None:
        super().__init__()
        self.function, self._takes_sigma = function, takes_sigma

    def modules(self, remove_duplicate: bool = True) -> Iterator[torch.nn.Module]:
        yield self
        yield from modules_in(self.function)

    def forward(self, y: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        m = self.function(y, sigma.to(y.dtype)) if self._takes_sigma else self.function(y)
        return check_like(m, y.shape, "denoiser", why=" like its input")


def as_denoiser(denoiser: Denoiser | Plain) -> Denoiser:
    """The denoiser itself, or a plain function as one. Raises TypeError for anything else."""
    if isinstance(denoiser, Denoiser):
        return denoiser
    named(denoiser)
    return Denoiser(_PlainFunction(denoiser, takes_sigma(denoiser)), ve(0.01, 50.0), predicts="x0")


def named(denoiser: object, plain_only: bool = False, argument: str = "denoiser") -> tuple[str, Plain]:
    """How errors name it, net or denoiser, and the callable itself. Raises TypeError for what is neither."""
    if isinstance(denoiser, Denoiser) and not plain_only:
        return "net", denoiser.net
    if isinstance(denoiser, Denoiser) or not callable(denoiser):
        expected = "a function of observations" if plain_only else "a ulam.Denoiser, or a function of observations"
        raise TypeError(f"{argument}: got {described(denoiser)}, expected {expected}")
    return "denoiser", denoiser


def check_cond(cond: object) -> None:
    if cond is not None and not isinstance(cond, Mapping):
        raise TypeError(f"cond: got {described(cond)}, expected tensors by name, or None")


def takes_sigma(function: Any) -> bool:
    """Whether a function has a second parameter without a default; what torch.compile or DDP wraps counts itself."""
    while isinstance(function, torch.nn.Module):
        wrapped = isinstance(function, (DataParallel, DistributedDataParallel))
        function = function.module if wrapped else getattr(function, "_orig_mod", function.forward)
    function = getattr(function, "__wrapped__", function)
    bound = isinstance(function, MethodType)
    function = function.__func__ if bound else function
    if not hasattr(function, "__code__"):  # an object that can be called, or a function of C, which takes y alone
        function, bound = type(function).__call__, True
    code = getattr(function, "__code__", None)  # inspect.signature says the same, but torch.compile cannot trace it
    return code is not None and bool(code.co_argcount - len(function.__defaults__ or ()) - bound > 1)


def levels(y: torch.Tensor, sigma: Sigma) -> torch.Tensor:
    """``sigma`` as a tensor ``[B]`` float64 beside y, checked where the host can read it."""
    if isinstance(sigma, torch.Tensor) and (torch.compiler.is_compiling() or transformed() is not None):
        if sigma.dim() > 1 or (sigma.dim() == 1 and len(sigma) != len(y)):
            raise ValueError(f"sigma: got shape {list(sigma.shape)}, expected a number or [{len(y)}], one a chain")
        return sigma.to(y.device, torch.float64).expand(len(y))
    if isinstance(sigma, (int, float)):
        if positive(sigma, "sigma") > LARGEST_SIGMA:
            raise ValueError(f"sigma: got {sigma:g}, expected at most {LARGEST_SIGMA:g}")
        return torch.full((len(y),), float(sigma), dtype=torch.float64, device=y.device)
    return torch.from_numpy(np.array(noise_levels(y, sigma))).to(y.device)


def observed(
    denoiser: Denoiser | Plain, sigma: torch.Tensor, cond: Inputs | None = None, *, like: bool = True
) -> Function:
    """D at the noise levels ``sigma`` [B], the network called as it is: in training mode while it trains.

    A Denoiser's D is computed as by :class:`.estimator.Estimator`, in float32 at least. like: a plain function must
    return a tensor like y.
    """
    if isinstance(denoiser, Denoiser):
        return _of_network(denoiser, sigma, arguments_of(cond, sigma.device))
    by_level = takes_sigma(denoiser)

    def D(y: torch.Tensor) -> torch.Tensor:
        found = denoiser(y, sigma.to(y.dtype)) if by_level else denoiser(y)
        return check_like(found, y.shape, "denoiser", why=" like its input") if like else _estimates(found, len(y))

    return D


def _estimates(x: object, rows: int) -> torch.Tensor:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"denoiser: got {type(x).__name__}, expected a tensor [{rows}, *shape]")
    check_real(x, "denoiser")
    if x.dim() < 2 or len(x) != rows:
        raise ValueError(f"denoiser: got shape {list(x.shape)}, expected [{rows}, *shape], one estimate a chain")
    return x


def _of_network(denoiser: Denoiser, sigma: torch.Tensor, cond: Inputs) -> Function:
    to_net, on_y, on_m, time = _coefficients(denoiser, sigma).unbind(0)
    index = denoiser.time == "index"

    def D(y: torch.Tensor) -> torch.Tensor:
        t = time.to(torch.float64 if y.dtype == torch.float64 and not index else denoiser.time_dtype)
        x = per_chain(to_net, y).to(y.dtype) * y
        m = check_output(denoiser.network(x, t, **cond), y.shape)[:, : y.shape[1]]
        wide = torch.promote_types(y.dtype, torch.float32)
        return per_chain(on_y, y).to(wide) * y + per_chain(on_m, y).to(wide) * m.to(wide)

    return D


def _coefficients(denoiser: Denoiser, sigma: torch.Tensor) -> torch.Tensor:
    """What multiplies y for the network, and y and the output in D, and the network's time, ``[4, B]`` float64."""
    schedule, predicts, time = denoiser.schedule, denoiser.predicts, denoiser.time
    name = schedule.constructor
    if torch.compiler.is_compiling() or transformed() is not None:
        graph_constant(_remember, schedule, name)
    else:
        return _on_host(sigma, schedule, predicts, time)
    found: torch.Tensor = _operator(sigma, name, predicts, time)
    return found


def _on_host(sigma: torch.Tensor, schedule: Schedule, predicts: str, time: str) -> torch.Tensor:
    denoiser = Denoiser(_no_network, schedule, predicts, time)
    found = Estimator(denoiser, torch.zeros(len(sigma), 1, dtype=torch.float64), sigma.cpu()).coefficients
    return torch.stack([c.flatten().double() for c in found]).to(sigma.device)


def _no_network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    raise AssertionError("only the coefficients are asked for")


# ------------------------------------------------- what torch compiles or transforms reads noise levels by an operator


def _remember(schedule: Schedule, name: str) -> str:
    """Let the operator find a schedule by its name."""
    _schedules[name] = schedule
    return name


@torch.library.custom_op("ulam::observed_coefficients", mutates_args=())
def _operator(sigma: torch.Tensor, schedule: str, predicts: str, time: str) -> torch.Tensor:
    return _on_host(sigma, _schedules[schedule], predicts, time)


@_operator.register_fake
def _(sigma: torch.Tensor, schedule: str, predicts: str, time: str) -> torch.Tensor:
    return sigma.new_empty(4, *sigma.shape)


@_operator.register_vmap
def _(
    info: object, dims: tuple[int | None, ...], sigma: torch.Tensor, schedule: str, predicts: str, time: str
) -> tuple[torch.Tensor, int]:
    flat = sigma.movedim(dims[0] or 0, 0)
    return _operator(flat.reshape(-1), schedule, predicts, time).view(4, *flat.shape), 1


def first_rows(cond: Inputs | None, rows: int, of: int) -> Inputs:
    """The conditioning of the first rows of a batch: of tensors and lists that have one row an example, the first."""
    return {
        key: value[:rows] if isinstance(value, torch.Tensor) and value.dim() and len(value) == of else value
        for key, value in rowwise(cond).items()
    }
