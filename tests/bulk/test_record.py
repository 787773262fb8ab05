"""plan.json: whatever is changed in it is found before work is done, in one line."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ulam.cli import main as cli

JOBS = """
model = "plain_net:net"
shape = [2, 3]
null-class = 7
slots = 32
unit = 32
[[job]]
steps = 3
spacing = "trailing"
chains = 64
labels = "0-6"
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A folder in which all is done, with what it was made of."""
    place = tmp_path_factory.mktemp("done")
    (place / "plain_net.py").write_text("from bulk_cases import Net as net\n")
    (place / "jobs.toml").write_text(JOBS)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(place)
        patched.syspath_prepend(str(place))
        assert cli.main(["run", "jobs.toml", "--out", "out", "--threads", "1"]) == 0
    return place


@pytest.fixture
def place(done: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of it, in which the test runs."""
    shutil.copytree(done, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.syspath_prepend(str(tmp_path / "copy"))
    return tmp_path / "copy"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values within a JSON value, to the first two of a list."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def changed(text: str, path: tuple[Any, ...], new: Any) -> str:
    """The JSON with another value at a path; without it for ``...``."""
    told = json.loads(text)
    at = told
    for key in path[:-1]:
        at = at[key]
    if new is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = new
    return json.dumps(told)


def said(capsys, *arguments: str) -> str:
    """The one line of a command that refuses."""
    capsys.readouterr()
    assert cli.main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ulam: error: ") and ": got " in line and ", expected " in line, line
    return str(line)


def test_any_other_value_is_found(place: Path, capsys):
    """In the environment and recipe, too: by another environment, all that is done would count as missing."""
    path = place / "out" / "plan.json"
    text = path.read_text()
    found = list(places(json.loads(text)))
    assert {("environment", "threads"), ("recipe", "jobs", 0, "chains"), ("jobs", 0, "keys", 1)} <= set(found)
    for where in found:
        for new in (..., None, 2, -1, "x", [], {}):
            other = changed(text, where, new)
            if json.loads(other) != json.loads(text):
                path.write_text(other)
                assert str(path) in said(capsys, "status", "out"), (where, new)
    for command in (["run", "out"], ["run", "jobs.toml", "--out", "out"], ["verify", "out"], ["merge", "out", "out"]):
        assert str(path) in said(capsys, *command)
    path.write_text(text)
    assert cli.main(["run", "out"]) == 0


def test_other_bytes_are_found(place: Path, capsys):
    path, chance = place / "out" / "plan.json", random.Random(0)
    data = path.read_bytes()
    for at in chance.sample(range(len(data)), 200):
        for broken in (data[:at], data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]):
            path.write_bytes(broken)
            if _value(broken) != json.loads(data):  # white space may change
                assert "plan.json" in said(capsys, "status", "out")


def _value(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


@pytest.mark.parametrize("option", ["--unit=64", "--slots=64", "--model=digits", "--format=npz", "--out=other"])
def test_options_of_the_plan_beside_a_folder_are_refused_by_name(place: Path, capsys, option: str):
    name, _, value = option.removeprefix("--").partition("=")
    assert said(capsys, "run", "out", option).startswith(f"ulam: error: {name}: got {value} beside the folder out, ")
    assert not (place / "other").exists()
