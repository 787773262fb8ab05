"""Values on the command line: accepted as meant, or refused in a line that names the option."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from cli_cases import exit_and_error
from ulam.files import json_text, parse_json
from ulam.programs.program import Program

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

MODULE = """
import torch

def net():
    return lambda x, t: torch.tanh(x)

def labelled():
    return lambda x, t, y: torch.tanh(x)

def lost():
    return lambda x, t: x * float("nan")

def steep():
    return lambda x: -(x**4).sum(1)
"""
SAMPLE = "sample --model values:net --shape 3 --steps 3 --chains 2 --out out"
CHECK = "check --model values:net --shape 3 --schedule ve(0.01,10) --predicts x0 --levels 2 --no-plots --out out"
MCMC = "mcmc --steps 9 --warmup 0 --chains 2 --no-plots --out out"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "values.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["karras", "exponential", "beta", "beta-time"])
def test_every_name_of_noise_levels_is_an_option(folder: Path, capsys, name: str):
    assert exit_and_error(capsys, f"{SAMPLE} --sampler Euler --sigmas {name}")[0] == 0
    assert f"sigmas='{name}'" in json.loads((folder / "out" / "report.json").read_text())["sampler"]


@pytest.mark.parametrize(
    "command, error",
    [
        (f"{SAMPLE} --sampler euler --sigmas 3,x", r"argument --sigmas: got '3,x', expected karras, .* or levels"),
        (f"{SAMPLE} --sampler euler --sigmas karas", r"sigmas: got 'karas', expected one of karras, .*"),
        (f"{SAMPLE} --threshold x", r"argument --threshold: got 'x', expected numbers such as 0.995"),
        (
            f"{SAMPLE} --threshold 0.9,1,2",
            r"threshold: got \(0.9, 1.0, 2.0\), expected a quantile, or quantile and cap",
        ),
        (
            f"{SAMPLE} --sampler annealedlangevin",
            r"steps: got 3, expected an argument of the sampler annealed",
        ),
        (f"{SAMPLE} --slots x", r"argument --slots: got 'x', expected a whole number or auto"),
        (f"{SAMPLE} --option steps=2", r"steps: got it twice, expected it once"),
        (f"{SAMPLE} --option eta=1 --option eta=0", r"eta: got it twice, expected it once"),
        (f"{SAMPLE} --null-class 9{'0' * 400}", r"null-class: got .*, expected a whole number of 64 bits"),
        (f"{SAMPLE} --preview-every 0", r"preview-every: got 0, expected at least 1"),
        (f"{MCMC} --target gaussian --dimension 0", r"dimension: got 0, expected 1 to 2\^30"),
        (f"{MCMC} --target ring --dimension 9{'0' * 30}", r"dimension: got 9.*, expected 1 to 2\^30"),
        (f"{CHECK} --data data.npz --noisy nan", r"noisy: got nan, expected a noise level above 0"),
        (f"{CHECK} --data data.npz --noisy -1", r"noisy: got -1, expected a noise level above 0"),
        (f"{CHECK} --data data.npz --pixels 0 1", r"pixels: got them for float32 data, expected none"),
        (
            f"{CHECK} --data wide.npz",
            r"data: got wide.npz with values that are not finite in float32, expected",
        ),
        (f"{CHECK} --data labels.npz", r"data: got 18446744073709551615 in arr_1, expected labels of 64 bits"),
        (f"{CHECK} --data lone.npy", r"data: got lone.npy \(one array .*arr_0=.*\), expected an npz of plain arrays"),
    ],
)
def test_values_are_refused_by_their_option(folder: Path, capsys, command: str, error: str):
    x = np.zeros((8, 3), dtype=np.float32)
    np.savez(folder / "data.npz", arr_0=x)
    np.savez(folder / "wide.npz", arr_0=np.full((8, 3), 1e300))
    np.savez(folder / "labels.npz", arr_0=x, arr_1=np.full(8, 2**64 - 1, dtype=np.uint64))
    np.save(folder / "lone.npy", x)
    code, lines = exit_and_error(capsys, command)
    assert code == 2 and not (folder / "out").exists()
    assert lines.count("\n") == 1
    assert re.search(f"^ulam: error: {error}", lines)


@pytest.mark.filterwarnings("ignore:.*left the finite numbers")
@pytest.mark.parametrize(
    "command, report",
    [
        (f"{MCMC} --target values:steep --shape 2 --sampler ula --step 9", "report.json"),
        (f"{CHECK.replace('values:net', 'values:lost')} --data data.npz", "check.json"),
        (SAMPLE.replace("values:net", "values:lost"), "report.json"),
    ],
)
def test_reports_of_runs_that_went_wrong_are_json(folder: Path, capsys, command: str, report: str):
    """JSON has no NaN, and lines of what others compute from it are of no use."""
    np.savez(folder / "data.npz", arr_0=np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3))
    assert "encountered in" not in exit_and_error(capsys, command)[1]
    assert isinstance(parse_json("report", (folder / "out" / report).read_text()), dict)


def test_numbers_that_json_lacks_are_null():
    given = {"a": [float("nan"), 1.5, {"b": float("-inf")}], "c": (True, None, "nan")}
    assert json.loads(json_text(given)) == {"a": [None, 1.5, {"b": None}], "c": [True, None, "nan"]}


@pytest.mark.parametrize("text", [None, 3, ["{}"]])
def test_a_program_is_read_from_text(text: object):
    with pytest.raises(ValueError, match=r"^text: got .*, expected JSON$"):
        Program.from_json(text)
