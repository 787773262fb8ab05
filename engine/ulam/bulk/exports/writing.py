"""Exports: the samples of finished units in the order of jobs and chains, written for other tools to read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ulam_kernels.arguments import choice

from ...files import one_line, remove_orphans, whole
from ..store.unit import Unit
from .formats import FOLDERS, FORMATS, require
from .rows import Content, Rows, rows_of


@dataclass(frozen=True)
class Summary:
    """What was written. rows: samples. failed: those of chains that turned NaN or Inf, which stay in their places.

    content: SHA-256 over values, jobs, chains, seeds, labels and failed rows in order. It depends neither on the format
    nor on how the chains were cut into units.
    """

    rows: int
    failed: int
    content: str


def write(units: Iterable[tuple[int, Unit]], to: str, out: Path, count: int) -> Summary:
    """Write units, given with their jobs' numbers from 0, to a new file or folder, whole or not at all.

    Units are read once, one after the other, and not kept. Float samples that are pictures are taken to lie in [-1, 1].

    Args:
        to: a format of :mod:`ulam.bulk.exports.formats`: npz, webdataset and parquet are files, png and zarr folders.
        count: of all samples.

    Raises:
        ValueError: no such format, not ``count`` samples of one shape and dtype, png of samples that are no pictures.
        OSError: ``out`` exists and is not empty, or cannot be written to.
        ImportError: the format's package is missing.
    """
    require(choice(to, "to", FORMATS))
    _check_new(out, folder=to in FOLDERS)
    reading: list[OSError] = []

    def read() -> Iterator[tuple[int, Unit]]:
        try:
            yield from units
        except OSError as error:
            reading.append(error)  # of the units, not of what is written
            raise

    try:
        remove_orphans(out.absolute().parent, out.name)
        with whole(out) as (partial,):
            summary = stream(read(), to, partial, count)
            _check_new(out, folder=to in FOLDERS)  # once more: that may have taken hours
        return summary
    except FileExistsError:
        raise
    except OSError as error:
        if error in reading:
            raise
        why = error.strerror or one_line(error)
        raise OSError(f"out: got {out}, expected a place that can be written to: {why}") from None


def stream(units: Iterable[tuple[int, Unit]], to: str, path: Path, count: int) -> Summary:
    """Write units to a path as it is: as :func:`write`, without its care for what is there and for what fails."""
    rows = rows_of(units, count)
    first = next(rows)
    content, failed = Content(), 0
    with FORMATS[to](path, first) as add:
        for part in _chained(first, rows):
            add(part)
            content.add(part)
            failed += int((part.columns["failed_rows"] >= 0).sum())
    return Summary(count, failed, content.hexdigest())


def _chained(first: Rows, others: Iterator[Rows]) -> Iterator[Rows]:
    yield first
    del first  # or it would be kept until the end
    yield from others


def _check_new(out: Path, folder: bool) -> None:
    if not out.exists():
        return
    if folder and out.is_dir():
        with os.scandir(out) as inside:
            used = any(inside)
    else:
        used = folder or out.is_dir() or out.stat().st_size > 0
    if used:
        raise FileExistsError(f"out: got {out}, which exists, expected a new name")
