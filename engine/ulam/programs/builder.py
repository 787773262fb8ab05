"""From a sampler to its `Program`: rows stated in the field's terms, folded into coefficients in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..schedules import Array, Numbers, Schedule, check_schedule
from .clip import Clip, DynamicThreshold
from .predictions import check_predicts, combine, eps_coefficients, x0_coefficients
from .program import COLUMNS, FLAGS, SELDOM, Flags, Program, term_names

S = TypeVar("S")


class ProgramBuilder:
    """Compiles rows that a sampler states in terms of x, r1, r2, ..., D, eps, m and z.

    `builder.rows(t, x={"x": a, "D": d, "z": c}, r1={"D": 1.0})` appends one row per element of `t`,
    coefficients being scalars or shaped like `t`. All registers are updated at once, from their old values.
    `D` is the x_0 estimate, `eps` the noise estimate of the same output. Without a clip and with
    no D kept in another register, D is folded into x and m in float64 (no cancellation at high noise, and
    the kernel computes no D); eps is always folded, and does not change when D is clipped.

    `unguided` adds the terms `D_u` and `eps_u`, the same estimates of the unguided branch's output, which are never
    clipped, for rows such as CFG++'s [Chung 2024]; it takes a register of its own, behind the others. Without guidance
    they are those of the output itself.
    """

    def __init__(
        self,
        schedule: Schedule,
        predicts: str,
        *,
        registers: int = 1,
        clip: Clip = None,
        unguided: bool = False,
    ) -> None:
        check_schedule(schedule)
        check_predicts(predicts, schedule)
        self.schedule, self.predicts, self.clip, self.unguided = schedule, predicts, clip, unguided
        self.registers = registers + unguided
        self._blocks: list[dict[str, npt.NDArray[Any]]] = []

    def rows(
        self,
        t: Numbers,
        *,
        levels: tuple[Array | float, Array | float] | None = None,
        log_scale: tuple[Array | float, Array | float] | None = None,
        normalise: bool = False,
        known: tuple[Array | float, Array | float] | None = None,
        second: Array | float = np.nan,
        **updates: Mapping[str, Array | float],
    ) -> None:
        """Append rows that evaluate the network at `t`.

        levels: (alpha, sigma) at `t`, default `schedule.levels(t)`. log_scale: (f, g) makes z exp(f v + g) z.
        normalise: D is the score -eps / sigma, and D and z are scaled by their norms (`ulam.programs.program`).
        known: (a, b) of the known image and of noise, blended in through a mask after the update.
        second: another time that the network is told beside `t`, for flow maps.
        Raises ValueError where the prediction leaves D or eps undefined, or for an unknown register or term.
        """
        t = np.atleast_1d(np.asarray(t, dtype=np.float64))
        alpha, sigma = (_full(t, level) for level in levels or self.schedule.levels(t))
        about = (self.predicts, alpha, sigma, self.schedule)
        kx, km, c_in = x0_coefficients(*about)
        if normalise:
            kx, km = (-k / sigma for k in eps_coefficients(*about))
        unguided = self.registers - 1 if self.unguided else 0
        keeps_D = normalise or self.clip is not None or any("D" in u for name, u in updates.items() if name != "x")
        folded = {"eps"} if keeps_D else {"D", "eps"}
        block = self._block(len(t), updates, drop=folded | ({"D_u", "eps_u"} if self.unguided else set()))
        for name, terms in updates.items():
            on_x, on_m = combine(*about, D=None if keeps_D else terms.get("D"), eps=terms.get("eps"))
            j = self._index(name)
            block["A"][:, j, 0] += on_x
            block["A"][:, j, self.registers + 1] += on_m
            if self.unguided:
                on_x, on_u = combine(*about, D=terms.get("D_u"), eps=terms.get("eps_u"))
                block["A"][:, j, 0] += on_x
                block["A"][:, j, unguided] += on_u
        threshold = np.zeros(len(t), dtype=np.bool_)
        lo: Array | float = -np.inf
        hi: Array | float = np.inf
        if isinstance(self.clip, DynamicThreshold) and not normalise:
            threshold = (block["A"][:, :, self.registers] != 0).any(axis=1)
            lo, hi = np.where(threshold, self.clip.quantile, lo), np.where(threshold, self.clip.cap, hi)
        elif isinstance(self.clip, tuple) and not normalise:
            lo, hi = self.clip
        lv_m, lv_b = log_scale or (0.0, 0.0)
        known_a, known_b = known or (0.0, 0.0)
        values: dict[str, Array | Flags | float | bool] = {
            "kx": kx,
            "km": km,
            "c_in": c_in,
            "time": t,
            "lo": lo,
            "hi": hi,
            "lv_m": lv_m,
            "lv_b": lv_b,
            "known_a": known_a,
            "known_b": known_b,
            "evaluates": True,
            "learned": log_scale is not None,
            "threshold": threshold,
            "normalise": normalise,
            "second": second,
            "unguided": np.where((block["A"][:, :, unguided] != 0).any(axis=1), unguided, 0),
            "guidance": 1.0,
        }
        self._blocks.append(block | {name: _full(t, value) for name, value in values.items()})

    def moves(
        self,
        *,
        known: tuple[float, float] | None = None,
        **updates: Mapping[str, Array | float],
    ) -> None:
        """Append one row that does not evaluate the network: terms x, r1, ..., z only; `known` as in `rows`."""
        known_a, known_b = known or (0.0, 0.0)
        values: dict[str, float | bool] = {
            **dict.fromkeys(COLUMNS, 0.0),
            **dict.fromkeys(FLAGS, False),
            **SELDOM,
            "c_in": 1.0,
            "time": np.nan,
            "lo": -np.inf,
            "hi": np.inf,
            "known_a": known_a,
            "known_b": known_b,
        }
        block = self._block(1, updates, drop=set())
        self._blocks.append(block | {name: _full(np.ones(1), value) for name, value in values.items()})

    def program(self, sampler: str, order: int = 1, init_scale: float | None = None) -> Program:
        """The program of all rows. `init_scale` defaults to the schedule's at the first evaluation."""
        columns = {name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}
        if init_scale is None:
            init_scale = self.schedule.init_scale(float(columns["time"][columns["evaluates"]][0]))
        return Program(
            registers=self.registers,
            **columns,
            init_scale=init_scale,
            order=order,
            predicts=self.predicts,
            sampler=sampler,
            schedule=repr(self.schedule),
        )

    def _block(
        self, n: int, updates: Mapping[str, Mapping[str, Array | float]], drop: set[str]
    ) -> dict[str, npt.NDArray[Any]]:
        """A and writes of `n` rows, without the terms in `drop`."""
        names = [*term_names(self.registers), *sorted(drop - {"D"})]
        A = np.zeros((n, self.registers, self.registers + 3))
        writes = np.zeros((n, self.registers), dtype=np.bool_)
        for name, terms in updates.items():
            writes[:, self._index(name)] = True
            for term, value in terms.items():
                if term not in names:
                    raise ValueError(f"{name}: got unknown term {term!r}, expected one of {', '.join(names)}")
                if term not in drop:
                    A[:, self._index(name), names.index(term)] += value
        return {"A": A, "writes": writes}

    def _index(self, name: str) -> int:
        own = term_names(self.registers)[: self.registers - self.unguided]  # all but the one that the output comes in
        if name not in own:
            expected = ", ".join(own)
            raise ValueError(f"updates: got unknown register {name!r}, expected one of {expected}")
        return term_names(self.registers).index(name)


def compiled(program: Callable[[S, Schedule, str], Program]) -> Callable[..., Program]:
    """Decorates a sampler's `program(self, schedule, predicts)`: each such triple is compiled once."""
    cached = lru_cache(maxsize=256)(program)

    @wraps(program)
    def checked(self: S, schedule: Schedule, predicts: str = "eps") -> Program:
        check_schedule(schedule)
        check_predicts(predicts, schedule)
        return cached(self, schedule, predicts)

    return checked


def _full(like: Array, value: Array | Flags | float | bool) -> npt.NDArray[Any]:
    return np.broadcast_to(np.asarray(value), like.shape)
