"""Named parameters and the sets they lie in, side by side in one flat vector without constraints.

A parameter x of a set C is x = f(y), y any real numbers, f the bijection of ``torch.distributions.biject_to(C)``
(:mod:`.bijections`): exp for positive numbers, a sigmoid for an interval, stick breaking for a simplex. A
density p of x is p(f(y)) |det df/dy| of y [Carpenter 2017, section 3]. Where x has more elements than y, the
derivatives are those of the first n - 1 elements of a simplex, and of the elements below the diagonal of a Cholesky
factor of correlations, as in ``torch.distributions``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.distributions import constraints

from ulam_kernels.arguments import described, whole
from ulam_kernels.ops import MAX_ELEMENTS
from ulam_kernels.validation import check_data, real_numbers

from ...arguments import check_shape
from ..arviz_data import is_axis
from .bijections import OrderedVector, bijection

ENERGY = "energy"  # a row of verdicts


@dataclass(frozen=True)
class Parameter:
    """A parameter of a :class:`ulam.mcmc.Model`: its shape, and the set in which it lies.

    :func:`Real`, :func:`Positive`, :func:`UnitInterval`, :func:`Interval`, :func:`Simplex`, :func:`Ordered` and
    :func:`CorrelationCholesky` make the common ones.

    Args:
        shape: ``()`` for one number, n or ``(n,)`` for a vector; the last axes are those of one point of the set, such
            as n for a simplex.
        constraint: of ``torch.distributions.constraints``, one for which ``biject_to`` has a bijection.

    Raises:
        TypeError, ValueError: a shape or a constraint that does not fit, or without a bijection.
    """

    shape: Sequence[int] = ()
    constraint: Any = constraints.real

    def __post_init__(self) -> None:
        given: Any = self.shape
        alone = isinstance(given, int) and not isinstance(given, bool)
        object.__setattr__(self, "shape", check_shape((given,) if alone else given))
        if not isinstance(self.constraint, constraints.Constraint):
            right = "one of torch.distributions.constraints, such as constraints.positive"
            raise TypeError(f"constraint: got {described(self.constraint)}, expected {right}")
        try:
            y = torch.zeros(self.free_shape, dtype=torch.float64)
            fits = self.transform(y).shape == self.shape and y.numel() > 0
            self.transform.log_abs_det_jacobian(y, self.transform(y))
        except NotImplementedError:
            right = "one with a bijection from the real numbers, such as constraints.positive or constraints.simplex"
            raise ValueError(f"constraint: got {self.constraint!r}, expected {right}") from None
        except (ValueError, IndexError, RuntimeError):
            fits = False
        if not fits:
            raise ValueError(f"shape: got {self.shape}, expected one that points of {self.constraint!r} can have")

    @cached_property
    def transform(self) -> Any:
        """f, from real numbers ``[..., *free_shape]`` to the parameter ``[..., *shape]``."""
        return bijection(self.constraint)

    @property
    def free_shape(self) -> tuple[int, ...]:
        """The shape of y."""
        return tuple(self.transform.inverse_shape(torch.Size(self.shape)))

    @property
    def moving(self) -> torch.Tensor:
        """Which elements can vary, ``[*shape]`` bool: not those at which triangular matrices are 0, nor a first 1."""
        moves = torch.ones(self.shape, dtype=torch.bool)
        if isinstance(self.constraint, type(constraints.corr_cholesky)):
            moves = moves.tril()
            moves[..., 0, 0] = False
        return moves


def Real(shape: Sequence[int] = ()) -> Parameter:
    """Any real numbers."""
    return Parameter(shape)


def Positive(shape: Sequence[int] = ()) -> Parameter:
    """Numbers above 0: x = exp(y)."""
    return Parameter(shape, constraints.positive)


def UnitInterval(shape: Sequence[int] = ()) -> Parameter:
    """Numbers between 0 and 1: x = 1 / (1 + exp(-y)). Those nearer to 1 than its precision are taken for the last."""
    return Parameter(shape, constraints.unit_interval)


def Interval(lo: float, hi: float, shape: Sequence[int] = ()) -> Parameter:
    """Numbers between lo and hi. Raises TypeError or ValueError unless these are finite numbers, lo < hi."""
    ends = [real_numbers(name, end) for name, end in (("lo", lo), ("hi", hi))]
    if any(end.dim() or not bool(end.isfinite()) for end in ends) or not ends[0] < ends[1]:
        raise ValueError(f"lo: got {described(lo)} with hi = {described(hi)}, expected finite numbers, lo < hi")
    between: Any = constraints.interval
    return Parameter(shape, between(*(float(end) for end in ends)))


def Simplex(n: int) -> Parameter:
    """n numbers above 0 whose sum is 1, n at least 2; densities are those of the first n - 1.

    Raises TypeError, ValueError for another n.
    """
    return Parameter((whole(n, "n", 2, MAX_ELEMENTS),), constraints.simplex)


def Ordered(n: int) -> Parameter:
    """n numbers in ascending order, n at least 2. Raises TypeError, ValueError for another n."""
    return Parameter((whole(n, "n", 2, MAX_ELEMENTS),), OrderedVector())


def CorrelationCholesky(n: int) -> Parameter:
    """L ``[n, n]``, lower triangular, with L L^T a correlation matrix: as ``torch.distributions.LKJCholesky`` has it.

    n is at least 2. In float32 log |det| loses digits where correlations are near 1: ``dtype=torch.float64``. Raises
    TypeError, ValueError for another n.
    """
    return Parameter((whole(n, "n", 2, 1 << 15), n), constraints.corr_cholesky)


def _told(constraint: object) -> str:
    """A constraint in full: its class and what it was made with."""
    if isinstance(constraint, (list, tuple)):
        return f"[{', '.join(map(_told, constraint))}]"
    if not isinstance(constraint, constraints.Constraint):
        return str(constraint.tolist() if isinstance(constraint, torch.Tensor) else constraint)
    made_with = ", ".join(f"{name}={_told(value)}" for name, value in vars(constraint).items())
    name = type(constraint).__name__.strip("_")
    return f"{name}({made_with})" if made_with else name


class Layout:
    """Named parameters side by side in a flat vector of ``size`` real numbers.

    dtype: in which the parameters are computed; None is that of the vector.
    """

    def __init__(self, parameters: Mapping[str, Parameter], dtype: torch.dtype | None = None) -> None:
        right = 'a dict of parameters by name, such as {"mu": Real(()), "tau": Positive(())}'
        if not isinstance(parameters, Mapping):
            raise TypeError(f"parameters: got {described(parameters)}, expected {right}")
        if not parameters:
            raise ValueError(f"parameters: got none, expected {right}")
        for name, parameter in parameters.items():
            if not isinstance(name, str) or name == ENERGY or is_axis(name):
                raise ValueError(f"parameters: got the name {described(name)}, expected another")
            if not isinstance(parameter, Parameter):
                raise TypeError(f"parameters[{name!r}]: got {described(parameter)}, expected {right}")
        self.parameters, self.dtype = dict(parameters), dtype
        self.sizes = [math.prod(parameter.free_shape) for parameter in self.parameters.values()]
        self.size = sum(self.sizes)

    def constrain(self, y: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters by name, ``[..., *shape]``, of vectors ``[..., size]``."""
        return {name: x for name, x, _ in self._mapped(y)}

    def constrain_with_log_det(self, y: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """As :meth:`constrain`, and log |det df/dy| ``[...]``."""
        found, total = {}, y.new_zeros(y.shape[:-1], dtype=self.dtype or y.dtype)
        for name, x, part in self._mapped(y):
            parameter = self.parameters[name]
            found[name] = x
            if not isinstance(parameter.constraint, type(constraints.real)):
                log_det = parameter.transform.log_abs_det_jacobian(part, x)
                total = total + log_det.reshape(*total.shape, -1).sum(-1)
        return found, total

    def described(self) -> list[str]:
        """Name, shape and constraint of each, in order: equal for layouts of which vectors say the same."""
        return [f"{name} {list(p.shape)} {_told(p.constraint)}" for name, p in self.parameters.items()]

    @property
    def still(self) -> list[str]:
        """The names of all elements that cannot vary, as ArviZ has them."""
        return [label for label, moving in self._labels() if not moving]

    def _labels(self) -> list[tuple[str, bool]]:
        """The name of every element, and whether it can vary."""
        found: list[tuple[str, bool]] = []
        for name, parameter in self.parameters.items():
            places = itertools.product(*map(range, parameter.shape))
            labels = [f"{name}[{', '.join(map(str, at))}]" for at in places] if parameter.shape else [name]
            found += zip(labels, parameter.moving.flatten().tolist(), strict=True)
        return found

    def _mapped(self, y: torch.Tensor) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
        """Of every parameter its name, itself, and its part of y, contiguous: the same bits for any number of rows."""
        parts = torch.split_with_sizes(y.to(self.dtype or y.dtype), self.sizes, -1)
        of_each = zip(self.parameters.items(), parts, strict=True)
        shaped = ((name, p, part.contiguous().view(*y.shape[:-1], *p.free_shape)) for (name, p), part in of_each)
        return [(name, parameter.transform(part), part) for name, parameter, part in shaped]

    def unconstrain(self, values: object, name: str = "values") -> torch.Tensor:
        """The vectors ``[..., size]`` float64 of parameters ``[..., *shape]`` by name.

        Raises TypeError or ValueError for names, shapes or values that do not fit; ``name``: of ``values`` in errors.
        """
        if not isinstance(values, Mapping):
            raise TypeError(f"{name}: got {described(values)}, expected a dict of tensors by name")
        if missing := [one for one in self.parameters if one not in values]:
            raise ValueError(f"{name}: got no {missing[0]!r}, expected all of {', '.join(self.parameters)}")
        if extra := [one for one in values if one not in self.parameters]:
            raise ValueError(f"{name}: got {described(extra[0])}, expected only {', '.join(self.parameters)}")
        parts: list[torch.Tensor] = []
        lead: tuple[int, ...] | None = None
        for one, parameter in self.parameters.items():
            x, here = values[one], f"{name}[{one!r}]"
            if not isinstance(x, torch.Tensor) or not x.is_floating_point():
                raise TypeError(f"{here}: got {described(x)}, expected a float tensor [..., *shape]")
            check_data(x, here)
            shape, axes = tuple(parameter.shape), x.dim() - len(parameter.shape)
            if axes < 0 or tuple(x.shape[axes:]) != shape or (lead is not None and tuple(x.shape[:axes]) != lead):
                ahead = ", ".join(["..."] if lead is None else map(str, lead))
                right = f"[{', '.join([ahead, *map(str, shape)] if ahead else map(str, shape))}]"
                raise ValueError(f"{here}: got shape {list(x.shape)}, expected {right}")
            lead, x = tuple(x.shape[:axes]), x.double()
            y = parameter.transform.inv(x)
            if not bool(parameter.constraint.check(x).all()) or not bool(y.isfinite().all()):
                raise ValueError(f"{here}: got values outside of {parameter.constraint!r}, expected values inside it")
            parts.append(y.reshape(*lead, -1))
        return torch.cat(parts, -1)

    def elements(self, y: torch.Tensor) -> tuple[list[str], torch.Tensor]:
        """The names of all elements that can vary, as ArviZ has them, and their values ``[..., elements]``."""
        labels = self._labels()
        flat = torch.cat([x.reshape(*y.shape[:-1], -1) for x in self.constrain(y).values()], -1)
        moves = torch.tensor([moving for _, moving in labels], device=flat.device)
        return [label for label, moving in labels if moving], flat[..., moves]
