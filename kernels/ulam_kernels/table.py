"""The table of coefficients that a sampler compiles to and that every backend executes.

A table is rows. One row holds what one fused update needs (one evaluation of the network at most), as numbers
only: no kernel knows a sampler's name. Row ``n`` of a table with ``R`` registers is::

    D      = clip(kx * r0 + km * m, lo, hi)
    z      = exp(lv_m * v + lv_b) * z                      learned rows only
    D, z   = s_D * clip(D, s_lo, s_hi), s_z * z            rows with a reduction: s = scales[chain], see `reduce`
    r_i    = sum_j A[i][j] * r_j + A[i][D] * D + A[i][m] * m + A[i][z] * z
    net_in = c_next * r0

Two arrays carry it: ``coef`` (the numbers) and ``flags`` (which of them are present).
The column and flag constants below are the only definition of the layout on the Python side.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import described, whole

MAX_REGISTERS = 5

# Columns of `coef`. From MATRIX on, A lies row-major: for each register the factors of r_0..r_{R-1}, D, m, z.
KX, KM, LO, HI, LV_M, LV_B, C_NEXT, MATRIX = range(8)
COLUMN_NAMES = ("kx", "km", "lo", "hi", "lv_m", "lv_b", "c_next")

# Bits of `flags`. Bits 0..4 say that register i is written; an idle row leaves its chain untouched.
READS_M = 1 << 5
READS_Z = 1 << 6
USES_D = 1 << 7
LEARNED = 1 << 8
# Rows whose D is bounded and scaled by numbers of the chain that a reduction makes (`ulam_kernels.reduce`).
THRESHOLD = 1 << 9  # columns lo and hi hold the level of the quantile, in (0, 1], and its cap, at least 1
NORMALISE = 1 << 10  # D and z are scaled by their norms
IDLE = 0

Float64Array = npt.NDArray[np.float64]
RealArray = npt.NDArray[np.floating[Any]]  # float32 or float64
BoolArray = npt.NDArray[np.bool_]


def width(registers: int) -> int:
    """Number of columns of ``coef`` in a table with this many registers."""
    return MATRIX + registers * (registers + 3)


def column_name(registers: int, column: int, row: int) -> str:
    """A number of a row as errors name it, for example ``lo[3]`` or ``A[3][0][z]``."""
    if column < MATRIX:
        return f"{COLUMN_NAMES[column]}[{row}]"
    register, term = divmod(column - MATRIX, registers + 3)
    terms = [f"r{j}" for j in range(registers)] + ["D", "m", "z"]
    return f"A[{row}][{register}][{terms[term]}]"


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of coefficients on one device. Immutable; made by :meth:`pack`.

    Attributes:
        coef: ``[rows, 7 + R * (R + 3)]`` float32 (float64 for the reference backend), contiguous.
        flags: ``[rows]`` int32 on the same device.
        registers: ``R``, 1 to 5.
        uses: every flag that some row has, where the host knows them, as after :meth:`pack`; all by default. Names of
            noise that no row reads are not handed to a kernel, which would load them before it knows the row.
    """

    coef: torch.Tensor
    flags: torch.Tensor
    registers: int
    uses: int = -1

    def __post_init__(self) -> None:
        for name, number, least, most in (
            ("registers", self.registers, 1, MAX_REGISTERS),
            ("uses", self.uses, -1, (1 << 31) - 1),
        ):
            if type(number) is not int or not least <= number <= most:
                whole(number, name, least, most)
        for name, tensor in (("coef", self.coef), ("flags", self.flags)):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"{name}: got {described(tensor)}, expected a tensor")
        if self.coef.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"coef: got dtype {self.coef.dtype}, expected torch.float32 or torch.float64")
        if self.coef.ndim != 2 or self.coef.shape[1] != width(self.registers):
            expected = f"[rows, {width(self.registers)}] for {self.registers} registers"
            raise ValueError(f"coef: got shape {list(self.coef.shape)}, expected {expected}")
        if self.flags.dtype != torch.int32 or self.flags.shape != self.coef.shape[:1]:
            came = f"{self.flags.dtype} {list(self.flags.shape)}"
            raise ValueError(f"flags: got {came}, expected torch.int32 [{self.coef.shape[0]}]")
        if self.flags.device != self.coef.device:
            raise ValueError(f"flags: got a tensor on {self.flags.device}, expected {self.coef.device} like coef")
        if not (self.coef.is_contiguous() and self.flags.is_contiguous()):
            raise ValueError("coef, flags: got a layout with gaps, expected contiguous tensors")
        compiling = torch.compiler.is_compiling()  # which cannot ask; the operator makes a table where it runs
        if not compiling and (self.coef.is_neg() or self.flags.is_neg()):
            raise ValueError(
                "coef, flags: got torch's negative bit, expected plain memory: pass them through resolve_neg()"
            )

    @classmethod
    def pack(
        cls,
        kx: Float64Array,
        km: Float64Array,
        lo: Float64Array,
        hi: Float64Array,
        lv_m: Float64Array,
        lv_b: Float64Array,
        c_next: Float64Array,
        A: Float64Array,
        writes: BoolArray,
        learned: BoolArray,
        *,
        threshold: BoolArray | None = None,
        normalise: BoolArray | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Table:
        """Round float64 coefficients once and derive the flags from what they became.

        Args:
            kx, km, lo, hi, lv_m, lv_b, c_next: ``[n]`` float64; no clip is ``lo = -inf``, ``hi = inf``.
            A: ``[n, R, R + 3]`` float64; the rows of registers that are not written are stored as zero.
            writes: ``[n, R]`` bool. learned: ``[n]`` bool.
            threshold: ``[n]`` bool, rows with dynamic thresholding: there lo is the level p in (0, 1] of the quantile
                of ``|D|`` and hi its cap (at least 1, may be infinite).
            normalise: ``[n]`` bool, rows whose D and z are scaled by their norms; they have no clip. A row keeps
                either flag only while what it acts on is used after rounding.
            dtype: ``torch.float32``, or ``torch.float64`` for the reference backend.

        Raises:
            ValueError: an array has the wrong shape; a coefficient is NaN or is not finite, before or after
                rounding (``lo = -inf`` and ``hi = inf`` excepted); ``lo > hi``; a level or cap out of range; a
                normalising row with a clip, a threshold or a learned noise scale. The message names array and row.
        """
        if not isinstance(dtype, torch.dtype) or dtype not in (torch.float32, torch.float64):
            came = dtype if isinstance(dtype, torch.dtype) else described(dtype)
            raise ValueError(f"dtype: got {came}, expected torch.float32 or torch.float64")
        try:
            device = torch.device(device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"device: got {described(device)}, expected a device of torch") from None
        columns = _as_float64({"kx": kx, "km": km, "lo": lo, "hi": hi, "lv_m": lv_m, "lv_b": lv_b, "c_next": c_next})
        matrix = _real(A, "A")
        registers = _check_matrix(matrix, writes, rows=len(columns[0]))
        kinds = _check_kinds({"learned": learned, "threshold": threshold, "normalise": normalise}, len(columns[0]))
        exact = np.concatenate(
            [np.stack(columns, axis=1), matrix.reshape(len(matrix), registers * (registers + 3))], axis=1
        )
        with np.errstate(over="ignore", under="ignore"):  # an overflow is reported below, by name
            rounded: RealArray = exact.astype(np.float32 if dtype == torch.float32 else np.float64)
        _check_reductions(exact, rounded, kinds)
        _check_values(exact, rounded, registers)

        written = np.asarray(writes, dtype=np.bool_)
        terms = np.where(written[:, :, None], rounded[:, MATRIX:].reshape(matrix.shape), rounded.dtype.type(0))
        rounded[:, MATRIX:] = terms.reshape(len(terms), registers * (registers + 3))
        flags = _derive_flags(rounded, terms, written, kinds)
        return cls(
            coef=torch.tensor(rounded, device=device),
            flags=torch.tensor(flags, device=device),
            registers=registers,
            uses=int(np.bitwise_or.reduce(flags)),
        )

    @classmethod
    def cat(cls, tables: Sequence[Table]) -> Table:
        """One table with the rows of all, in order: row ``i`` of ``tables[k]`` moves by the rows before it.

        Raises:
            ValueError: no tables, or they differ in registers, dtype or device.
        """
        if not tables:
            raise ValueError("tables: got none, expected at least one Table")
        first = tables[0]
        kind = (first.registers, first.coef.dtype, first.coef.device)
        for index, table in enumerate(tables):
            came = (table.registers, table.coef.dtype, table.coef.device)
            if came != kind:
                names = "(registers, dtype, device)"
                raise ValueError(f"tables[{index}]: got {names} {came}, expected {kind} like tables[0]")
        return cls(
            coef=torch.cat([table.coef for table in tables]),
            flags=torch.cat([table.flags for table in tables]),
            registers=first.registers,
            uses=functools.reduce(operator.or_, (table.uses for table in tables)),
        )

    def widen(self, registers: int) -> Table:
        """The same rows for a state with more registers; the added ones are neither read nor written.

        Raises:
            ValueError: fewer registers than the table has.
        """
        if registers == self.registers:
            return self
        if registers < self.registers:
            raise ValueError(f"registers: got {registers}, expected at least {self.registers}, which the table has")
        R, rows = self.registers, len(self)
        coef = self.coef.new_zeros(rows, width(registers))
        coef[:, :MATRIX] = self.coef[:, :MATRIX]
        narrow = self.coef[:, MATRIX:].view(rows, R, R + 3)
        wide = coef[:, MATRIX:].view(rows, registers, registers + 3)
        wide[:, :R, :R] = narrow[:, :, :R]
        wide[:, :R, registers:] = narrow[:, :, R:]
        return Table(coef, self.flags, registers, self.uses)

    def __len__(self) -> int:
        return self.coef.shape[0]


def _as_float64(columns: dict[str, Float64Array]) -> list[Float64Array]:
    arrays = {name: _real(values, name) for name, values in columns.items()}
    rows = arrays["kx"].shape
    for name, values in arrays.items():
        if values.ndim != 1 or values.shape != rows:
            came = list(values.shape)
            raise ValueError(f"{name}: got shape {came}, expected one number a row like kx {list(rows)}")
    return list(arrays.values())


def _real(values: object, name: str) -> Float64Array:
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise TypeError
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise TypeError(f"{name}: got {described(values)}, expected real numbers") from None


def _check_matrix(matrix: Float64Array, writes: BoolArray, rows: int) -> int:
    """Check the shapes of A and writes; return the number of registers."""
    shape = np.shape(matrix)
    if len(shape) != 3 or shape[0] != rows or shape[2] != shape[1] + 3:
        raise ValueError(f"A: got shape {list(shape)}, expected [{rows}, R, R + 3]")
    if not 1 <= shape[1] <= MAX_REGISTERS:
        raise ValueError(f"A: got {shape[1]} registers, expected 1 to {MAX_REGISTERS}")
    if np.shape(writes) != shape[:2]:
        raise ValueError(f"writes: got shape {list(np.shape(writes))}, expected {list(shape[:2])}")
    return int(shape[1])


def _check_kinds(kinds: dict[str, BoolArray | None], rows: int) -> dict[str, BoolArray]:
    """Per-row booleans by name, ``[rows]`` each; None is none."""
    for name, kind in kinds.items():
        if kind is not None and np.shape(kind) != (rows,):
            raise ValueError(f"{name}: got shape {list(np.shape(kind))}, expected [{rows}]")
    return {
        name: np.zeros(rows, dtype=np.bool_) if kind is None else np.asarray(kind, dtype=np.bool_)
        for name, kind in kinds.items()
    }


def _check_values(exact: Float64Array, rounded: RealArray, registers: int) -> None:
    allowed = np.isfinite(rounded)
    allowed[:, LO] = rounded[:, LO] < np.inf  # NaN compares false
    allowed[:, HI] = rounded[:, HI] > -np.inf
    for row, column in np.argwhere(~allowed):
        name, value = column_name(registers, int(column), row), exact[row, column]
        rounding = " after rounding to float32" if np.isfinite(value) else ""
        raise ValueError(f"{name}: got {value}, expected a finite number{rounding}")
    for row in np.flatnonzero(rounded[:, LO] > rounded[:, HI]):
        raise ValueError(f"lo[{row}]: got {exact[row, LO]}, expected at most hi[{row}], {exact[row, HI]}")


def _check_reductions(exact: Float64Array, rounded: RealArray, kinds: dict[str, BoolArray]) -> None:
    level, cap = rounded[:, LO], rounded[:, HI]
    for row in np.flatnonzero(kinds["threshold"] & ~((level > 0) & (level <= 1))):
        raise ValueError(f"lo[{row}]: got {exact[row, LO]}, expected the level of a quantile, in (0, 1]")
    for row in np.flatnonzero(kinds["threshold"] & ~(cap >= 1)):
        raise ValueError(f"hi[{row}]: got {exact[row, HI]}, expected the cap of a threshold, at least 1")
    for name in ("threshold", "learned"):
        for row in np.flatnonzero(kinds["normalise"] & kinds[name]):
            raise ValueError(f"normalise[{row}]: got True beside {name}, expected one of them at most")
    for row in np.flatnonzero(kinds["normalise"] & ((level > -np.inf) | (cap < np.inf))):
        raise ValueError(f"lo[{row}], hi[{row}]: got {level[row]}, {cap[row]}, expected no clip: the row is normalised")


def _derive_flags(
    rounded: RealArray,
    terms: RealArray,
    writes: BoolArray,
    kinds: dict[str, BoolArray],
) -> npt.NDArray[np.int32]:
    """Flags ``[n]`` from the rounded coefficients: what is absent is never read (its NaN must not spread)."""
    registers = writes.shape[1]
    present = (terms != 0).any(axis=1)  # [n, R + 3]; registers that are not written are zero already
    uses_d, reads_z = present[:, registers], present[:, registers + 2]
    threshold = kinds["threshold"] & uses_d
    normalise = kinds["normalise"] & (uses_d | reads_z)
    uses_d, reads_z = uses_d | normalise, reads_z | normalise  # both norms are needed
    reads_m = present[:, registers + 1] | (uses_d & (rounded[:, KM] != 0))
    flags: npt.NDArray[np.int32] = (writes << np.arange(registers)).sum(axis=1).astype(np.int32)
    flags |= reads_m * np.int32(READS_M) | reads_z * np.int32(READS_Z)
    flags |= uses_d * np.int32(USES_D) | (reads_z & kinds["learned"]) * np.int32(LEARNED)
    flags |= threshold * np.int32(THRESHOLD) | normalise * np.int32(NORMALISE)
    return flags
