"""Exports of finished units: what other tools read in them, their bytes, and what an error leaves."""

from __future__ import annotations

import csv
import glob
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import export_cases
from archives import arrays
from export_cases import COUNTS, FAILED, FIRST, samples, units
from ulam.bulk import exports
from ulam.bulk.exports import Summary
from ulam.bulk.exports.formats import FORMATS, PACKAGES
from ulam.pictures import to_pixels

N = sum(COUNTS)
JOBS = [0] * COUNTS[0] + [1] * COUNTS[1]
CHAINS = [FIRST + place for count in COUNTS for place in range(count)]
SEEDS = [7 - 9 * job for job in JOBS]
LABELS = [chain % 10 for chain in range(COUNTS[0])] + [-1] * COUNTS[1]
FAILED_ROWS = [3 if chain == FIRST + FAILED else -1 for chain in CHAINS]


def export(to: str, out: Path, size: int = 64, **of_units) -> Summary:
    if to in PACKAGES:
        pytest.importorskip(PACKAGES[to])
    return exports.write(units(size, **of_units), to, out, N)


def values(**of_samples) -> torch.Tensor:
    return torch.cat([samples(job, **of_samples) for job in range(len(COUNTS))])


def tree(path: Path) -> dict[str, bytes]:
    inside = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): p.read_bytes() for p in inside}


# ------------------------------------------------------------------------------------------------ the formats


def test_npz_is_what_openais_evaluator_reads(tmp_path: Path):
    export("npz", tmp_path / "a.npz")
    found = arrays(tmp_path / "a.npz")
    assert list(found) == ["arr_0", "arr_1", "chains", "jobs", "seeds", "failed_rows"]
    assert found["arr_0"].dtype == np.uint8 and (found["arr_0"] == to_pixels(values())).all()
    assert not found["arr_0"][FAILED].any()
    for name, right in {"arr_1": LABELS, "jobs": JOBS, "seeds": SEEDS, "failed_rows": FAILED_ROWS}.items():
        assert found[name].dtype == np.int64 and found[name].tolist() == right
    assert found["chains"].tolist() == CHAINS


@pytest.mark.parametrize(("dtype", "stored"), [(torch.float32, "f4"), (torch.bfloat16, "f4"), (torch.float64, "f8")])
def test_npz_of_what_is_no_picture_has_the_values(dtype: torch.dtype, stored: str, tmp_path: Path):
    exports.write(((1, unit) for _, unit in units(shape=(4,), dtype=dtype)), "npz", tmp_path / "a", N)
    found = arrays(tmp_path / "a")
    assert found["arr_0"].dtype == np.dtype(stored)
    assert np.array_equal(found["arr_0"], values(shape=(4,), dtype=dtype).double().numpy(), equal_nan=True)


def test_npz_without_labels_has_no_arr_1(tmp_path: Path):
    exports.write(((job, replace(unit, labels=None)) for job, unit in units()), "npz", tmp_path / "a", N)
    assert "arr_1" not in arrays(tmp_path / "a")


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 1), (3, 5, 7), (1, 5, 7)])
def test_bytes_of_a_finish_are_pixels_as_they_are(shape: tuple[int, ...], tmp_path: Path):
    x = torch.arange(2 * np.prod(shape)).reshape(2, *shape).to(torch.uint8)
    unit = export_cases.Unit(x, torch.arange(2), None, 0, {1: 4})
    exports.write([(0, unit)], "npz", tmp_path / "a", 2)
    right = x if shape[2] in (1, 3) else x.permute(0, 2, 3, 1)
    found = arrays(tmp_path / "a")["arr_0"]
    assert (found[0] == right[0].numpy()).all() and found.shape == right.shape and not found[1].any()


def test_png_is_a_flat_folder_in_the_order_of_the_rows(tmp_path: Path):
    export("png", tmp_path / "a")
    with (tmp_path / "a" / "samples.csv").open() as file:
        table = list(csv.DictReader(file))
    names = [row["file"] for row in table]
    assert names[0] == f"00-job-0-chain-{FIRST}-seed-7.png" and names[-1] == f"99-job-1-chain-{CHAINS[-1]}-seed--2.png"
    assert sorted(os.listdir(tmp_path / "a")) == [*names, "samples.csv"]
    pictures = np.stack([np.asarray(Image.open(tmp_path / "a" / name)) for name in names])
    assert (pictures == to_pixels(values())).all()
    told = [[int(row[key] or -1) for row in table] for key in ("job", "chain", "seed", "label", "failed_row")]
    assert told == [JOBS, CHAINS, SEEDS, LABELS, FAILED_ROWS]


def test_grey_pictures_have_one_channel(tmp_path: Path):
    export("png", tmp_path / "a", shape=(1, 8, 8))
    first = Image.open(min((tmp_path / "a").glob("*.png")))
    assert first.mode == "L" and (np.asarray(first) == to_pixels(values(shape=(1, 8, 8)))[0, :, :, 0]).all()


def test_fid_tools_find_the_pictures_and_nothing_else(tmp_path: Path):
    """How pytorch-fid (flat), clean-fid (recursive) and torch-fidelity (flat, by the ending) list a folder."""
    export("png", tmp_path / "a")
    endings = ("bmp", "jpg", "jpeg", "pgm", "png", "ppm", "tif", "tiff", "webp")
    flat = sorted(str(file) for ending in endings for file in (tmp_path / "a").glob(f"*.{ending}"))
    deep = sorted(file for ending in endings for file in glob.glob(f"{tmp_path}/a/**/*.{ending}", recursive=True))
    by_ending = sorted(str(file) for file in (tmp_path / "a").iterdir() if file.suffix in (".png", ".jpg", ".jpeg"))
    assert len(flat) == N and flat == deep == by_ending


def test_clean_fids_reader_resizes_the_pictures(tmp_path: Path):
    """The statistics of a trivial feature, each picture's mean colour, are those of the samples."""
    resize = pytest.importorskip("cleanfid.resize", reason="clean-fid is not installed")
    export("png", tmp_path / "a")
    files = sorted((tmp_path / "a").glob("*.png"))
    (tmp_path / "resized").mkdir()
    same = resize.make_resizer("PIL", True, "bicubic", (8, 8))
    reader = resize.FolderResizer(files, str(tmp_path / "resized"), same, ".npy")
    assert sum(reader[place] for place in range(len(reader))) == 0
    read = np.stack([np.load(tmp_path / "resized" / f"{file.stem}.npy") for file in files])
    features, right = read.mean((1, 2)), to_pixels(values()).mean((1, 2))
    assert np.allclose(np.cov(features.T), np.cov(right.T)) and np.allclose(features.mean(0), right.mean(0))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its file open
@pytest.mark.parametrize("shape", [(3, 8, 8), (4,)])
def test_webdataset_reads_the_tar(shape: tuple[int, ...], tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    export("webdataset", tmp_path / "a.tar", shape=shape)
    found = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode("rgb8"))
    right = to_pixels(values()) if len(shape) == 3 else values(shape=shape).numpy()
    read = np.stack([sample["png" if len(shape) == 3 else "npy"] for sample in found])
    assert np.array_equal(read, right, equal_nan=len(shape) == 1)
    assert [sample.get("cls", -1) for sample in found] == LABELS
    told = [[sample["json"][key] for sample in found] for key in ("job", "chain", "seed", "failed_row")]
    assert told == [JOBS, CHAINS, SEEDS, [None if row == -1 else row for row in FAILED_ROWS]]
    assert found[1]["__key__"] == f"01-job-0-chain-{FIRST + 1}-seed-7"


def test_parquet_has_a_column_for_each_thing(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    export("parquet", tmp_path / "a")
    table = parquet.read_table(tmp_path / "a")
    assert table.column_names == ["job", "chain", "seed", "label", "failed_row", "x"]
    assert json.loads(table.schema.metadata[b"shape"]) == [3, 8, 8]
    x = table["x"].combine_chunks().values.to_numpy().reshape(N, 3, 8, 8)
    assert x.dtype == np.float32 and np.array_equal(x, values().numpy(), equal_nan=True)
    assert [table[name].to_pylist() for name in ("job", "chain", "seed")] == [JOBS, CHAINS, SEEDS]
    for name, right in {"label": LABELS, "failed_row": FAILED_ROWS}.items():
        assert table[name].to_pylist() == [None if value == -1 else value for value in right]


def test_zarr_has_the_arrays(tmp_path: Path):
    zarr = pytest.importorskip("zarr")
    export("zarr", tmp_path / "a", size=32)  # units that do not fill the chunks
    group = zarr.open_group(tmp_path / "a", mode="r")
    assert group.metadata.zarr_format == 3 and group["x"].chunks == (32, 3, 8, 8)
    assert np.array_equal(group["x"][:], values().numpy(), equal_nan=True)
    found = [group[name][:].tolist() for name in ("jobs", "chains", "seeds", "labels", "failed_rows")]
    assert found == [JOBS, CHAINS, SEEDS, LABELS, FAILED_ROWS]


# ------------------------------------------------------------------------------------------------ bytes, content


@pytest.mark.parametrize("to", FORMATS)
def test_bytes_know_no_time(to: str, tmp_path: Path, monkeypatch):
    export(to, tmp_path / "a")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    export(to, tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("to", FORMATS)
def test_content_depends_neither_on_the_format_nor_on_the_units(to: str, tmp_path: Path):
    right = exports.write(units(), "npz", tmp_path / "right", N)
    assert right.rows == N and right.failed == 2
    assert [export(to, tmp_path / f"{size}", size) for size in (1, 7, 256)] == [right] * 3


def test_content_depends_on_all_else(tmp_path: Path):
    def content(change, **of_units) -> str:
        changed = ((job, unit) if job else change(unit) for job, unit in units(256, **of_units))
        return exports.write(changed, "npz", tmp_path / str(len(found)), N).content

    def value(unit):
        x = unit.x.clone()
        x[0, 0, 0, 0] += 1
        return 0, replace(unit, x=x)

    found: list[str] = []
    for change in (
        lambda unit: (0, unit),
        lambda unit: (2, unit),
        value,
        lambda unit: (0, replace(unit, x=unit.x.flip(0))),
        lambda unit: (0, replace(unit, chains=unit.chains + 1)),
        lambda unit: (0, replace(unit, labels=unit.labels.flip(0))),
        lambda unit: (0, replace(unit, labels=None)),
        lambda unit: (0, replace(unit, seed=8)),
        lambda unit: (0, replace(unit, failed={})),
        lambda unit: (0, replace(unit, failed={FAILED: 4})),
    ):
        found.append(content(change))
    found.append(content(lambda unit: (0, unit), dtype=torch.bfloat16))
    found.append(content(lambda unit: (0, unit), shape=(8, 3, 8)))
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("to", ["npz webdataset parquet", pytest.param("png zarr", marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_samples(to: str, tmp_path: Path):
    """2,000 units of 196 KiB against 200, each format in a process of its own."""
    formats = [name for name in to.split() if name not in PACKAGES or pytest.importorskip(PACKAGES[name])]
    told = in_a_process("grown", tmp_path, formats)
    assert len(told) == len(formats)
    for line in told:
        assert int(line.split()[1]) < 50_000, line  # KiB, where the samples are 350 MiB more


def in_a_process(check: str, folder: Path, formats: list[str]) -> list[str]:
    command = [sys.executable, export_cases.__file__, check, str(folder), *formats]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


# ------------------------------------------------------------------------------------------------ errors


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path):
    """A file that the system lets grow no further: as with a full disk, writing fails in the middle."""
    formats = [to for to in FORMATS if to not in PACKAGES or pytest.importorskip(PACKAGES[to])]
    told = in_a_process("too large", tmp_path, formats)
    right = "[] out: got {}, expected a place that can be written to: File too large"
    assert told == [f"{to} {right.format(tmp_path / to / 'out')}" for to in formats]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_in_reading_leaves_nothing_and_stays_as_it_is(to: str, error: type[BaseException], tmp_path: Path):
    def broken():
        yield from list(units())[:2]
        raise error("unit: got it damaged")

    if to in PACKAGES:
        pytest.importorskip(PACKAGES[to])
    with pytest.raises(error, match=r"^unit: got it damaged$"):
        exports.write(broken(), to, tmp_path / "a", N)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_an_interrupt_of_writing_leaves_nothing(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whoever writes in threads of its own writes no more once the error has been raised."""

    def slowly(path: Path, data: bytes) -> int:
        time.sleep(0.2)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            return file.write(data)

    def interrupted():
        yield from list(units(8))[:5]
        monkeypatch.setattr(Path, "write_bytes", slowly)
        threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        yield from list(units(8))[5:]
        time.sleep(0.5)

    if to in PACKAGES:
        pytest.importorskip(PACKAGES[to])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes of pytest-xdist ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            exports.write(interrupted(), to, tmp_path / "a", N)
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.5)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("to", FORMATS)
def test_what_exists_is_refused(to: str, tmp_path: Path):
    used = tmp_path / "used"
    used.mkdir()
    for out in (used, used / "file"):
        (used / "file").write_text("mine")
        with pytest.raises(OSError, match=f"^out: got {out}, which exists, expected a new name$"):
            export(to, out)
    assert tree(used) == {"file": b"mine"}
    with pytest.raises(OSError, match=r"^out: got .*, expected a place that can be written to: No such file or dir"):
        export(to, tmp_path / "none" / "out")


@pytest.mark.parametrize("to", FORMATS)
def test_what_came_into_being_meanwhile_is_kept(to: str, tmp_path: Path):
    def slow():
        yield from units()
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mine").touch()

    if to in PACKAGES:
        pytest.importorskip(PACKAGES[to])
    with pytest.raises(OSError, match="which exists"):
        exports.write(slow(), to, tmp_path / "a", N)
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "mine"]


def test_an_empty_target_is_filled_and_leftovers_of_the_dead_go(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for left in (".a.99999999.0.partial", ".b.99999999.0.partial", f".a.{os.getpid()}.999.partial"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "0.png").touch()
    export("png", tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.png"))) == N
    kept = [".b.99999999.0.partial", f".a.{os.getpid()}.999.partial", "a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"to": "gif"}, "to: got 'gif', expected one of npz, png, webdataset, parquet, zarr"),
        ({"to": "png", "units": units(shape=(4,))}, r"to: got png for samples of float32 \[4\], expected pictures"),
        ({"count": N + 1}, f"units: got {N} samples, expected {N + 1}"),
        ({"count": N - 1}, f"units: got {N} samples and more, expected {N - 1}"),
        ({"units": []}, f"units: got 0 samples, expected {N}"),
        ({"units": [], "count": 0}, "units: got 0 samples, expected some"),
        (
            {"units": [*units(), *units(shape=(4,))]},
            r"jobs: got samples of float32 \[4\] in job 0 beside float32 \[3, 8, 8\] before it, expected one shape",
        ),
        ({"units": [*units(), *units(dtype=torch.float64)], "count": 2 * N}, "jobs: got samples of float64"),
    ],
)
def test_hostile_arguments(change: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=f"^{message}"):
        exports.write(**{"units": units(), "to": "npz", "out": tmp_path / "a", "count": N, **change})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("to", "package"), PACKAGES.items())
def test_a_missing_package_is_named(to: str, package: str, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^{package}: got no such package, .* pip install 'ulam\[export\]'$"):
        exports.write(units(), to, tmp_path / "a", N)
