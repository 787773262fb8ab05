"""The store: a folder in which units appear whole or not at all, under their keys."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...files import sync
from .owners import is_alive, owner, runs_here

# A unit's key; how many of its chains failed, where any did; the format.
UNIT = re.compile(r"([0-9a-f]{64})(?:\.failed-(\d+))?\.(safetensors|npz)")
PARTIAL = re.compile(r"\..+\.([\w-]+)\.\d+\.partial")
NUMBERS = itertools.count(1)  # of this process, whose stores and threads may write the same file at once
ABANDONED = 3600.0  # seconds after which a partial file of another machine is nobody's any more


class Store:
    """Files of a bulk run. The list of what is done is the listing of the folder; nothing else is kept about it.

    All is written to a temporary name, synced and renamed. The few operations here (list, read, put, put if absent,
    remove) are all that another kind of store would have to offer.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def present(self) -> dict[str, str]:
        """What follows the key in the names of all units in the store, by key."""
        found: dict[str, str] = {}
        with suppress(FileNotFoundError):
            for part in os.scandir(self.folder / "units"):
                found.update(self._names(part.name))
        return found

    def _names(self, part: str) -> dict[str, str]:
        try:
            names = os.listdir(self.folder / "units" / part)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        return {name[:64]: sys.intern(name[64:]) for name in names if UNIT.fullmatch(name)}

    def find(self, keys: Iterable[str]) -> str | None:
        """The name of the first of these units that is here, or None."""
        for key in keys:
            if (ending := self._names(key[:2]).get(key)) is not None:
                return key + ending
        return None

    def path(self, name: str) -> Path:
        """Where a unit of this name lies."""
        return self.folder / "units" / name[:2] / name

    def put_unit(self, key: str, data: bytes, failed: int, format: str) -> None:
        """Store a unit's file, unless it is here.

        Raises:
            OSError: it cannot be written, as on a full disk; nothing is left of it.
            ValueError: the store has other bytes under this key.
        """
        name = f"{key}.failed-{failed}.{format}" if failed else f"{key}.{format}"
        there = self.find([key])
        if there is None:
            self.put(f"units/{name[:2]}/{name}", data)
        elif self.path(there).read_bytes() != data:
            raise ValueError(
                f"unit {key}: got other bytes than {self.path(there)} has, expected the same: the file is damaged "
                "(ulam verify tells) or the network's results vary from run to run"
            )

    def put(self, name: str, data: bytes, replace: bool = True) -> bool:
        """Write a file, whole or not at all; False if ``replace`` is not wanted and it is here already."""
        target = self.folder / name
        partial = target.with_name(f".{target.name}.{owner()}.{next(NUMBERS)}.partial")
        try:
            with self.writing():
                target.parent.mkdir(parents=True, exist_ok=True)
                partial.write_bytes(data)
                sync(partial)
                if replace:
                    os.replace(partial, target)
                else:
                    try:
                        os.link(partial, target)
                    except FileExistsError:
                        return False
                with suppress(OSError):  # where a file system cannot, a loss of power may undo the renaming
                    sync(target.parent)
                return True
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Within, an OSError becomes one that names the store and says what is wrong with it."""
        try:
            yield
        except OSError as error:
            got = f"out: got {self.folder}, expected a folder that can be written to"
            raise OSError(f"{got}: {error.strerror or error}") from None

    def clean(self) -> None:
        """Remove what killed processes left: files they had not written whole, their beats and leases."""
        for place, suffix in (("workers", ".json"), ("leases", "")):  # of killed workers of this machine
            for path in (self.folder / place).glob(f"*{suffix}"):
                with suppress(OSError, UnicodeDecodeError):
                    if runs_here(path.stem if suffix else path.read_text()) is False:
                        path.unlink()
        folders = [self.folder, *(path for path in self.folder.glob("*") if path.is_dir())]
        folders += [path for path in (self.folder / "units").glob("*") if path.is_dir()]
        for folder in folders:
            for name in os.listdir(folder):
                if (match := PARTIAL.fullmatch(name)) and not is_alive(match[1], folder / name, ABANDONED):
                    (folder / name).unlink(missing_ok=True)

    def put_error(self, key: str, text: str) -> None:
        """Note what a worker stopped at; that it cannot be noted is no further error."""
        with suppress(OSError):
            self.put(f"errors/{key}", text.encode())

    def errors(self) -> dict[str, str]:
        """What workers stopped at, by the keys of the units they had in hand."""
        found = {}
        for path in (self.folder / "errors").glob("[0-9a-f]*"):
            with suppress(OSError):
                found[path.name] = path.read_text(errors="replace")
        return found

    def set_aside(self, name: str) -> Path:
        """Move a damaged unit to the folder ``damaged``; it will be done again."""
        target = self.folder / "damaged" / name
        target.parent.mkdir(exist_ok=True)
        os.replace(self.path(name), target)
        return target


def failed_chains(name: str) -> int:
    """How many chains of a unit failed, by its name in the store."""
    match = UNIT.fullmatch(name)
    return int(match[2] or 0) if match else 0


def format_of(name: str) -> str:
    """The format of a unit's file, by its name."""
    return name.rpartition(".")[2]
