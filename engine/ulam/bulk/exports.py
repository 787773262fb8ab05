"""Finished samples in the formats that other tools read, streamed in the order of jobs and chains."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ..files import whole
from ..pictures import Pixels, is_image, to_pixels
from .unit import Unit


@dataclass(frozen=True)
class Summary:
    """What was written: rows, how many are of chains that failed, and the SHA-256 of all values, chains, labels, jobs
    and seeds in order, whatever the format and however the chains were cut into units.
    """

    rows: int
    failed: int
    content: str


class Rows:
    """Units ``(job, unit)`` on their way into a file, ``total`` chains in all; ``summary`` once they went by.

    samples: the dtype and shape of one sample of the first unit, as they are written.
    """

    def __init__(self, units: Iterable[tuple[int, Unit]], total: int, labelled: bool) -> None:
        self._units = iter(units)
        self._first = next(self._units)
        self.total, self.labelled = total, labelled
        self.pictures = pixels_of(self._first[1].x) is not None
        self.numbers = _numbers(self._first[1].x[:0])
        self._hashes = {name: hashlib.sha256() for name in ("x", *COLUMNS)}
        self._rows = self._failed = 0

    def __iter__(self) -> Iterator[tuple[Unit, dict[str, npt.NDArray[np.int64]]]]:
        """The units, each with its columns job, chain, seed, label (-1 without) and failed (its row; -1 for none)."""
        shape = self._first[1].x.shape[1:]
        for job, unit in chain([self._first], self._units):
            if unit.x.shape[1:] != shape:
                got = f"samples of shapes {list(shape)} and {list(unit.x.shape[1:])}"
                raise ValueError(f"jobs: got {got}, expected one shape in an export")
            yield self._seen(job, unit)

    def _seen(self, job: int, unit: Unit) -> tuple[Unit, dict[str, npt.NDArray[np.int64]]]:
        count = len(unit.x)
        failed = np.full(count, -1, dtype=np.int64)
        for place, row in unit.failed.items():
            failed[place] = row
        label = np.full(count, -1, dtype=np.int64) if unit.labels is None else unit.labels.numpy()
        columns = {
            "job": np.full(count, job, dtype=np.int64),
            "chain": unit.chains.numpy(),
            "seed": np.full(count, unit.seed, dtype=np.int64),
            "label": label,
            "failed": failed,
        }
        self._hashes["x"].update(memoryview(unit.x.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
        for name, values in columns.items():
            self._hashes[name].update(values.tobytes())
        self._rows, self._failed = self._rows + count, self._failed + len(unit.failed)
        return unit, columns

    @property
    def summary(self) -> Summary:
        """Of the rows so far."""
        shape = f"{self._first[1].x.dtype} {list(self._first[1].x.shape[1:])}"
        parts = [shape, *(found.hexdigest() for found in self._hashes.values())]
        return Summary(self._rows, self._failed, hashlib.sha256(" ".join(parts).encode()).hexdigest())


COLUMNS = ("job", "chain", "seed", "label", "failed")


def write(units: Iterable[tuple[int, Unit]], total: int, labelled: bool, to: str, out: Path) -> Summary:
    """Write ``total`` chains' units, with their jobs' numbers, to a new file, or for png and zarr a new folder.

    The bytes depend on the samples alone. Chains that failed are kept in place: NaN, black in pictures.

    npz: ``arr_0`` uint8 ``[N, H, W, C]`` of pictures in [-1, 1], as OpenAI's evaluator reads it, else ``[N, *shape]``;
        ``arr_1`` int64 ``[N]`` labels; ``chain``, ``job``, ``seed``, ``failed`` int64 ``[N]``.
    png: ``job-000-chain-000000000000-seed-0.png`` and so on, which clean-fid, pytorch-fid and torch-fidelity read, with
        samples.csv. webdataset: a tar with such keys, png (or npy), cls, json.
    parquet, zarr: the columns, and ``x`` as it is (bfloat16 as float32).

    Raises:
        ValueError: an unknown format, ``out`` that is there already, samples that are no pictures for png, or of
            several shapes. ImportError: a package is missing. OSError: it cannot be written; nothing is left of it.
    """
    if to not in FORMATS:
        raise ValueError(f"to: got {to!r}, expected one of {', '.join(FORMATS)}")
    if out.exists() or out.is_symlink():
        raise ValueError(f"out: got {out}, which is there already, expected a new name")
    rows = Rows(units, total, labelled)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if to in FOLDERS:
            with whole_folder(out) as partial:
                FORMATS[to](rows, partial)
        else:
            with whole(out) as (partial,):
                FORMATS[to](rows, partial)
    except OSError as error:
        raise OSError(f"out: got {out}, expected one that can be written to: {error.strerror or error}") from None
    return rows.summary


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which appears under its name once all is in it."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        os.rename(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def pixels_of(x: torch.Tensor) -> Pixels | None:
    """Samples as uint8 ``[n, H, W, C]``: those in [-1, 1] ``[n, C, H, W]``, or uint8 in either order; else None."""
    if x.dim() != 4:
        return None
    if x.dtype == torch.uint8:
        if x.shape[-1] in (1, 3):
            return x.numpy()
        return x.permute(0, 2, 3, 1).contiguous().numpy() if x.shape[1] in (1, 3) else None
    return to_pixels(x) if is_image(tuple(x.shape[1:])) and x.is_floating_point() else None


def _numbers(x: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    return array


def _name(columns: dict[str, npt.NDArray[np.int64]], i: int) -> str:
    return "job-{:03d}-chain-{:012d}-seed-{}".format(*(int(columns[name][i]) for name in ("job", "chain", "seed")))


def _png(picture: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(file, format="PNG")
    return file.getvalue()


# --------------------------------------------------------------------------------------------------- the formats


def write_npz(rows: Rows, out: Path) -> None:
    """See :func:`write`."""
    kept: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in COLUMNS}
    with zipfile.ZipFile(out, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            like = pixels_of(torch.from_numpy(rows.numbers)) if rows.pictures else rows.numbers
            assert like is not None
            descr = np.lib.format.dtype_to_descr(like.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": (rows.total, *like.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
            for unit, columns in rows:
                values = pixels_of(unit.x) if rows.pictures else _numbers(unit.x)
                assert values is not None
                file.write(np.ascontiguousarray(values).data)
                for name in COLUMNS:
                    kept[name].append(columns[name])
        names = {"arr_1": "label"} if rows.labelled else {}
        for array, name in {**names, "chain": "chain", "job": "job", "seed": "seed", "failed": "failed"}.items():
            with archive.open(f"{array}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.concatenate(kept[name]))


def write_png(rows: Rows, out: Path) -> None:
    """See :func:`write`."""
    if not rows.pictures:
        shape = list(rows.numbers.shape[1:])
        raise ValueError(f"to: got png for samples of shape {shape}, expected pictures [1 or 3, H, W]")
    with (out / "samples.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", *COLUMNS])
        for unit, columns in rows:
            pixels = pixels_of(unit.x)
            assert pixels is not None
            for i, picture in enumerate(pixels):
                name = f"{_name(columns, i)}.png"
                (out / name).write_bytes(_png(picture))
                table.writerow([name, *(int(columns[column][i]) for column in COLUMNS)])


def _write_webdataset(rows: Rows, out: Path) -> None:
    with tarfile.open(out, "w") as archive:

        def add(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

        for unit, columns in rows:
            pixels, numbers = pixels_of(unit.x), _numbers(unit.x)
            for i in range(len(unit.x)):
                key = _name(columns, i)
                if pixels is not None:
                    add(f"{key}.png", _png(pixels[i]))
                else:
                    file = io.BytesIO()
                    np.save(file, numbers[i])
                    add(f"{key}.npy", file.getvalue())
                if rows.labelled:
                    add(f"{key}.cls", str(int(columns["label"][i])).encode())
                add(f"{key}.json", json.dumps({name: int(columns[name][i]) for name in COLUMNS}).encode())


def _write_parquet(rows: Rows, out: Path) -> None:
    pyarrow = _package("pyarrow")
    parquet = _package("pyarrow.parquet")
    shape = rows.numbers.shape[1:]
    size = int(np.prod(shape))
    kind = pyarrow.list_(pyarrow.from_numpy_dtype(rows.numbers.dtype), size)
    schema = pyarrow.schema(
        [
            *((name, pyarrow.int64()) for name in COLUMNS),
            pyarrow.field("x", kind, metadata={"shape": json.dumps(shape)}),
        ]
    )
    with parquet.ParquetWriter(out, schema) as file:
        for unit, columns in rows:
            x = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(_numbers(unit.x).reshape(-1)), size)
            arrays = [*(pyarrow.array(columns[name]) for name in COLUMNS), x]
            file.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _write_zarr(rows: Rows, out: Path) -> None:
    zarr = _package("zarr")
    group = zarr.open_group(str(out), mode="w", zarr_format=3)
    begin, arrays = 0, {}
    for unit, columns in rows:
        values = {"x": _numbers(unit.x), **columns}
        for name, array in values.items():
            if name not in arrays:  # the first unit's chains make a chunk
                shape = (rows.total, *array.shape[1:])
                arrays[name] = group.create_array(name, shape=shape, chunks=array.shape, dtype=array.dtype)
            arrays[name][begin : begin + len(array)] = array
        begin += len(unit.x)


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise ImportError(f"to: got a format of {package}, which is missing: pip install 'ulam[export]'") from None


FORMATS: dict[str, Callable[[Rows, Path], None]] = {
    "npz": write_npz,
    "png": write_png,
    "webdataset": _write_webdataset,
    "parquet": _write_parquet,
    "zarr": _write_zarr,
}
FOLDERS = ("png", "zarr")
