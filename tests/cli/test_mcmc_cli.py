"""`ulam mcmc`: files, their contents against the same run in Python, and errors in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from archives import arrays
from ulam import mcmc
from ulam.cli.main import main

SIZES = ["--chains", "8", "--steps", "40", "--warmup", "20", "--thin", "4", "--seed", "3"]


def test_double_well_by_mala(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots are matplotlib's")
    out = tmp_path / "out"
    assert (
        main(["mcmc", "--target", "double-well", "--sampler", "mala", "--step", "0.05", *SIZES, "--out", str(out)]) == 0
    )
    assert sorted(path.name for path in out.iterdir()) == [
        "draws.npz", "marginal.png", "rank.png", "report.json", "trace.png",
    ]  # fmt: skip
    sizes = {"chains": 8, "steps": 40, "warmup": 20, "thin": 4, "seed": 3, "progress": False}
    same = mcmc.run(mcmc.DoubleWell(2), mcmc.MALA(0.05), **sizes)
    saved = arrays(out / "draws.npz")
    np.testing.assert_array_equal(saved["draws"], same.draws.numpy())
    np.testing.assert_array_equal(saved["energies"], same.energies.numpy())
    report = json.loads((out / "report.json").read_text())
    assert report["acceptance"] == pytest.approx(float(same.acceptance.mean()))
    assert report["steps"] == 40 and report["divergent_chains"] == []
    for name in ("trace", "rank", "marginal"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "acceptance" in capsys.readouterr().out


def test_an_energy_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "bowl.py").write_text("def energy():\n    return lambda x: x.square().sum(1) / 2\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["mcmc", "--target", "bowl:energy", "--shape", "3", "--sampler", "hmc", "--leapfrog", "4", "--no-plots"]
    assert main([*arguments, *SIZES, "--out", "run"]) == 0
    assert arrays("run/draws.npz")["draws"].shape == (8, 10, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "banana"], "target: got 'banana', expected one of gaussian"),
        (["--target", "ring", "--sampler", "gibbs"], "sampler: got 'gibbs', expected one of ula"),
        (
            ["--target", "ring", "--sampler", "ula", "--leapfrog", "3"],
            "leapfrog: got 3, expected none: the",
        ),
        (["--target", "ring", "--step", "0"], "step: got 0, expected a finite number above 0"),
        (["--target", "ring", "--temperature", "-1"], "temperature: got -1, expected"),
        (["--target", "math:sqrt"], "shape: got none, expected that of a state of your own energy"),
        (["--target", "ring", "--shape", "2"], "shape: got (2,), expected none: ring has its own"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert main(["mcmc", *arguments, "--no-plots", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()
