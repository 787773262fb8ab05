"""Files written whole or not at all, folders locked for one process, JSON and TOML read strictly."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PARTIAL = re.compile(r"\.(.+)\.(\d+)\.\d+\.partial")  # the target, the process, and a number unique within it
NUMBERS = itertools.count()
Checked = TypeVar("Checked")


@contextmanager
def whole(*targets: Path) -> Iterator[list[Path]]:
    """Paths to write files or folders to, renamed to their targets once all are written, or removed if there is an
    error first.

    A target that is a symbolic link stays one: what it points to is replaced.
    """
    targets = tuple(Path(os.path.realpath(target)) for target in targets)
    partial = [_partial(target) for target in targets]
    replaced = []
    try:
        yield partial
        for path in partial:
            _sync_all(path)
        for path, target in zip(partial, targets, strict=True):
            if path.is_dir() and target.exists():
                replaced.append(_partial(target))  # a folder cannot replace another at once
                os.replace(target, replaced[-1])
            os.replace(path, target)
    finally:
        for path in (*partial, *replaced):
            _remove(path)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.{next(NUMBERS)}.partial")


def _sync_all(path: Path) -> None:
    """Return when a file, or a folder with all in it, is on the disk."""
    if path.is_dir():
        inside = _inside(path)
        with ThreadPoolExecutor(16) as pool:  # a file system commits together what is asked for together
            while some := list(itertools.islice(inside, 1024)):
                list(pool.map(sync, some))
    sync(path)


def _inside(folder: str | Path) -> Iterator[str]:
    """All paths below a folder, not all of them in memory at once."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry.path
            if entry.is_dir(follow_symlinks=False):
                yield from _inside(entry.path)


def sync(path: str | Path) -> None:
    """Return when a file, or the names in a folder, are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writable_folder(folder: Path, names: tuple[str, ...] = ()) -> Iterator[None]:
    """Make the folder, check that it can be written to before anything is computed, and lock it for this process.

    At the end, folders made here are removed if empty. Partial files of processes that were killed are removed.
    ``names``: files to be written; nothing but a file may have such a name.

    Raises:
        OSError: a folder that cannot be written to, that another process writes to, or with a non-file in ``names``.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for target in (folder / name for name in names):
        if target.exists() and not target.is_file():
            raise OSError(f"out: got {folder}, where {target.name} is no file, expected another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OSError(f"out: got {folder}, expected a folder that can be written to: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"out: got {folder}, to which another process writes, expected another folder") from None
        except OSError:
            pass  # a file system without locks
        remove_orphans(folder)
        yield
    finally:
        os.close(descriptor)
        for path in missing:
            with suppress(OSError):  # not empty
                path.rmdir()


def check_writable_file(path: Path, name: str = "out") -> None:
    """Before anything is computed for it. Raises OSError, naming the option, for a file that cannot be written."""
    if path.exists() and not path.is_file():
        raise OSError(f"{name}: got {path}, which is no file, expected a file's name")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        why = error.strerror or error
        raise OSError(f"{name}: got {path}, expected a file in a folder that can be written to: {why}") from None
    remove_orphans(path.parent, path.name)


def written(folder: Path, write: Callable[[Path], list[str]]) -> tuple[list[str], OSError | None]:
    """The paths that ``write(folder)`` wrote; if that fails, those in a new temporary folder, and the error.

    Results are thus not lost when a disk is full. The caller raises the error, which names the new folder, at the end.

    Raises:
        OSError: neither folder could be written to.
    """
    try:
        return [str(folder / name) for name in write(folder)], None
    except OSError as error:
        lost = f"out: got {folder}, expected a folder that can be written to: {error.strerror or error}"
    try:
        other = Path(tempfile.mkdtemp(prefix="ulam-"))
        names = write(other)
    except OSError as error:
        raise OSError(f"{lost}; nor elsewhere: {error.strerror or error}") from None
    return [str(other / name) for name in names], OSError(f"{lost}; everything is in {other}")


def remove_orphans(folder: Path, name: str | None = None) -> None:
    """Remove what processes that no longer exist left half written: all of it, or that for one name alone."""
    for path in folder.iterdir():
        match = PARTIAL.fullmatch(path.name)
        if match is not None and name in (None, match[1]) and not Path(f"/proc/{match[2]}").exists():
            _remove(path)


def parse_json(name: str, text: str) -> Any:
    """Strict JSON: each key once, no NaN or Infinity, numbers that a float can hold, no excessive nesting.

    Raises:
        ValueError: anything else; the message is one line that begins with ``name``.
    """
    if not isinstance(text, (str, bytes)):
        from ulam_kernels.arguments import described  # which needs torch, as nothing else here

        raise ValueError(f"{name}: got {described(text)}, expected JSON")
    try:
        return json.loads(text, object_pairs_hook=each_key_once, parse_constant=_no_constant, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: got {_why(error)}, expected JSON") from None


def parse_toml(name: str, text: str) -> dict[str, Any]:
    """TOML. Raises ValueError for anything else, in one line that begins with ``name``."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: got {_why(error)}, expected TOML") from None


def json_text(value: object) -> str:
    """A report as JSON, with null for NaN and infinities, which JSON lacks."""
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads(object_pairs_hook=)``. Raises ValueError for a duplicate key."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} twice")
        result[key] = value
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"the number {text}")


def _whole(text: str) -> int:
    if len(text) > 300:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def one_line(error: BaseException) -> str:
    """An error's message on one line, cut at 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 400 else f"{text[:400]}..."


def _why(error: BaseException) -> str:
    return "values nested too deep" if isinstance(error, RecursionError) else one_line(error)


def full_path(folder: str | Path, name: str = "folder") -> Path:
    """Its absolute path, since workers and users change folders, with ``~`` as the shell reads it.

    Raises TypeError or ValueError for what is no path.
    """
    if not isinstance(folder, (str, Path)) or not str(folder) or not str(folder).isprintable():
        from ulam_kernels.arguments import described  # which needs torch, as nothing else here

        raise TypeError(f"{name}: got {described(folder)}, expected a path")
    return Path(folder).expanduser().absolute()
