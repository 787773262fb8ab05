"""A program: what a sampler compiles to. Pure float64 data, one row per fused update.

Row i, on registers r0 (the state x), r1, ...; model output m; noise z:

    r_u  = the output of the unguided branch                where unguided = u > 0; m's own without guidance
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
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.table import MAX_REGISTERS, Table

from ..files import parse_json
from ..schedules import Array
from .values import flags, numbers, plain

Flags: TypeAlias = npt.NDArray[np.bool_]
FORMAT = "ulam-program-2"
COLUMNS = ("kx", "km", "lo", "hi", "lv_m", "lv_b", "c_in", "time", "known_a", "known_b")
FLAGS = ("learned", "threshold", "normalise", "evaluates")
LONG, FIRST, LAST = 40, 12, 6  # rows of a program beyond which only its first and last ones are printed
SELDOM = {"second": np.nan, "unguided": 0.0, "guidance": 1.0}  # columns that few programs have, and their defaults


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Program:
    """Rows of float64 coefficients, immutable, comparable and hashable by value.

    kx, km, lo, hi, lv_m, lv_b, c_in, time, known_a, known_b: [n]; A: [n, R, R + 3]; writes: [n, R] bool; learned,
    threshold, normalise, evaluates: [n] bool. Rows with known_a = known_b = 0 do not blend. `c_in[i]` scales the
    network's input at row i itself. `time[i]` is the network's t, nan where the row does not evaluate it.
    second, unguided, guidance: [n], by default in no row. second[i] is the other time that a flow map is told, nan
    where none. unguided[i] is the register that takes the unguided output before the update, 0 for none. guidance[i]
    is a factor on the chain's guidance weight.
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
    second: Array = None  # type: ignore[assignment]  # replaced by the default's column
    unguided: Array = None  # type: ignore[assignment]
    guidance: Array = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if not 1 <= self.registers <= MAX_REGISTERS:
            raise ValueError(f"registers: got {self.registers!r}, expected 1 to {MAX_REGISTERS}")
        for name, default in SELDOM.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.full(len(self.kx), default))
        for name, shape in self._shapes().items():
            is_flag = name in ("writes", *FLAGS)
            array: npt.NDArray[Any] = np.array(getattr(self, name), dtype=np.bool_ if is_flag else np.float64)
            if array.shape != shape:
                raise ValueError(f"{name}: got shape {list(array.shape)}, expected {list(shape)}")
            if not is_flag:  # a single nan and no -0.0, so that equal programs have equal bytes
                array = np.where(np.isnan(array), np.nan, array + 0.0)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if self.order < 0:
            raise ValueError(f"order: got {self.order}, expected at least 0")
        if not (np.isfinite(self.init_scale) and self.init_scale > 0):
            raise ValueError(f"init_scale: got {self.init_scale!r}, expected a finite number above 0")
        self._check_values()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n, registers = len(self.kx), self.registers
        return {
            **dict.fromkeys((*COLUMNS, *SELDOM, *FLAGS), (n,)),
            "writes": (n, registers),
            "A": (n, registers, registers + 3),
        }

    def _check_values(self) -> None:
        for name in (*COLUMNS, *SELDOM):
            values = getattr(self, name)
            bad = np.isnan(values) if name in ("lo", "hi") else ~np.isfinite(values)
            if name == "time":
                bad = self.evaluates != np.isfinite(values)
            if name == "second":
                bad = np.isinf(values) | (np.isfinite(values) & ~self.evaluates)
            if name == "unguided":
                bad = ~np.isin(values, np.arange(self.registers)) | ((values > 0) & ~self.evaluates)
            if bad.any():
                row = int(np.argmax(bad))
                raise ValueError(f"{name}: got {values[row]!s} at row {row}, expected {_rule(name)}")
        for i, register, term in np.argwhere(~np.isfinite(self.A)):
            names = term_names(self.registers)
            value = self.A[i, register, term]
            raise ValueError(f"A[{names[register]}, {names[term]}]: got {value!s} at row {i}, expected finite numbers")
        for i in np.flatnonzero(self.lo > self.hi):
            raise ValueError(f"lo, hi: got {self.lo[i]!s} and {self.hi[i]!s} at row {i}, expected lo <= hi")
        for i in np.flatnonzero(self.threshold & ~((self.lo > 0) & (self.lo <= 1) & (self.hi >= 1))):
            got = f"{self.lo[i]!s} and {self.hi[i]!s} at row {i}"
            raise ValueError(f"lo, hi: got {got}, expected a quantile in (0, 1] and at least 1 on threshold rows")
        for i in np.flatnonzero(self.threshold & self.normalise):
            raise ValueError(f"threshold, normalise: got both at row {i}, expected at most one of them")
        reads_output = (self.A[:, :, self.registers : self.registers + 2] != 0).any(axis=(1, 2))
        for i in np.flatnonzero(reads_output & ~self.evaluates):
            raise ValueError(f"A: got a D or m term at row {i}, expected none where the network is not evaluated")

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

    @cached_property
    def told(self) -> tuple[float, float, bool]:
        """The least and the greatest time that the network is told, and whether all of them are whole."""
        times = self.time[self.evaluates]
        return float(times.min(initial=np.inf)), float(times.max(initial=-np.inf)), not (times % 1 > 0).any()

    @property
    def needs_noise(self) -> bool:
        """Whether any row adds noise (the initial state aside)."""
        return bool((self.A[:, :, -1] != 0).any())

    @cached_property
    def needs_reductions(self) -> bool:
        """Whether any row needs a quantile or norms of a whole chain."""
        return bool((self.threshold | self.normalise).any())

    @cached_property
    def reads_unguided(self) -> bool:
        """Whether any row reads the output of the unguided branch by itself."""
        return bool(self.unguided.any())

    @cached_property
    def tells_second(self) -> bool:
        """Whether the network is told a second time."""
        return bool(np.isfinite(self.second).any())

    @cached_property
    def schedules_guidance(self) -> bool:
        """Whether guidance weights depend on the row."""
        return bool((self.guidance != 1).any())

    @cached_property
    def scales_input(self) -> bool:
        """Whether the network reads anything but the state itself."""
        return bool((self.c_in != 1).any())

    @cached_property
    def blends(self) -> Flags:
        """[n] bool: the rows that blend with a known image through a mask."""
        return np.asarray((self.known_a != 0) | (self.known_b != 0))

    @property
    def needs(self) -> tuple[str, ...]:
        """What a run needs besides the network: of "noise", "registers", "reductions", "known image"."""
        wants = {
            "noise": self.needs_noise,
            "registers": self.registers > 1,
            "reductions": self.needs_reductions,
            "known image": bool(self.blends.any()),
        }
        return tuple(name for name, wanted in wants.items() if wanted)

    def __getitem__(self, rows: slice) -> Program:
        """Consecutive rows as a program of their own: ``program[k:]`` continues a run of ``program[:k]``.

        The second run takes the first's result as ``x_init``, and ``first_row=k`` for the noise.

        Raises:
            TypeError: an index that is not a slice of step 1.
            ValueError: no rows; rows that read registers written by earlier rows, since only the state goes on.
        """
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"rows: got {rows!r}, expected a slice of consecutive rows, such as program[:10]")
        begin, end, _ = rows.indices(len(self))
        if begin >= end:
            raise ValueError(f"rows: got {begin} to {end}, expected at least one of {len(self)} rows")
        written = np.zeros(self.registers, dtype=np.bool_)
        written[0] = True
        for row in range(begin, end if begin else begin):
            reads = (self.A[row, :, : self.registers] != 0)[self.writes[row]].any(axis=0)
            written[int(self.unguided[row])] = True
            if (missing := np.flatnonzero(reads & ~written)).size:
                raise ValueError(
                    f"rows: got a beginning at row {begin}, but row {row} reads r{missing[0]} from before it: only the "
                    "state goes on, expected a beginning at 0, a sampler without history, or one on the rest of its "
                    "timesteps="
                )
            written |= self.writes[row]
        return self.cut(begin, end)

    def cut(self, begin: int, end: int) -> Program:
        """Rows ``begin`` to ``end - 1``, for a run that goes on with all registers."""
        per_row = (*COLUMNS, *SELDOM, *FLAGS, "A", "writes")
        return replace(self, **{name: getattr(self, name)[begin:end] for name in per_row})

    def rescaled(self, scale: Array) -> Program:
        """The same sampler on the state x / scale: row i reads x / scale[i] and writes x / scale[i + 1].

        Other registers and the network's input stay as they are. For libraries that keep the state in other units (x /
        alpha instead of x). Raises ValueError unless scale is [n + 1] finite numbers above 0.
        """
        scale = np.asarray(scale, dtype=np.float64)
        if scale.shape != (len(self) + 1,) or not (np.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"scale: got shape {list(scale.shape)}, expected [{len(self) + 1}] numbers above 0")
        before, after = scale[:-1], scale[1:]
        A, writes = self.A.copy(), self.writes.copy()
        unwritten = ~writes[:, 0] & (before != after)  # rows that do not write x leave it in the units before
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
        """The program as a table: row, time, updates; of a long one the first and the last rows."""
        lines = [f"  {'row':>4} {'time':>10}  update"]
        shown = range(len(self)) if len(self) <= LONG else [*range(FIRST), *range(len(self) - LAST, len(self))]
        for row in shown:
            time = f"{self.time[row]:10.6g}" if self.evaluates[row] else f"{'-':>10}"
            lines.append(f"  {row:>4} {time}  {'; '.join(self._updates(row))}")
        if len(shown) < len(self):
            lines.insert(
                1 + FIRST, f"   ... {len(self) - FIRST - LAST} more: print(program.cut(begin, end)) shows some"
            )
        return "\n".join([repr(self)[1:-1], f"  start: x = {self.init_scale:g} z", *lines])

    def _updates(self, row: int) -> list[str]:
        names, R = term_names(self.registers), self.registers
        if self.unguided[row]:
            names[int(self.unguided[row])] = "u"
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
        """Copies and pickles go through JSON, so they are immutable too."""
        return Program.from_json, (self.to_json(),)

    def to_json(self) -> str:
        """The program as JSON; `from_json` gives back an equal program, bit for bit."""
        usual = {
            name
            for name, default in SELDOM.items()
            if np.array_equal(getattr(self, name), np.full(len(self), default), True)
        }
        data = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name not in usual}
        return json.dumps({"format": FORMAT, **data}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that `to_json` wrote. Raises ValueError for any other text."""
        data = parse_json("text", text)
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"text: got no program, expected the JSON of one (format {FORMAT!r})")
        expected = {f.name for f in fields(cls)}
        if data.keys() | SELDOM.keys() != expected:
            differing = ", ".join(f"{name!r:.60}" for name in sorted((data.keys() | SELDOM.keys()) ^ expected)[:9])
            raise ValueError(f"text: got a program with other fields ({differing}), expected those of {FORMAT}")
        for name, kind in (("registers", int), ("order", int), ("predicts", str), ("sampler", str), ("schedule", str)):
            if type(data[name]) is not kind:
                raise ValueError(f"text: got {name} = {data[name]!r:.60}, expected {kind.__name__}")
        # "inf" and "nan" are strings, JSON has no such numbers
        for name in (*COLUMNS, *(SELDOM.keys() & data.keys()), "A", "init_scale"):
            data[name] = numbers(name, data[name])
        for name in ("writes", *FLAGS):
            data[name] = flags(name, data[name])
        try:
            return cls(**{**data, "init_scale": float(data["init_scale"])})
        except (ValueError, TypeError) as error:
            raise ValueError(f"text: {error}") from None

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


def term_names(registers: int) -> list[str]:
    """The terms of a row, in the order of A's last axis."""
    return ["x", *(f"r{j}" for j in range(1, registers)), "D", "m", "z"]


def _terms(coefficients: npt.ArrayLike, names: list[str] | tuple[str, ...]) -> str:
    pairs = zip(np.asarray(coefficients), names, strict=True)
    return " ".join(f"{value:+.6g} {name}" for value, name in pairs if value != 0) or "0"


def _rule(name: str) -> str:
    rules = {
        "lo": "a number",
        "hi": "a number",
        "time": "finite just where the row evaluates",
        "second": "nan, or finite where the row evaluates",
        "unguided": "0, or the number of a register beside x where the row evaluates",
    }
    return rules.get(name, "finite")
