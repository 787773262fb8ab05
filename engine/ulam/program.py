"""A program: what a sampler compiles to. Pure float64 data, one row per fused update.

Row i, on registers r0 (the state x), r1, ...; model output m; noise z:

    D    = clip(kx r0 + km m, lo, hi)
    D    = clip(kx r0 + km m, -s, s) / s                    threshold rows; s = the lo-quantile of |D|, in [1, hi]
    D, z = g D, sqrt(g) z                                   normalise rows; g = (|z| / |D|)^2, D not clipped
    z    = exp(lv_m v + lv_b) z                             learned rows; v is the second half of the output
    r_j  = A[j, 0] r0 + ... + A[j, R-1] r_{R-1} + A[j, R] D + A[j, R+1] m + A[j, R+2] z     where writes[j]
    x    = mask (known_a y + known_b z') + (1 - mask) x     blending rows, after the update; y is the known image

s and |.| are over the elements of one chain.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache, wraps
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.table import MAX_REGISTERS, Table

from .denoiser import check_predicts, combine, eps_coefficients, sigma_data_of, x0_coefficients
from .schedules import Array, Numbers, Schedule, check_schedule

Flags: TypeAlias = npt.NDArray[np.bool_]
S = TypeVar("S")
FORMAT = "ulam-program-2"
COLUMNS = ("kx", "km", "lo", "hi", "lv_m", "lv_b", "c_in", "time", "known_a", "known_b")
FLAGS = ("learned", "threshold", "normalise", "evaluates")


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Program:
    """Rows of float64 coefficients, immutable, comparable and hashable by value.

    kx, km, lo, hi, lv_m, lv_b, c_in, time, known_a, known_b: [n]; A: [n, R, R + 3]; writes: [n, R] bool; learned,
    threshold, normalise, evaluates: [n] bool. Rows with known_a = known_b = 0 do not blend. `c_in[i]` scales the
    network's input at row i itself. `time[i]` is what the network is told, nan where the row does not evaluate it.
    The first state is `init_scale` times standard normal noise. `order` is the global order of accuracy;
    `predicts`, `sampler` and `schedule` say what the program was compiled from.

    Raises ValueError, naming the row and column, for a coefficient that is not finite (lo and hi may be
    infinite), for lo > hi, and for wrong shapes.
    """

    registers: int
    kx: Array
    km: Array
    lo: Array
    hi: Array
    lv_m: Array
    lv_b: Array
    c_in: Array
    A: Array
    writes: Flags
    learned: Flags
    evaluates: Flags
    time: Array
    known_a: Array
    known_b: Array
    threshold: Flags
    normalise: Flags
    init_scale: float
    order: int
    predicts: str
    sampler: str
    schedule: str

    def __post_init__(self) -> None:
        if not 1 <= self.registers <= MAX_REGISTERS:
            raise ValueError(f"registers must be 1 to {MAX_REGISTERS}, got {self.registers!r}")
        for name, shape in self._shapes().items():
            is_flag = name in ("writes", *FLAGS)
            array: npt.NDArray[Any] = np.array(getattr(self, name), dtype=np.bool_ if is_flag else np.float64)
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")
            if not is_flag:  # one nan and no -0.0, so that equal programs have equal bytes
                array = np.where(np.isnan(array), np.nan, array + 0.0)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if not (np.isfinite(self.init_scale) and self.init_scale > 0):
            raise ValueError(f"init_scale must be finite and above 0, got {self.init_scale!r}")
        self._check_values()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, registers = len(self.kx), self.registers
        return {
            **dict.fromkeys((*COLUMNS, *FLAGS), (n,)),
            "writes": (n, registers),
            "A": (n, registers, registers + 3),
        }

    def _check_values(self) -> None:
        for name in COLUMNS:
            values = getattr(self, name)
            bad = np.isnan(values) if name in ("lo", "hi") else ~np.isfinite(values)
            if name == "time":
                bad = self.evaluates != np.isfinite(values)
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(f"{name} must be {_rule(name)}, got {values[row]!s} at row {row}")
        for i, register, term in np.argwhere(~np.isfinite(self.A)):
            names = _names(self.registers)
            value = self.A[i, register, term]
            raise ValueError(f"A[{names[register]}, {names[term]}] must be finite, got {value!s} at row {i}")
        for i in np.flatnonzero(self.lo > self.hi):
            raise ValueError(f"lo must be at most hi, got {self.lo[i]!s} and {self.hi[i]!s} at row {i}")
        for i in np.flatnonzero(self.threshold & ~((self.lo > 0) & (self.lo <= 1) & (self.hi >= 1))):
            raise ValueError(
                f"lo must be a quantile in (0, 1] and hi at least 1 on threshold rows, got {self.lo[i]!s} and "
                f"{self.hi[i]!s} at row {i}"
            )
        for i in np.flatnonzero(self.threshold & self.normalise):
            raise ValueError(f"threshold and normalise must not both be set, they are at row {i}")
        reads_output = (self.A[:, :, self.registers : self.registers + 2] != 0).any(axis=(1, 2))
        for i in np.flatnonzero(reads_output & ~self.evaluates):
            raise ValueError(f"A must have no D or m term where the network is not evaluated, it has at row {i}")

    def __len__(self) -> int:
        return len(self.kx)

    @property
    def nfe(self) -> int:
        """The number of network evaluations."""
        return int(self.evaluates.sum())

    @cached_property
    def evaluating(self) -> list[int]:
        """The rows that evaluate the network, in order."""
        return [int(row) for row in np.flatnonzero(self.evaluates)]

    @property
    def needs_noise(self) -> bool:
        """Whether any row adds noise (the initial state aside)."""
        return bool((self.A[:, :, -1] != 0).any())

    @cached_property
    def needs_reductions(self) -> bool:
        """Whether any row needs a quantile or norms of a whole chain."""
        return bool((self.threshold | self.normalise).any())

    @cached_property
    def blends(self) -> Flags:
        """[n] bool: the rows that blend with a known image through a mask."""
        return np.asarray((self.known_a != 0) | (self.known_b != 0))

    @property
    def needs(self) -> tuple[str, ...]:
        """What a run needs beside the network: of "noise", "registers", "reductions", "known image"."""
        wants = {
            "noise": self.needs_noise,
            "registers": self.registers > 1,
            "reductions": self.needs_reductions,
            "known image": bool(self.blends.any()),
        }
        return tuple(name for name, wanted in wants.items() if wanted)

    def rescaled(self, scale: Array) -> Program:
        """The same sampler on the state x / scale: row i reads x / scale[i] and leaves x / scale[i + 1], [n + 1].

        Other registers and the network's input stay as they are. Used where another library keeps the state in other
        units (x / alpha instead of x).
        """
        scale = np.asarray(scale, dtype=np.float64)
        if scale.shape != (len(self) + 1,) or not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"scale must be [{len(self) + 1}] numbers above 0, got shape {list(scale.shape)}")
        before, after = scale[:-1], scale[1:]
        A, writes = self.A.copy(), self.writes.copy()
        unwritten = ~writes[:, 0] & (before != after)  # rows that leave x alone leave it in the units of before
        A[unwritten, 0] = np.eye(A.shape[2])[0]
        writes[unwritten, 0] = True
        A[:, :, 0] *= before[:, None]
        A[:, 0, :] /= after[:, None]
        return replace(
            self,
            kx=self.kx * before,
            c_in=self.c_in * before,
            A=A,
            writes=writes,
            known_a=self.known_a / after,
            known_b=self.known_b / after,
            init_scale=self.init_scale / float(scale[0]),
        )

    @cached_property
    def _key(self) -> tuple[Any, ...]:
        return tuple(
            value.tobytes() if isinstance(value := getattr(self, f.name), np.ndarray) else value for f in fields(self)
        )

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Program) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return (
            f"<Program {self.sampler} on {self.schedule}, predicts {self.predicts}: rows {len(self)}, "
            f"nfe {self.nfe}, registers {self.registers}, order {self.order}>"
        )

    def __str__(self) -> str:
        """The program as a table: row, time, updates."""
        lines = [f"  {'row':>4} {'time':>10}  update"]
        for row in range(len(self)):
            told = f"{self.time[row]:10.6g}" if self.evaluates[row] else f"{'-':>10}"
            lines.append(f"  {row:>4} {told}  {'; '.join(self._updates(row))}")
        return "\n".join([repr(self)[1:-1], f"  start: x = {self.init_scale:g} z", *lines])

    def _updates(self, row: int) -> list[str]:
        names, R = _names(self.registers), self.registers
        updates = []
        if (self.A[row, :, R] != 0).any():
            D = _terms((self.kx[row], self.km[row]), ("x", "m"))
            clipped = np.isfinite(self.lo[row]) or np.isfinite(self.hi[row])
            if self.threshold[row]:
                D = f"threshold({D}, {self.lo[row]:g}, {self.hi[row]:g})"
            elif clipped:
                D = f"clip({D}, {self.lo[row]:g}, {self.hi[row]:g})"
            updates.append(f"D = {D}")
        if self.normalise[row]:
            updates.append("g = (|z| / |D|)^2, D = g D, z = sqrt(g) z")
        if self.learned[row]:
            names = [*names[:-1], f"exp({self.lv_m[row]:+.6g} v {self.lv_b[row]:+.6g}) z"]
        written = np.flatnonzero(self.writes[row])
        updates += [f"{names[j]} <- {_terms(self.A[row, j], names)}" for j in written]
        if self.blends[row]:
            known = _terms((self.known_a[row], self.known_b[row]), ("y", "z'"))
            updates.append(f"x <- mask ({known}) + (1 - mask) x")
        return updates

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles go through JSON, so that they are immutable too."""
        return Program.from_json, (self.to_json(),)

    def to_json(self) -> str:
        """The program as JSON; `from_json` gives back an equal program, bit for bit."""
        data = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        return json.dumps({"format": FORMAT, **data}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that `to_json` wrote. Raises ValueError for anything else."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"text must be a program's JSON, it does not parse: {error}") from None
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"text must be a program's JSON (format {FORMAT!r})")
        expected = {f.name for f in fields(cls)}
        if data.keys() != expected:
            raise ValueError(f"text must hold just a program's fields, these differ: {data.keys() ^ expected}")
        for name, kind in (("registers", int), ("order", int), ("predicts", str), ("sampler", str), ("schedule", str)):
            if not isinstance(data[name], kind):
                raise ValueError(f"text must hold a program's fields in their types: {name} is {data[name]!r}")
        try:
            for name in (*COLUMNS, "A"):  # "inf" and "nan" are strings, JSON has no such numbers
                data[name] = np.array(data[name], dtype=np.float64)
            return cls(**data)
        except TypeError as error:
            raise ValueError(f"text must hold a program's fields in their types: {error}") from None

    def table(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Table:
        """The rows packed for the kernels: c_next[i] is c_in of the next evaluating row, 1 after the last."""
        c_next = np.ones(len(self))
        for row in reversed(range(len(self) - 1)):
            c_next[row] = self.c_in[row + 1] if self.evaluates[row + 1] else c_next[row + 1]
        return Table.pack(
            self.kx,
            self.km,
            self.lo,
            self.hi,
            self.lv_m,
            self.lv_b,
            c_next,
            self.A,
            self.writes,
            self.learned,
            threshold=self.threshold,
            normalise=self.normalise,
            dtype=dtype,
            device=device,
        )


@dataclass(frozen=True)
class DynamicThreshold:
    """clip=DynamicThreshold(): D <- clip(D, -s, s) / s with s the `quantile` of |D| over a chain, in [1, cap].

    [Imagen, Saharia 2022, sec. 2.3]. cap=1 is the static clip to [-1, 1]; diffusers calls it sample_max_value. Raises
    ValueError naming the argument.
    """

    quantile: float = 0.995
    cap: float = math.inf

    def __post_init__(self) -> None:
        for name, value in (("quantile", self.quantile), ("cap", self.cap)):
            if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile must lie in (0, 1], got {self.quantile!r}")
        if not self.cap >= 1:
            raise ValueError(f"cap must be at least 1, got {self.cap!r}")


Clip: TypeAlias = tuple[float, float] | DynamicThreshold | None


class ProgramBuilder:
    """Compiles rows that a sampler states in terms of x, r1, r2, ..., D, eps, m and z.

    `builder.rows(t, x={"x": a, "D": d, "z": c}, r1={"D": 1.0})` appends one row per element of `t`,
    coefficients being scalars or shaped like `t`. All registers are updated at once, from their old values.
    `D` is the x_0 estimate, `eps` the noise estimate that goes with the network's output. Without a clip
    and with no D kept in another register, D is folded into x and m in float64 (no cancellation at high
    noise, and the kernel computes no D); eps is always folded, and stays the network's own noise when D is
    clipped.
    """

    def __init__(
        self,
        schedule: Schedule,
        predicts: str,
        *,
        registers: int = 1,
        clip: Clip = None,
    ) -> None:
        check_schedule(schedule)
        self.schedule, self.predicts, self.registers, self.clip = schedule, predicts, registers, clip
        self.sigma_data = sigma_data_of(schedule, predicts)
        self._blocks: list[dict[str, npt.NDArray[Any]]] = []

    def rows(
        self,
        t: Numbers,
        *,
        levels: tuple[Array | float, Array | float] | None = None,
        log_scale: tuple[Array | float, Array | float] | None = None,
        normalise: bool = False,
        known: tuple[Array | float, Array | float] | None = None,
        **updates: Mapping[str, Array | float],
    ) -> None:
        """Append rows that evaluate the network at `t`.

        levels: (alpha, sigma) there, default `schedule.levels(t)`. log_scale: (f, g) makes z exp(f v + g) z. normalise:
        D stands for the score (x's own, -eps / sigma) and is scaled with z by their norms (see the module's docstring).
        known: (a, b) of the known image and of noise, blended in through a mask after the update.
        Raises ValueError where the prediction leaves D or eps undefined, or for an unknown register or term.
        """
        t = np.atleast_1d(np.asarray(t, dtype=np.float64))
        alpha, sigma = (_full(t, level) for level in levels or self.schedule.levels(t))
        about = (self.predicts, alpha, sigma, self.sigma_data)
        kx, km, c_in = x0_coefficients(*about)
        if normalise:
            kx, km = (-k / sigma for k in eps_coefficients(*about))
        keeps_D = normalise or self.clip is not None or any("D" in u for name, u in updates.items() if name != "x")
        block = self._block(len(t), updates, drop={"eps"} if keeps_D else {"D", "eps"})
        for name, terms in updates.items():
            on_x, on_m = combine(*about, D=None if keeps_D else terms.get("D"), eps=terms.get("eps"))
            j = self._index(name)
            block["A"][:, j, 0] += on_x
            block["A"][:, j, self.registers + 1] += on_m
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
        names = [*_names(self.registers), *(["eps"] if drop else [])]
        A = np.zeros((n, self.registers, self.registers + 3))
        writes = np.zeros((n, self.registers), dtype=np.bool_)
        for name, terms in updates.items():
            writes[:, self._index(name)] = True
            for term, value in terms.items():
                if term not in names:
                    raise ValueError(f"{name} has unknown term {term!r}: use one of {', '.join(names)}")
                if term not in drop:
                    A[:, self._index(name), names.index(term)] += value
        return {"A": A, "writes": writes}

    def _index(self, name: str) -> int:
        if name not in _names(self.registers)[: self.registers]:
            raise ValueError(f"unknown register {name!r} in a program of {self.registers}")
        return _names(self.registers).index(name)


def compiled(program: Callable[[S, Schedule, str], Program]) -> Callable[..., Program]:
    """Decorates a sampler's `program(self, schedule, predicts)`: compiles each such triple once."""
    cached = lru_cache(maxsize=256)(program)

    @wraps(program)
    def checked(self: S, schedule: Schedule, predicts: str = "eps") -> Program:
        check_schedule(schedule)
        check_predicts(predicts)
        return cached(self, schedule, predicts)

    return checked


def _names(registers: int) -> list[str]:
    """The terms of a row, in the order of A's last axis."""
    return ["x", *(f"r{j}" for j in range(1, registers)), "D", "m", "z"]


def _full(like: Array, value: Array | Flags | float | bool) -> npt.NDArray[Any]:
    return np.broadcast_to(np.asarray(value), like.shape)


def _terms(coefficients: npt.ArrayLike, names: list[str] | tuple[str, ...]) -> str:
    pairs = zip(np.asarray(coefficients), names, strict=True)
    return " ".join(f"{value:+.6g} {name}" for value, name in pairs if value != 0) or "0"


def _rule(name: str) -> str:
    return {"lo": "a number", "hi": "a number", "time": "finite just where the row evaluates"}.get(name, "finite")


def _plain(value: Any) -> Any:
    """JSON's own types; floats as shortest exact decimals, those that are not finite as strings."""
    if isinstance(value, np.ndarray):
        return [_plain(element) for element in value.tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return value if not isinstance(value, float) or np.isfinite(value) else str(value)
