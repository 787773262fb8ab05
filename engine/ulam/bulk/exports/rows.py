"""The samples of finished units as rows of an export: arrays, pixels, names, and the hash of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...pictures import Pixels, is_image, to_pixels
from ..store.unit import Unit

Array = npt.NDArray[Any]
NONE = -1  # the label of a chain without one, the failed row of a chain that did not fail


@dataclass(frozen=True, eq=False)
class Rows:
    """The samples of one unit: rows ``begin``, ``begin + 1``, ... of ``count`` in all.

    values: ``[n, *shape]``, with the samples' dtype (bfloat16 as float32); floats are NaN where a chain failed.
    columns: int64 ``[n]`` by name: ``jobs`` (from 0), ``chains``, ``seeds``, ``labels``, ``failed_rows`` (the row of
    its program at which a chain turned NaN or Inf); -1 for none. labelled: whether there are labels.
    """

    begin: int
    count: int
    values: Array
    columns: dict[str, Array]
    labelled: bool
    dtype: str

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.values.shape[1:]

    @property
    def is_picture(self) -> bool:
        """Whether samples are floats [1 or 3, H, W], or uint8 [H, W, 1 or 3] or [1 or 3, H, W]."""
        if self.values.dtype == np.uint8:
            return len(self.shape) == 3 and (self.shape[2] in (1, 3) or self.shape[0] in (1, 3))
        return np.issubdtype(self.values.dtype, np.floating) and is_image(self.shape)

    def pixels(self) -> Pixels:
        """Pictures as uint8 ``[n, H, W, 1 or 3]``, black where a chain failed; floats are taken to lie in [-1, 1]."""
        if self.values.dtype != np.uint8:
            found = to_pixels(torch.from_numpy(self.values))
        else:
            found = self.values if self.shape[2] in (1, 3) else self.values.transpose(0, 2, 3, 1)
        failed = self.columns["failed_rows"] != NONE
        return np.where(failed[:, None, None, None], np.uint8(0), found)

    def names(self) -> list[str]:
        """A name for each row; sorted, they are in the order of the rows. Such as 00123-job-0-chain-123-seed-7."""
        digits = len(str(self.count - 1))
        ids = zip(*(self.columns[name].tolist() for name in ("jobs", "chains", "seeds")), strict=True)
        return [f"{row:0{digits}}-job-{j}-chain-{c}-seed-{s}" for row, (j, c, s) in enumerate(ids, self.begin)]

    def told(self) -> Iterator[dict[str, int | None]]:
        """For each row its job, chain, seed, label and failed_row, with None for none."""
        for job, chain, seed, label, failed in zip(*(column.tolist() for column in self.columns.values()), strict=True):
            yield {
                "job": job,
                "chain": chain,
                "seed": seed,
                "label": label if self.labelled else None,
                "failed_row": None if failed == NONE else failed,
            }


def rows_of(units: Iterable[tuple[int, Unit]], count: int) -> Iterator[Rows]:
    """The rows of units, given with their jobs' numbers.

    Raises ValueError unless there are ``count`` rows, of one shape and dtype.
    """
    begin, first = 0, None
    for job, unit in units:
        rows = _rows(begin, count, job, unit)
        first = first or (rows.shape, rows.dtype)
        if (rows.shape, rows.dtype) != first:
            raise ValueError(
                f"jobs: got samples of {rows.dtype} {list(rows.shape)} in job {job} beside {first[1]} {list(first[0])} "
                "before it, expected one shape and dtype in an export"
            )
        begin += len(rows)
        if begin > count:
            break
        if len(rows):
            yield rows
    if begin != count or not count:
        raise ValueError(f"units: got {begin} samples{' and more' * (begin > count)}, expected {count or 'some'}")


def _rows(begin: int, count: int, job: int, unit: Unit) -> Rows:
    n = len(unit.x)
    x = unit.x.detach().cpu()
    failed = np.full(n, NONE, dtype=np.int64)
    for place, row in unit.failed.items():
        failed[place] = row
    labels = np.full(n, NONE, dtype=np.int64) if unit.labels is None else unit.labels.cpu().numpy()
    columns = {
        "jobs": np.full(n, job, dtype=np.int64),
        "chains": unit.chains.cpu().numpy(),
        "seeds": np.full(n, unit.seed, dtype=np.int64),
        "labels": labels,
        "failed_rows": failed,
    }
    values = np.ascontiguousarray((x.float() if x.dtype == torch.bfloat16 else x).numpy())
    return Rows(begin, count, values, columns, unit.labels is not None, str(x.dtype).removeprefix("torch."))


class Content:
    """SHA-256 over rows: it depends neither on the format of an export nor on how chains are cut into units."""

    def __init__(self) -> None:
        self._parts: dict[str, Any] = {}

    def add(self, rows: Rows) -> None:
        """Take the next rows in."""
        if not self._parts:
            self._kind = f"{rows.count} {rows.dtype} {list(rows.shape)}"
        for name, array in {"values": rows.values, **rows.columns}.items():
            self._parts.setdefault(name, hashlib.sha256()).update(np.ascontiguousarray(array).data)

    def hexdigest(self) -> str:
        """The hash of what was added."""
        parts = [f"{name} {part.hexdigest()}" for name, part in self._parts.items()]
        return hashlib.sha256("\n".join([self._kind, *parts]).encode()).hexdigest()
