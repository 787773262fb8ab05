"""The store and its leases: files whole or absent, damage found and redone, leases that only save work."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from bulk_cases import job
from ulam import bulk
from ulam.bulk.store import leases as leases_module
from ulam.bulk.store import owners as owners_module
from ulam.bulk.store.leases import Leases
from ulam.bulk.store.owners import owner
from ulam.bulk.store.store import Store, format_of
from ulam.bulk.store.unit import Damaged, Unit, from_bytes, to_bytes

KILLS = int(os.environ.get("ULAM_KILLS", "12"))
WRITER = """
import sys
from pathlib import Path
import torch
from ulam.bulk.store.store import Store
from ulam.bulk.store.unit import Unit, to_bytes
store, first = Store(Path(sys.argv[1])), int(sys.argv[2])
for number in range(first, first + 1_000_000):
    key = f"{number:064x}"
    unit = Unit(torch.full((200, 100), float(number)), torch.arange(200), None, 0, {3: 1} if number % 2 else {})
    store.put_unit(key, to_bytes(unit, key, "safetensors"), len(unit.failed), "safetensors")
    print(number, flush=True)
"""


def stored(store: Store) -> dict[str, Unit]:
    """All units in the store; raises if one is not whole."""
    names = [key + ending for key, ending in store.present().items()]
    return {name[:64]: from_bytes(store.path(name).read_bytes(), name[:64], format_of(name)) for name in names}


@pytest.mark.long
def test_a_process_killed_while_it_writes_leaves_whole_units_only(tmp_path):
    """What it said was stored is there. What it left is cleaned at the next start. ULAM_KILLS=200 for more."""
    chance, store, first = random.Random(1), Store(tmp_path), 0
    for _ in range(KILLS):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(first)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
            assert run.stdout is not None
            run.stdout.readline()
            time.sleep(chance.random() * 0.05)
            run.send_signal(signal.SIGKILL)
            told = [first, *(int(line) for line in run.stdout.read().split("\n")[:-1])]
        store.clean()
        assert not list(tmp_path.rglob("*.partial"))
        found = stored(store)
        assert {f"{number:064x}" for number in told} <= found.keys()
        first = told[-1] + 2
    assert all(unit.x[0, 0] == int(key, 16) and bool(unit.failed) == int(key, 16) % 2 for key, unit in found.items())


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    """The system lets it grow no further, as on a full disk; what is stored stays."""
    store = Store(tmp_path)
    store.put("a", b"here")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"^out: got .*, expected a folder that can be written to: File too large$"):
            store.put("b", b"0" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_disk_that_fills_up_at_any_step_loses_no_finished_unit(folder, monkeypatch, call: str):
    """One line, no partial file, no lease; the units that are there stay, and the next run ends the rest."""
    right, real, writes = units(folder), getattr(os, call), []
    shutil.rmtree(folder.path / "units")

    def full(*given: Any, **named: Any) -> Any:
        writes.append(given)
        if len(writes) > 3:
            raise OSError(28, "No space left on device")
        return real(*given, **named)

    message = rf"^out: got {folder.path}, expected a folder that can be written to: No space left on device$"
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError, match=message):
            bulk.run(PLAN, folder.path, 1, progress=False)
    assert units(folder).items() < right.items() and folder.verify().damaged == []
    assert not list(folder.path.rglob("*.partial")) and os.listdir(folder.path / "leases") == []
    assert os.listdir(folder.path / "workers") == []
    bulk.run(PLAN, folder.path, 1, progress=False)
    assert units(folder) == right


@pytest.mark.parametrize("format", ["safetensors", "npz"])
def test_every_change_of_a_file_is_found(format: str):
    unit = Unit(torch.randn(3, 2), torch.arange(3), torch.tensor([1, 2, 3]), -5, {1: 4})
    data = to_bytes(unit, "a" * 64, format)
    again = from_bytes(data, "a" * 64, format)
    assert torch.equal(again.x, unit.x) and again.failed == {1: 4} and again.seed == -5
    assert to_bytes(unit, "a" * 64, format) == data
    changed = [data[:i] + bytes([data[i] ^ bit]) + data[i + 1 :] for i in range(len(data)) for bit in (1, 0x20, 0xFF)]
    for broken in (*changed, *(data[:end] for end in range(0, len(data), 7)), data + b"0", b""):
        with pytest.raises(Damaged):
            from_bytes(broken, "a" * 64, format)
    with pytest.raises(Damaged):
        from_bytes(data, "b" * 64, format)


@pytest.fixture
def folder(tmp_path) -> bulk.Folder:
    return bulk.run(PLAN, tmp_path / "out", 1, progress=False)


PLAN = bulk.Plan(job(chains=192), slots=32, unit=32)


def units(folder: bulk.Folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder.path / "units").rglob("*.safetensors")}


def test_damage_is_found_set_aside_and_done_again(folder):
    right = units(folder)
    flipped, cut, gone, *_ = sorted((folder.path / "units").rglob("*.safetensors"))
    data = bytearray(flipped.read_bytes())
    data[-3] ^= 1
    flipped.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    with pytest.raises(ValueError, match=r"^unit: got .*, damaged \(.*\), expected what was written: ulam verify"):
        list(folder.finished())
    found = folder.verify()
    assert sorted(found.damaged) == [flipped.name, cut.name] and len(found.missing) == 3 and found.units == 3
    assert sorted(os.listdir(folder.path / "damaged")) == [flipped.name, cut.name]
    bulk.run(PLAN, folder.path, 1, progress=False)
    assert units(folder) == right and folder.verify().passed


def test_other_bytes_under_a_key_are_refused(folder):
    key, ending = next(iter(folder.store.present().items()))
    with pytest.raises(ValueError, match=rf"^unit {key}: got other bytes than .*, expected the same"):
        folder.store.put_unit(key, b"other", 0, format_of(ending))


# ------------------------------------------------------------------------------------------------------ leases


MACHINE = owner().rsplit("-", 2)[0]
ODD = [bytes(40), b"a-1-2\0", b"x" * 5000, b"/etc/passwd", b"..", f"{MACHINE}-\u00b2-5".encode()]


@pytest.mark.parametrize("lease", [b"", b"junk", b"\xff\xfe", b"other-1-99-5", b"own", b"a\nb", *ODD])
def test_leases_of_nobody_hold_no_work_up(folder, lease: bytes):
    """Whatever stands in them, and several by the same owner; the clock may run backwards, too."""
    right = units(folder)
    lease = owner().encode() if lease == b"own" else lease
    for path in (folder.path / "units").rglob("*.safetensors"):
        path.unlink()
    for unit in folder.record.units():
        path = folder.path / "leases" / unit.key
        path.write_bytes(lease)
        os.utime(path, (4e9, 4e9))
    bulk.run(PLAN, folder.path, 1, progress=False)
    assert units(folder) == right and os.listdir(folder.path / "leases") == []


def test_a_lease_of_another_machine_holds_while_its_worker_beats(tmp_path, monkeypatch):
    """Its beats are judged by whether they change in this process's time, not by what its clock says."""
    store, now = Store(tmp_path), [100.0]
    monkeypatch.setattr(leases_module.time, "monotonic", lambda: now[0])
    other = "elsewhere-1-7-7"

    def beat(at: float) -> None:
        store.put(f"workers/{other}.json", b"{}")
        os.utime(tmp_path / "workers" / f"{other}.json", (at, at))

    def told() -> dict[str, Any]:
        return {}

    with Leases(store, told) as leases:
        (tmp_path / "leases" / "u").write_text(other)
        beat(5e9)
        assert not leases.take("u")
        now[0] += leases_module.PATIENCE - 1
        assert not leases.take("u")
        beat(1.0)  # its clock was set back: it still lives
        now[0] += 2
        assert not leases.take("u")
        now[0] += leases_module.PATIENCE + 1
        assert leases.take("u") and not leases.take("u")
        leases.release("u")
        assert leases.take("u")
    assert os.listdir(tmp_path / "leases") == []


def test_a_process_of_this_machine_that_is_stuck_holds_no_work_up(tmp_path, monkeypatch):
    """Stopped by a signal, or waiting for a disk: it runs, and beats no more."""
    store, now = Store(tmp_path), [100.0]
    monkeypatch.setattr(leases_module.time, "monotonic", lambda: now[0])
    with subprocess.Popen(["sleep", "60"]) as process:
        begin = owners_module._begin(process.pid)
        other = f"{MACHINE}-{process.pid}-{begin}"
        with Leases(store, dict) as leases:
            (tmp_path / "leases" / "u").write_text(other)
            store.put(f"workers/{other}.json", b"{}")
            assert not leases.take("u")
            now[0] += leases_module.PATIENCE - 1
            assert not leases.take("u")
            now[0] += 2
            assert leases.take("u")
        (tmp_path / "leases" / "v").write_text(other)
        process.kill()
    with Leases(store, dict) as leases:
        assert leases.take("v")


BEATS = [b"", b"{}", b"[]", b"5", b"\xff", bytes(9), b'{"owner": 5}', b'{"owner": "elsewhere-1-7-7"}',
         b'{"owner": "elsewhere-1-7-7", "chains": "x", "seconds": null}',
         b'{"owner": "elsewhere-1-7-7", "chains": 1, "seconds": 0}']  # fmt: skip


@pytest.mark.parametrize("beat", BEATS)
def test_what_is_no_beat_counts_as_no_worker(folder, beat: bytes):
    (folder.path / "workers" / "elsewhere-1-7-7.json").write_bytes(beat)
    told = folder.status()
    assert (told.workers, told.running, told.rate, told.seconds_left) == (0, 0, 0, None)
    bulk.run(PLAN, folder.path, 1, progress=False)


def test_what_dead_workers_left_is_cleaned(tmp_path):
    dead, alive, other = f"{MACHINE}-999999999-1", owner(), "elsewhere-1-7-7"
    store = Store(tmp_path)
    for who in (dead, alive, other):
        store.put(f"workers/{who}.json", b"{}")
        store.put(f"leases/{who}", who.encode())
        (tmp_path / "leases" / f".x.{who}.1.partial").write_text("")
    store.clean()
    assert sorted(os.listdir(tmp_path / "workers")) == sorted([f"{alive}.json", f"{other}.json"])
    expected = [alive, other] + [f".x.{who}.1.partial" for who in (alive, other)]
    assert sorted(os.listdir(tmp_path / "leases")) == sorted(expected)
