"""Rules of guidance beyond a weighted difference: adaptive projected guidance, CFG-Zero*.

A rule is chosen by ``guidance_rule`` of :func:`ulam.sample` and :meth:`ulam.Engine.submit`; weights, and the
unconditional inputs, are given as for classifier-free guidance. Every rule gives m = p m_c + q m_u + s x with numbers
p, q, s of each chain, made of inner products over that chain alone: no chain depends on its batch-mates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from ulam_kernels.arguments import choice, described, real, whole

from .lazily import suggests

__all__ = ["APG", "CFGZero", "Rule"]


@dataclass(frozen=True)
class APG:
    """Adaptive projected guidance: less of the part that oversaturates [Sadat 2024].

    With D the x_0 estimates, d = D_c - D_u + momentum d', d' that of the evaluation before (0 at the first), d scaled
    down to the length ``norm`` where it is longer, and d = d_par + d_orth along and across D_c:

        D = D_c + (w - 1) (d_orth + eta d_par)

    eta: how much of the parallel part is kept; 1 without momentum and norm is classifier-free guidance. norm: in the
    units of the data, over all elements of a chain; None for no bound. momentum: in (-1, 1), usually negative.
    Raises TypeError or ValueError for an invalid number.
    """

    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        real(self.eta, "eta", "a finite number")
        if self.norm is not None and not real(self.norm, "norm", "a number above 0, or None") > 0:
            raise ValueError(f"norm: got {self.norm}, expected a number above 0, or None")
        if not -1 < real(self.momentum, "momentum", "a number in (-1, 1)") < 1:
            raise ValueError(f"momentum: got {self.momentum}, expected a number in (-1, 1)")


@dataclass(frozen=True)
class CFGZero:
    """CFG-Zero*: the unconditional output at the length that fits the conditional one best [Fan 2025].

        m = s m_u + w (m_c - s m_u),   s = <m_c, m_u> / <m_u, m_u>

    zero_steps: the first evaluations whose output is taken as 0, which leaves x as it is; for predicts="flow".
    Raises TypeError or ValueError for an invalid number.
    """

    zero_steps: int = 0

    def __post_init__(self) -> None:
        whole(self.zero_steps, "zero_steps", 0, 1 << 31)


Rule: TypeAlias = APG | CFGZero
GuidanceSchedule: TypeAlias = "Sequence[float] | Callable[[float], float]"


NAMES: dict[str, type[Rule]] = {"apg": APG, "cfg-zero": CFGZero}


def rule_of(text: object) -> Rule:
    """The rule of a text, its name and arguments: ``apg``, ``apg:eta=0.5,norm=15,momentum=-0.5``, ``cfg-zero``.

    Raises TypeError for what is no text, ValueError for an unknown name, an unknown argument or an invalid number.
    """
    if not isinstance(text, str):
        raise TypeError(f"guidance_rule: got {described(text)}, expected {' or '.join(NAMES)}")
    name, _, given = text.partition(":")
    kind = NAMES.get(choice(name.strip().lower().replace("_", "-"), "guidance_rule", NAMES))
    assert kind is not None
    numbers: dict[str, Any] = {}
    for part in filter(None, given.split(",")):
        key, _, value = part.partition("=")
        key = choice(key.strip(), "guidance_rule", [field.name for field in fields(kind)])
        if key in numbers:
            raise ValueError(f"guidance_rule: got {key} twice, expected it once")
        try:
            numbers[key] = int(value) if kind is CFGZero else float(value)
        except ValueError:
            raise ValueError(f"guidance_rule: got {key}={value!r:.60}, expected a number") from None
    return kind(**numbers)


def check_rule(rule: object) -> None:
    """Raises TypeError unless it is a rule, or None."""
    if rule is not None and not isinstance(rule, APG | CFGZero):
        raise TypeError(f"guidance_rule: got {described(rule)}, expected one of ulam.guidance, such as APG(), or None")


suggests(__name__)
