"""The formats of exports: each a context within which rows are added one after the other, in constant memory.

The bytes are a pure function of the rows and of the packages' versions: no times, no owners. Parquet's groups of rows
and Zarr's chunks follow the units.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
from PIL import Image

from ...pictures import Pixels
from .rows import NONE, Array, Rows

Add = Callable[[Rows], None]
BLOCK = 1 << 16  # rows of a column that are read back at once
GROUP_BYTES = 1 << 24  # of samples in a group of rows, at least
PACKAGES = {"parquet": "pyarrow", "zarr": "zarr"}
TABLE = "samples.csv"  # in a folder of pictures


def require(to: str) -> None:
    """Raises ImportError, naming the extra, where the package for a format is missing."""
    if package := PACKAGES.get(to):
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(
                f"{package}: got no such package, expected it for {to}: pip install 'ulam[export]'"
            ) from error


@contextmanager
def npz(path: Path, first: Rows) -> Iterator[Add]:
    """What OpenAI's evaluator reads: ``arr_0``, uint8 [N, H, W, C] for pictures, else [N, *shape] in the samples' dtype
    (bfloat16 as float32), and ``arr_1``, the labels, int64 [N], where there are any. And int64 [N] each: ``chains``,
    ``jobs``, ``seeds``, ``failed_rows``.
    """
    samples = _samples(first)
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive, _columns(path.parent) as columns:
        with _member(archive, "arr_0", samples.dtype, (first.count, *samples.shape[1:])) as file:

            def add(rows: Rows) -> None:
                file.write(np.ascontiguousarray(_samples(rows)).data)
                columns.add(rows)

            yield add
        for name, member in {"labels": "arr_1", "chains": "", "jobs": "", "seeds": "", "failed_rows": ""}.items():
            if name != "labels" or columns.labelled:
                with _member(archive, member or name, np.dtype(np.int64), (first.count,)) as file:
                    for _, block in columns.blocks(name):
                        file.write(block.data)


def _samples(rows: Rows) -> Array:
    return rows.pixels() if rows.is_picture else rows.values


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """A .npy file within the archive, after its header."""
    entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    with archive.open(entry, "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


class _Columns:
    """The columns of rows on disk until the samples are written: files without a name."""

    def __init__(self, files: dict[str, IO[bytes]]) -> None:
        self._files = files
        self.labelled = False

    def add(self, rows: Rows) -> None:
        self.labelled |= rows.labelled
        for name, file in self._files.items():
            file.write(rows.columns[name].tobytes())

    def blocks(self, name: str) -> Iterator[tuple[int, Array]]:
        """Whole numbers by the block, each with the row at which it begins."""
        begin, file = 0, self._files[name]
        file.seek(0)
        while data := file.read(8 * BLOCK):
            yield begin, np.frombuffer(data, dtype=np.int64)
            begin += len(data) // 8


@contextmanager
def _columns(folder: Path) -> Iterator[_Columns]:
    with ExitStack() as stack:
        names = ("jobs", "chains", "seeds", "labels", "failed_rows")
        yield _Columns({name: stack.enter_context(tempfile.TemporaryFile(dir=folder)) for name in names})


@contextmanager
def png(path: Path, first: Rows) -> Iterator[Add]:
    """A flat folder of pictures, as pytorch-fid, clean-fid and torch-fidelity read it, named by row, job, chain and
    seed; and samples.csv: file, job, chain, seed, label, failed_row, the last two empty for none.

    Raises ValueError for samples that are no pictures.
    """
    if not first.is_picture:
        raise ValueError(
            f"to: got png for samples of {first.dtype} {list(first.shape)}, expected pictures: floats [1 or 3, H, W] "
            "or uint8 [H, W, 1 or 3]"
        )
    path.mkdir()
    with (path / TABLE).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "job", "chain", "seed", "label", "failed_row"])

        def add(rows: Rows) -> None:
            for name, picture, told in zip(rows.names(), rows.pixels(), rows.told(), strict=True):
                (path / f"{name}.png").write_bytes(_png(picture))
                table.writerow([f"{name}.png", *told.values()])

        yield add


def _png(picture: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture[:, :, 0] if picture.shape[2] == 1 else picture).save(file, format="PNG")
    return file.getvalue()


@contextmanager
def webdataset(path: Path, first: Rows) -> Iterator[Add]:
    """One tar: for each sample NAME.png (NAME.npy where it is no picture), NAME.cls, its label if it has one, and
    NAME.json: job, chain, seed, label, failed_row.
    """
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:

        def put(name: str, data: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))

        def add(rows: Rows) -> None:
            encode, samples = (_png, rows.pixels()) if rows.is_picture else (_npy, rows.values)
            ending = "png" if rows.is_picture else "npy"
            for name, sample, told in zip(rows.names(), samples, rows.told(), strict=True):
                put(f"{name}.{ending}", encode(sample))
                if told["label"] is not None:
                    put(f"{name}.cls", str(told["label"]).encode())
                put(f"{name}.json", json.dumps(told).encode())
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps what it has written

        yield add


def _npy(sample: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, sample)
    return file.getvalue()


@contextmanager
def parquet(path: Path, first: Rows) -> Iterator[Add]:
    """Columns job, chain, seed, label, failed_row (int64, the last two null for none) and x: the sample, flat, a list
    of fixed size in the samples' dtype (bfloat16 as float32). The schema's metadata has ``shape``, as JSON.
    """
    import pyarrow
    from pyarrow import parquet as files

    length, integer = int(np.prod(first.shape)), pyarrow.int64()
    x = pyarrow.list_(pyarrow.from_numpy_dtype(first.values.dtype), length)
    names = ("job", "chain", "seed", "label", "failed_row")
    schema = pyarrow.schema([*((name, integer) for name in names), ("x", x)], {"shape": json.dumps(first.shape)})
    waiting: list[Any] = []

    def batch(rows: Rows) -> Any:
        told, n = rows.columns, len(rows)
        none = [None, None, None, np.full(n, not rows.labelled), told["failed_rows"] == NONE]
        columns = [pyarrow.array(column, integer, mask=mask) for column, mask in zip(told.values(), none, strict=True)]
        values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.values.reshape(-1)), type=x)
        return pyarrow.record_batch([*columns, values], schema=schema)

    with path.open("wb") as file, files.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:

        def flush(least: int) -> None:
            if sum(part.nbytes for part in waiting) > least:
                table = pyarrow.Table.from_batches(waiting)
                waiting.clear()
                writer.write_table(table, row_group_size=len(table))

        def add(rows: Rows) -> None:
            waiting.append(batch(rows))
            flush(GROUP_BYTES)

        yield add
        flush(0)


@contextmanager
def zarr(path: Path, first: Rows) -> Iterator[Add]:
    """A group of Zarr 3 with ``x`` [N, *shape] in the samples' dtype (bfloat16 as float32), a unit a chunk, and int64
    [N] each: ``jobs``, ``chains``, ``seeds``, ``failed_rows`` (-1 for none) and, where there are any, ``labels``.
    """
    import zarr

    with _columns(path.parent) as columns, _files(path) as files:
        group = zarr.open_group(files, mode="w-", zarr_format=3)
        chunks = len(first), *first.shape
        x = group.create_array("x", shape=(first.count, *first.shape), chunks=chunks, dtype=first.values.dtype)

        def add(rows: Rows) -> None:
            x[rows.begin : rows.begin + len(rows)] = rows.values
            columns.add(rows)

        yield add
        for name in ("jobs", "chains", "seeds", "labels", "failed_rows"):
            if name != "labels" or columns.labelled:
                size = min(first.count, BLOCK)
                column = group.create_array(name, shape=(first.count,), chunks=(size,), dtype="int64")
                for begin, block in columns.blocks(name):
                    column[begin : begin + len(block)] = block


@contextmanager
def _files(path: Path) -> Iterator[Any]:
    """A folder as a store of zarr, in which nothing is written any more once the context has ended.

    zarr writes in threads of its own: its LocalStore goes on after the first error, or an interrupt, has reached us.
    """
    from zarr.storage import LocalStore

    class Files(LocalStore):
        writing, ended = Lock(), False

        async def set(self, key: str, value: Any) -> None:
            self.set_sync(key, value)

        async def set_if_not_exists(self, key: str, value: Any) -> None:
            if not (self.root / key).exists():
                self.set_sync(key, value)

        def set_sync(self, key: str, value: Any) -> None:
            with self.writing:
                if self.ended:
                    raise OSError(f"{key}: got it after the end, expected it before")
                (self.root / key).parent.mkdir(parents=True, exist_ok=True)
                (self.root / key).write_bytes(value.as_buffer_like())

    files = Files(path)
    try:
        yield files
    finally:
        with files.writing:
            files.ended = True


FORMATS = {"npz": npz, "png": png, "webdataset": webdataset, "parquet": parquet, "zarr": zarr}
FOLDERS = ("png", "zarr")
