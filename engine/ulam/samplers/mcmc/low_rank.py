"""A mass that is diagonal but for some directions, as a linear change of coordinates in which it is 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ulam_kernels.arguments import described
from ulam_kernels.validation import real_numbers

from .chain_state import Evaluate, Evaluated
from .masses import added

WORK = 1 << 22  # products that are held at once
ORTHONORMAL = 1e-6  # how far products of the vectors may be from 0 and 1


def moved(evaluate: Evaluate, coordinates: Coordinates) -> Evaluate:
    """Energy and score in other coordinates, both in the dtype of the states there."""

    def elsewhere(y: torch.Tensor, wanted: bool) -> Evaluated:
        energy, score = evaluate(coordinates.place(y).to(y.dtype), wanted)
        return energy, coordinates.pull(score).to(y.dtype)

    return elsewhere


@dataclass(frozen=True, eq=False)
class LowRank:
    """P = S (1 + sum_k (values_k - 1) u_k u_k') S, with S the diagonal of ``scale`` and u_k the ``vectors``.

    As the ``preconditioner`` of a sampler in :func:`ulam.mcmc.run`, where chains move in the coordinates y of
    x = center + A y with A = S (1 + sum_k (sqrt(values_k) - 1) u_k u_k'), so that A A' = P: by the energy of x and the
    score A' s, with unit mass. In float64 by sums in a fixed order: a chain's bits depend on no other. What is returned
    and recorded is x, but for whitened velocities and ``Position.x``. :class:`ulam.mcmc.Warmup` finds one.

    Args:
        scale: ``[*shape]`` of a state, above 0. vectors: ``[k, *shape]``, orthonormal. values: ``[k]``, above 0.
        center: ``[*shape]``, where y = 0, which only rounding depends on; None is 0.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """

    scale: Any
    vectors: Any
    values: Any
    center: Any = None

    def __post_init__(self) -> None:
        center = torch.zeros(()) if self.center is None else self.center
        given = {"scale": self.scale, "vectors": self.vectors, "values": self.values, "center": center}
        for name, value in given.items():
            tensor = real_numbers(name, value).detach().clone()
            if not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name}: got numbers that are not finite, expected finite ones")
            if name in ("scale", "values") and bool((tensor <= 0).any()):
                raise ValueError(f"{name}: got {float(tensor.min()):g}, expected numbers above 0")
            object.__setattr__(self, name, tensor)
        shape = tuple(self.scale.shape)
        if not shape:
            raise ValueError(f"scale: got {described(given['scale'])}, expected a tensor [*shape] like a state")
        if self.values.dim() != 1:
            raise ValueError(f"values: got shape {[*self.values.shape]}, expected [k], one a vector")
        if self.center.dim() == 0:
            object.__setattr__(self, "center", self.center.expand(shape))
        for name, right in (("center", shape), ("vectors", (len(self.values), *shape))):
            if (came := tuple(getattr(self, name).shape)) != right:
                raise ValueError(f"{name}: got shape {[*came]}, expected {[*right]} by scale and values")
        flat = self.vectors.flatten(1)
        if bool(((flat @ flat.T - torch.eye(len(flat), dtype=flat.dtype)).abs() > ORTHONORMAL).any()):
            raise ValueError("vectors: got some that are not orthonormal, expected u_j . u_k = 1 where j = k, else 0")

    def __eq__(self, other: object) -> bool:
        """Whether both have the same numbers."""
        if not isinstance(other, LowRank):
            return NotImplemented
        return all(torch.equal(a, b) for a, b in zip(self._parts(), other._parts(), strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"LowRank(shape={[*self.scale.shape]}, rank={len(self.values)})"

    def _parts(self) -> tuple[torch.Tensor, ...]:
        return self.scale, self.vectors, self.values, self.center

    def on(self, device: torch.device) -> Coordinates:
        """Its coordinates, for states on a device."""
        return Coordinates(*(part.to(device) for part in self._parts()))


class Coordinates:
    """x = center + A y and back, for states ``[B, *shape]``; what they return is float64."""

    def __init__(self, scale: torch.Tensor, vectors: torch.Tensor, values: torch.Tensor, center: torch.Tensor) -> None:
        self._scale, self._vectors, self._center = scale, vectors.flatten(1), center
        self._longer, self._shorter = values.sqrt() - 1, 1 / values.sqrt() - 1

    def place(self, y: torch.Tensor) -> torch.Tensor:
        """x = center + A y."""
        return self._center + self.velocity(y)

    def velocity(self, v: torch.Tensor) -> torch.Tensor:
        """A v: dx / dt of a velocity of y."""
        return self._scale * self._stretched(v.double(), self._longer)

    def back(self, x: torch.Tensor) -> torch.Tensor:
        """y of x."""
        return self._stretched((x.double() - self._center) / self._scale, self._shorter)

    def pull(self, score: torch.Tensor) -> torch.Tensor:
        """A' s: the score of y, of that of x."""
        return self._stretched(self._scale * score.double(), self._longer)

    def push(self, score: torch.Tensor) -> torch.Tensor:
        """The score of x, of that of y."""
        return self._stretched(score.double(), self._shorter) / self._scale

    def _stretched(self, v: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        """v + sum_k by_k (u_k . v) u_k, in an order that does not depend on B."""
        flat, size = v.flatten(1), max(WORK // max(self._vectors.numel(), 1), 1)
        if not len(by):
            return v
        parts = [self._added(part, by) for part in torch.split(flat, size)]
        return (flat + torch.cat(parts)).view_as(v) if parts else v

    def _added(self, v: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        along = by * added(v[:, :, None] * self._vectors.T)
        return added(along[:, :, None] * self._vectors)
