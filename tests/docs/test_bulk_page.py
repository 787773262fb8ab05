"""docs/bulk.md does what it says: its commands are the command line's, those of one machine run, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

import ulam
from ulam.cli import main as cli

PAGE = (Path(__file__).parents[2] / "docs" / "bulk.md").read_text()
SECTIONS = {section.splitlines()[0]: section for section in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
SHELL = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"\b(ulam (?:run|status|verify|export|merge) [^\n\"`]*)", SHELL)


def blocks(section: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", SECTIONS[section], flags=re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_of_the_command_line(command: str):
    options = cli._parser().parse_args(shlex.split(command)[1:])
    assert callable(options.run)


def test_every_place_has_its_command():
    assert len(COMMANDS) >= 9
    for place, words in {
        "Eight GPUs": "torchrun",
        "A Slurm array": "sbatch",
        "A Ray cluster": "--launcher ray",
    }.items():
        assert words in SECTIONS[place]


def test_one_machine_as_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (jobs,) = blocks("One machine", "toml")
    Path("jobs.toml").write_text(jobs)
    for line in blocks("One machine", "sh")[0].splitlines():
        command = shlex.split(line, comments=True)
        command = [part if part != "2" else "1" for part in command]  # one worker is this process
        assert cli.main(command[1:]) == 0, (line, capsys.readouterr().err)
    assert ulam.bulk.open("many").status().done_chains == 256


def test_the_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    (code,) = blocks("In Python", "python")
    exec(code, namespace)
    assert capsys.readouterr().out.startswith("64\ntorch.Size([32, 1, 28, 28])")
    batches = list(ulam.bulk.open("few").batches())
    assert torch.cat([batch["chains"] for batch in batches]).tolist() == list(range(64))
