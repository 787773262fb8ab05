"""Your own network on the command line: what it is told of time, what of its output counts, what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import ulam
from archives import arrays
from cli_cases import exit_and_error
from ulam import bulk
from ulam.cli import main as cli

MODULE = """
import torch, ulam

class Embeds(torch.nn.Module):
    def __init__(self, steps=1000):
        super().__init__()
        torch.manual_seed(0)
        self.steps, self.linear = torch.nn.Embedding(steps, 3), torch.nn.Linear(3, 3)

    def forward(self, x, t):
        return self.linear(x) + self.steps(t)

def make():
    return Embeds()

def packed():
    net = Embeds()
    return lambda x, t: {"eps": net(x, t), "x0": x}

def tuples():
    net = Embeds()
    return lambda x, t: (x, net(x, t))

net = Embeds()
denoiser = ulam.Denoiser(net, ulam.schedules.vp_linear(1000), time="index")

def brought():
    return ulam.Denoiser(packed(), ulam.schedules.vp_linear(1000), time="index", output="eps")

def by_hand(x, t):
    return x

def sized(width, depth=3, *, act):
    return Embeds()
"""
SAMPLE = "sample --shape 3 --steps 3 --spacing trailing --chains 2 --out out --model bring:"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bring.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "bring", raising=False)
    return tmp_path


def test_every_way_to_hand_over_a_network_gives_the_same_samples(folder: Path, capsys) -> None:
    found = {}
    for options in (
        "make --time index",
        "net --time index",
        "denoiser",
        "brought",
        "packed --time index --output eps",
        "packed --time index --output 0",
        "tuples --time index --output 1",
        "tuples --time index --output -1",
    ):
        assert exit_and_error(capsys, SAMPLE + options)[0] == 0
        found[options] = arrays(folder / "out" / "samples.npz")["arr_0"]
    first = found["make --time index"]
    assert np.isfinite(first).all() and all((first == other).all() for other in found.values())


@pytest.mark.parametrize(
    "options, code, said",
    [
        ("make", 1, r"NetworkError: net: got an error .*'indices'.*, expected time='index' \(--time index\), whole"),
        ("packed --time index", 2, r"net: got dict with 'eps' \[2, 3\], 'x0' \[2, 3\], expected one tensor, or"),
        ("packed --time index --output v", 2, "output: got 'v' for dict with 'eps'"),
        ("make --time index --output eps", 2, "output: got 'eps' for a network that returns a tensor, expected None"),
        ("make --time long", 2, r"time: got 'long', expected one of auto, index \(did you mean index\?\)"),
        ("make --time index --schedule ve(0.01,10)", 2, "time: got 'index' with ve"),
        ("brought --time index", 2, "time: got 'index', expected none: the Denoiser of bring:brought brings its own"),
        ("brought --output eps", 2, "output: got 'eps', expected none"),
        ("by_hand", 2, r"model: got 'bring:by_hand', which takes x, t, expected a function without"),
        ("sized", 2, "which takes width, act, expected"),
        ("Embeds --time index", 0, ""),
        ("MODULE", 2, "model: got 'bring:MODULE', expected a function of the module bring"),
    ],
    ids=range(12),
)  # fmt: skip
def test_what_is_missing_is_said_in_one_line(folder: Path, capsys, options: str, code: int, said: str) -> None:
    left, line = exit_and_error(capsys, SAMPLE + options)
    assert left == code and line.count("\n") == (code > 0), line
    assert re.search(said, line), line


def test_every_command_that_takes_a_model_takes_its_time_and_output(folder: Path) -> None:
    """Options that a command has but drops would be told to nobody."""
    for command in ("sample --out out", "check --out out", "tune", "run jobs.toml"):
        model = ["--model", "bring:packed", "--shape", "3", "--time", "index", "--output", "1"]
        options = cli._parser().parse_args([*command.split(), *model])
        assert (options.time, options.output) == ("index", 1)
    options = cli._parser().parse_args(["tune", "--model", "bring:brought", "--shape", "3", "--time", "index"])
    with pytest.raises(ValueError, match="time: got 'index', expected none: the Denoiser of bring:brought"):
        options.run(options)


def test_a_file_in_place_of_a_module_is_the_module_that_it_is(folder: Path, capsys) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "nets.py").write_text("import neighbour\nmake = neighbour.make\n")
    (folder / "elsewhere" / "neighbour.py").write_text("def make():\n    return lambda x, t: 0.5 * x\n")
    (folder / "json.py").write_text("make = None\n")
    for given in ("elsewhere/nets.py:make", str(folder / "elsewhere" / "nets.py:make")):
        assert exit_and_error(capsys, SAMPLE.replace("bring:", f"{given} ")) == (0, "")
    for given, said in {
        "bring.py:nothing": "model: got 'bring.py:nothing', expected a function of the module bring",
        "nowhere.py:make": "model: got 'nowhere.py:make', where nowhere.py is no file, expected file.py:factory",
        "json.py:make": "model: got 'json.py:make', but json is the module of",
        "../nets:make": "model: got '../nets:make', expected module:factory of a module that can be imported",
        "bring": "which is not there, expected digits, a folder that diffusers saved (model_index.json or config.json "
        "is in it), or bring.py:FUNCTION, the function in that file",
        "bring.py": "which is no folder, expected digits, a folder that diffusers saved (model_index.json or",
        "other": "which is not there, expected digits, a folder that diffusers saved (model_index.json or config.json "
        "is in it), or module:factory or file.py:factory, a function that makes the network",
        "Digit": "expected digits (did you mean digits?), a folder",
        "no/folder": "got 'no/folder', which is not there, expected digits, a folder that diffusers saved",
    }.items():
        code, line = exit_and_error(capsys, SAMPLE.replace("bring:", f"{given} "))
        assert code == 2 and line.count("\n") == 1 and said in line, line


def test_options_may_be_spelled_with_underscores(folder: Path, capsys) -> None:
    given = SAMPLE.replace("bring:", "bring:packed") + " --time index --output eps"
    assert exit_and_error(capsys, f"{given} --on_interrupt drain")[0] == 0
    code, line = exit_and_error(capsys, f"{given} --no_such_option 3")
    assert code == 2 and "--no-such-option" in line
    assert cli._with_hyphens("--null_class=a_b") == "--null-class=a_b"
    for word in ("a_b", "-a_b", "--", "--=a_b", "schedule_x=3", "-1"):
        assert cli._with_hyphens(word) == word


def test_a_recipe_of_many_samples_has_the_same_keys(folder: Path) -> None:
    job = "[[job]]\nsteps = 3\nspacing = 'trailing'\nchains = 2\n"
    (folder / "jobs.toml").write_text('model = "bring:packed"\nshape = [3]\ntime = "index"\noutput = "eps"\n' + job)
    (folder / "place.toml").write_text('model = "bring:tuples"\nshape = [3]\ntime = "index"\noutput = 1\n' + job)
    assert cli.main(["run", "jobs.toml", "--out", "many"]) == 0
    assert cli.main(["run", "place.toml", "--out", "place"]) == 0
    assert cli.main(["run", "many"]) == 0
    assert json.loads((folder / "many" / "plan.json").read_text())["recipe"]["settings"]["output"] == "eps"
    assert (
        cli.main(["export", "many", "--to", "npz", "many.npz"])
        == cli.main(["export", "place", "--to", "npz", "place.npz"])
        == 0
    )
    import bring  # type: ignore[import-not-found]

    expected = ulam.sample(
        bring.denoiser, ulam.samplers.DDIM(3, spacing="trailing"), (3,), 2, slots=256, progress=False
    )
    for name in ("many.npz", "place.npz"):
        assert torch.equal(torch.from_numpy(arrays(folder / name)["arr_0"]), expected)
    with pytest.raises(TypeError, match="output: got True, expected a key, a position"):
        bulk.read_plan("jobs.toml", {"output": True})


def test_the_samples_of_another_output_have_other_keys(folder: Path) -> None:
    def keys(output: object) -> list[str]:
        job = bulk.Job(ulam.Denoiser(torch.nn.Identity(), ulam.schedules.vp_linear(9), output=output), SAMPLER, (3,), 2)
        return [unit.key for unit in bulk.Plan(job).units()]

    found = [keys(output) for output in (None, "eps", "x0", 0, lambda m: m[0], lambda m: m[1])]
    assert all(found.count(one) == 1 for one in found)


SAMPLER = ulam.samplers.DDIM(3, spacing="trailing")
