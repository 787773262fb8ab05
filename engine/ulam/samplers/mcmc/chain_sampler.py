"""What the Markov chain samplers share: their settings, which may be one a chain, and the checks of them.

Each samples p(x) = exp(-E(x) / T) / Z by the score s = -grad E. P is a diagonal preconditioner (the inverse mass of
the samplers with velocities), z ~ N(0, I). Noise is noise-v1 at (seed, chain, 16 step), acceptance uniforms are its tag
2, those of HMC's path length its stage 2: a chain's bits depend on its id, the seed and its own settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, TypeAlias

import numpy.typing as npt
import torch

import ulam_kernels.mcmc as ops
from ulam_kernels.arguments import choice, described
from ulam_kernels.validation import real_numbers

from ...arguments import per_chain
from .chain_state import ChainState, Columns
from .low_rank import Coordinates, LowRank
from .masses import CENTERS, CenterOfMass, Masses

PerChain: TypeAlias = "float | Sequence[float] | torch.Tensor"
Preconditioner: TypeAlias = "float | Sequence[float] | npt.NDArray[Any] | torch.Tensor | LowRank | None"


class ChainSampler(Masses, ABC):
    """A transition of Markov chains and its settings, of which those in ``per_chain`` may be one a chain ``[chains]``.

    Args:
        step: the step size, above 0. Samplers with a ``rate`` take None: the warm-up of :func:`ulam.mcmc.run` finds it.
        temperature: T, at least 0 (above 0 where there is a Metropolis test).
        preconditioner: P ``[*shape]``, or what broadcasts to it, finite and above 0; None is the identity. In
            :func:`ulam.mcmc.run` also a :class:`ulam.mcmc.LowRank`.
        mass: in place of P = 1 / mass: one number, or ``[*shape]`` with sizes of 1 where it is the same, such as
            ``[atoms, 1]`` for states ``[atoms, 3]``. Units are those of the energy E and of x: with E and T in eV, x in
            angstrom and masses in u, a time is in angstrom sqrt(u / eV) = 10.1805 fs. A warm-up keeps masses.
        center_of_mass: "fixed" keeps that of states ``[atoms, dimensions]`` at the origin, where first states are moved
            to, and first velocities lose their share of its motion. p is the law given that place, velocities have
            (atoms - 1) dimensions degrees of freedom. For samplers whose velocities are free in length.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """

    step: PerChain | None
    temperature: PerChain
    preconditioner: Preconditioner

    per_chain: ClassVar[tuple[str, ...]] = ("step", "temperature")
    kernel: ClassVar[str | None] = None  # its name in `ulam_kernels.mcmc.run`, None where no launch has it
    adjusted: ClassVar[bool] = False  # whether it has a Metropolis test
    rate: ClassVar[float | None] = None  # the acceptance to adapt its steps to where none is given
    has_velocity: ClassVar[bool] = False  # whether its state keeps a velocity from step to step
    step_is_a_time: ClassVar[bool] = False  # whether x moves by step times a velocity: the step goes as sqrt(T) then
    has_kinetic_energy: ClassVar[bool] = True  # whether its velocities are free in length
    most_steps: ClassVar[int] = 1 << 60  # of a chain, whose noise noise-v1 can number

    def __post_init__(self) -> None:
        if self.step is not None or self.rate is None:
            check_numbers("step", self.step, above=0)
        if self.adjusted:
            check_numbers("temperature", self.temperature, above=0)
        else:
            check_numbers("temperature", self.temperature, least=0)
        if self.preconditioner is not None and not isinstance(self.preconditioner, LowRank):
            right = "a tensor [*shape] of finite numbers above 0, or None"
            p = real_numbers("preconditioner", self.preconditioner)
            if (wrong := ~((p > 0) & torch.isfinite(p))).any():
                raise ValueError(f"preconditioner: got {p[wrong][0].item():g}, expected {right}")
        self._check_masses()

    def _check_masses(self) -> None:
        if self.mass is not None:
            if self.preconditioner is not None:
                raise ValueError("mass: got one beside preconditioner, expected one of the two: P is 1 / mass")
            m = real_numbers("mass", self.mass)
            if (wrong := ~((m > 0) & torch.isfinite(m) & torch.isfinite(1 / m))).any():
                raise ValueError(f"mass: got {m[wrong][0].item():g}, expected finite numbers above 0, or None")
        choice(self.center_of_mass, "center_of_mass", CENTERS)
        if self.center_of_mass == "fixed" and not self.has_kinetic_energy:
            raise ValueError(
                f"center_of_mass: got 'fixed', expected 'free': velocities of {type(self).__name__} have length 1"
            )

    def settings(self) -> dict[str, Any]:
        """The class's name and every setting, tensors as copies: equal for samplers that do the same."""
        return {"name": type(self).__name__} | {field.name: copied(getattr(self, field.name)) for field in fields(self)}

    def scale(self, x: torch.Tensor) -> torch.Tensor | None:
        """sqrt(P) like one chain of x ``[B, *shape]``. Raises ValueError for a P or masses of another shape.

        Also for a P of low rank, which only :func:`ulam.mcmc.run` takes.
        """
        if isinstance(self.preconditioner, LowRank):
            raise ValueError("preconditioner: got a LowRank, expected P [*shape] or None outside of ulam.mcmc.run")
        p = self._inverse_mass(x.shape[1:])
        return None if p is None else p.sqrt().to(x.device, x.dtype).contiguous()

    def coordinates(self, x: torch.Tensor) -> Coordinates | None:
        """Those in which chains x ``[B, *shape]`` have unit mass by a P of low rank; None where P is diagonal.

        Raises ValueError for a P of another shape, and beside ``clip`` or a fixed centre of mass.
        """
        p = self.preconditioner
        if not isinstance(p, LowRank):
            return None
        if p.scale.shape != x.shape[1:]:
            raise ValueError(f"preconditioner: got shape {[*p.scale.shape]}, expected {[*x.shape[1:]]} like a chain")
        if self.center_of_mass == "fixed" or self.bounds != (-float("inf"), float("inf")):
            raise ValueError("preconditioner: got a LowRank, expected P [*shape] beside clip or center_of_mass='fixed'")
        if not bool(torch.isfinite(p.center.to(x.dtype)).all()):
            raise ValueError(f"center: got {float(p.center.abs().max()):g}, expected numbers finite in {x.dtype}")
        return p.on(x.device)

    def _inverse_mass(self, shape: Sequence[int]) -> torch.Tensor | None:
        """P ``[*shape]`` float64, or None."""
        name, right = "preconditioner", f"{list(shape)} like a chain, or what broadcasts to it"
        if self.mass is not None:
            name, right = "mass", f"{list(shape)} like a chain with sizes of 1 where it is the same, or one number"
        given = self.preconditioner if self.mass is None else self.mass
        if given is None:
            return None
        p = torch.as_tensor(given, dtype=torch.float64).detach()
        if self.mass is not None and p.dim() not in (0, len(shape)):  # [3] of 3 atoms would be that of 3 directions
            raise ValueError(f"{name}: got shape {list(p.shape)}, expected {right}")
        try:
            p = p.expand(tuple(shape))
        except RuntimeError:
            raise ValueError(f"{name}: got shape {list(p.shape)}, expected {right}") from None
        return p if self.mass is None else 1 / p

    def center(self, x: torch.Tensor) -> CenterOfMass | None:
        """What keeps the centre of mass of chains x ``[B, atoms, dimensions]`` fixed, or None where it is free.

        Raises ValueError for states of another shape, of one atom, or with masses that differ between directions.
        """
        if self.center_of_mass == "free":
            return None
        shape = x.shape[1:]
        if len(shape) != 2 or shape[0] < 2:
            right = "[atoms, dimensions] of at least two atoms for center_of_mass='fixed'"
            raise ValueError(f"shape: got {list(shape)}, expected {right}")
        p = self._inverse_mass(shape)
        p = torch.ones(tuple(shape), dtype=torch.float64) if p is None else p
        if not torch.equal(p, p[:, :1].expand_as(p)):
            raise ValueError("mass: got atoms whose mass differs between directions, expected [atoms, 1]")
        return CenterOfMass(1 / p[:, 0], x.device)

    def check_states(self, shape: Sequence[int], v: torch.Tensor | None = None) -> None:
        """Raises ValueError for states of a shape, or first velocities ``[chains, *shape]``, that it cannot move."""
        return None

    def at_temperature(self, v: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        """Velocities ``[B, *shape]`` of ``temperature`` ``[B]``, float64, times that of ``v``."""
        return v * per_chain(temperature.sqrt().to(v.dtype), v)

    @property
    def bounds(self) -> tuple[float, float]:
        """(lo, hi), to which states are clipped after every step."""
        return -float("inf"), float("inf")

    @property
    def leaps(self) -> int:
        """Evaluations of the score in one step."""
        return 1

    def leap_counts(self, given: torch.Tensor, step: torch.Tensor) -> torch.Tensor | None:
        """Leapfrog steps per transition ``[B]`` int64 after adaptation from the step ``given`` to ``step``, or None."""
        return None

    @abstractmethod
    def coefficients(self, step: torch.Tensor, temperature: torch.Tensor, rows: torch.Tensor, index: int) -> Columns:
        """The four columns of step ``index`` for `ulam_kernels.mcmc.run`, float64 ``[B]``, of these rows of the run."""

    @abstractmethod
    def transition(self, state: ChainState, c: Columns) -> torch.Tensor | None:
        """Make one step in place. Returns the log acceptance ratio ``[B]`` float64, None without a Metropolis test."""


def copied(value: object) -> object:
    """Numbers as a float64 copy on the CPU; None, words and what is of low rank stay what they are."""
    return (
        value
        if value is None or isinstance(value, (str, LowRank))
        else torch.as_tensor(value, dtype=torch.float64).detach().to("cpu", copy=True)
    )


def langevin_step(state: ChainState, c: Columns, bounds: tuple[float, float], out: torch.Tensor) -> torch.Tensor:
    """x + step P s + noise_scale sqrt(P) z, clipped to the bounds, in ``out``; c begins with step and noise_scale."""
    return ops.langevin(
        state.x, state.score, c[0], c[1], scale=state.scale, lo=bounds[0], hi=bounds[1],
        **state.ids(), out=out, backend=state.backend,
    )  # fmt: skip


def check_numbers(
    name: str, value: object, *, above: float | None = None, least: float | None = None, finite: bool = True
) -> torch.Tensor:
    """``value`` as float64, ``[]`` or ``[chains]``. Raises TypeError or ValueError for any number out of range."""
    tensor = real_numbers(name, value)
    if tensor.dim() > 1:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected a number, or one a chain")
    bad = tensor.isnan() | (tensor.isinf() if finite else torch.zeros_like(tensor, dtype=torch.bool))
    if above is not None:
        bad |= tensor <= above
    if least is not None:
        bad |= tensor < least
    if bool(bad.any()):
        right = f"above {above:g}" if above is not None else f"of at least {least:g}"
        raise ValueError(f"{name}: got {tensor[bad].flatten()[0].item():g}, expected a finite number {right}")
    return tensor


def select_rows(name: str, value: PerChain, rows: torch.Tensor, chains: int | None = None) -> torch.Tensor:
    """``value`` of these rows, float64 on their device. Raises ValueError unless it is one number, or one a chain."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().to(rows.device)
    if tensor.dim() == 0:
        return tensor.expand(len(rows)).contiguous()
    if chains is not None and len(tensor) != chains:
        raise ValueError(f"{name}: got {len(tensor)} numbers, expected one, or one for each of {chains} chains")
    return tensor[rows]


def check_clip_box(clip: object) -> None:
    """Raises ValueError unless ``clip`` is None or a pair lo < hi."""
    if clip is None:
        return
    if not isinstance(clip, (tuple, list)) or len(clip) != 2:
        raise ValueError(f"clip: got {described(clip)}, expected None or a pair (lo, hi) with lo < hi")
    lo, hi = (real_numbers("clip", end) for end in clip)
    if lo.dim() or hi.dim() or not lo < hi:
        raise ValueError(f"clip: got {described(clip)}, expected None or a pair (lo, hi) with lo < hi")
