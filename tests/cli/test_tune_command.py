"""`ulam tune`, and `--tune` of the other commands: the table, what it leads to, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cli_cases import exit_and_error
from ulam import bulk
from ulam.cli.main import main

MODEL = ["--model", "tuning_cases:slow", "--shape", "4"]
JOB = ["--steps", "5", "--option", "spacing=trailing"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_the_table_names_the_fastest_way(capsys):
    assert main(["tune", *MODEL, *JOB, "--slots", "32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"compiled.*, 32 slots: [\d.]+ times eager's chains a second \(DDIM\(", lines[0])
    assert [line.split("  ")[0] for line in lines[2:4]] == ["eager", "compiled (frozen)"]
    assert sum(line.endswith("chosen") for line in lines) == 1
    assert re.fullmatch(r'ulam: for ulam run: compile = ("frozen"|true), slots = 32', lines[-1])


def test_samples_are_drawn_as_tuned(home: Path, capsys):
    out = home / "out"
    assert main(["sample", *MODEL, *JOB, "--chains", "16", "--tune", "0.01", "--out", str(out)]) == 0
    assert "ulam: network compiled" in capsys.readouterr().out
    assert json.loads((out / "report.json").read_text())["network"].startswith("compiled")


def test_a_bulk_run_keeps_what_was_found_in_its_plan(home: Path, capsys):
    (home / "jobs.toml").write_text("[[job]]\nsteps = 5\nchains = 64\n")
    command = ["run", str(home / "jobs.toml"), *MODEL, "--slots", "32", "--tune", "--out", str(home / "out")]
    assert main(command) == 0
    assert "ulam: network compiled" in capsys.readouterr().out
    found = bulk.open(home / "out")
    assert found.record.recipe is not None and found.record.recipe["settings"]["compile"] in ("frozen", True)
    assert found.status().done_chains == 64
    assert main(["run", str(home / "out")]) == 0, "goes on as it was tuned"
    samples = torch.cat([unit.x for _, unit in found.finished()])
    assert samples.shape == (64, 4) and samples.isfinite().all()


@pytest.mark.parametrize(
    "given",
    [["--accuracy", "bf16"], ["--accuracy", "2"], ["--slots", "many"], ["--slots", "0"], ["--budget", "0"]],
    ids=" ".join,
)
def test_a_wrong_option_is_one_line(given: list[str], capsys):
    code, line = exit_and_error(capsys, ["tune", *MODEL, *given])
    assert code == 2 and line.count("\n") == 1 and given[0].strip("-") in line and "got" in line


def test_compile_takes_a_way_or_none(home: Path):
    for number, given in enumerate(([], ["--compile"], ["--compile", "frozen"], ["--weights-dtype", "bf16"])):
        assert main(["sample", *MODEL, *JOB, "--chains", "4", "--out", str(home / str(number)), *given]) == 0
