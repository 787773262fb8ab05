"""`ulam mcmc`: files, their contents against the same run in Python, its verdict and advice, errors in one line."""

from __future__ import annotations

import json
import re
import shlex
import sys
import warnings

import numpy as np
import pytest

from archives import arrays
from ulam import mcmc
from ulam.cli.main import main
from ulam.cli.mcmc import TARGETS

SIZES = ["--chains", "8", "--steps", "40", "--warmup", "20", "--thin", "4", "--seed", "3"]


def test_double_well_by_mala(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots are matplotlib's")
    out = tmp_path / "out"
    words = ["mcmc", "--target", "double-well", "--sampler", "mala", "--step", "0.05", "--adapt", "off", *SIZES]
    assert main([*words, "--out", str(out)]) == 1  # 10 draws
    assert sorted(path.name for path in out.iterdir()) == [
        "draws.npz", "marginal.png", "plane.png", "rank.png", "report.json", "trace.png",
    ]  # fmt: skip
    sizes = {"chains": 8, "steps": 40, "warmup": 20, "thin": 4, "seed": 3, "progress": False}
    same = mcmc.run(mcmc.DoubleWell(2), mcmc.MALA(0.05), **sizes)
    saved = arrays(out / "draws.npz")
    np.testing.assert_array_equal(saved["draws"], same.draws.numpy())
    np.testing.assert_array_equal(saved["energies"], same.energies.numpy())
    report = json.loads((out / "report.json").read_text())
    assert report["acceptance"] == pytest.approx(float(same.acceptance.mean()))
    assert report["steps"] == 40 and report["divergent_chains"] == []
    for name in ("trace", "rank", "marginal", "plane"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "acceptance" in capsys.readouterr().out


def test_an_energy_of_your_own(tmp_path, monkeypatch):
    (tmp_path / "bowl.py").write_text("def energy():\n    return lambda x: x.square().sum(1) / 2\n")
    monkeypatch.chdir(tmp_path)
    arguments = ["mcmc", "--target", "bowl:energy", "--shape", "3", "--sampler", "hmc", "--leapfrog", "4", "--no-plots"]
    assert main([*arguments, *SIZES, "--out", "run"]) == 1
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
        (
            ["--target", "ring", "--temperatures", "4,2"],
            "temperatures: got (4.0, 2.0), expected at least two, increasing",
        ),
        (["--target", "ring", "--temperatures", "1,2", "--temperature", "2"], "temperature: got 2.0, expected 1"),
        (["--target", "ring", "--adapt", "1.5"], "adapt: got 1.5, expected a target acceptance in (0, 1)"),
        (["--target", "ring", "--sampler", "ula", "--adapt", "0.5"], "adapt: got 0.5, expected None: ULA has no"),
        (["--target", "ring", "--sampler", "ula", "--adapt", "pooled"], "adapt: got 'pooled', expected None: ULA has"),
        (["--target", "ring", "--temperatures", "1,2", "--adapt", "pooled"], "adapt: got 'pooled', expected a target"),
        (["--target", "math:sqrt"], "shape: got none, expected that of a state of your own energy"),
        (["--target", "ring", "--shape", "2"], "shape: got (2,), expected none: ring has its own"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert main(["mcmc", *arguments, "--no-plots", "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapt", "no"], "argument --adapt: got 'no', expected a target acceptance in (0, 1), or off"),
        (["--adapt", "0"], "argument --adapt: got '0', expected"),
        (["--temperatures", "1,x"], "argument --temperatures: got '1,x', expected numbers such as 1,2,4,8"),
    ],
)
def test_words_that_are_no_numbers_are_refused(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as left:
        main(["mcmc", "--target", "ring", *words, "--out", str(tmp_path / "x")])
    assert left.value.code == 2 and message in capsys.readouterr().err


@pytest.fixture
def ran(monkeypatch, tmp_path, capsys):
    """Runs a command in a folder of its own: the exit code, what it printed, and its report."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(divergent proposals|chains left the finite numbers)", RuntimeWarning)
            code = main(["mcmc", *words, "--no-plots", "--out", "run"])
        return code, capsys.readouterr().out, json.loads((tmp_path / "run" / "report.json").read_text())

    return run


def advised(out):
    """The words of the command that it says to try, None where it says none."""
    found = re.findall(r"^ulam: try: ulam mcmc (.*) --no-plots --out run$", out, re.M)
    assert len(found) <= 1
    return shlex.split(found[0]) if found else None


@pytest.mark.parametrize("target", [t if t != "funnel" else pytest.param(t, marks=pytest.mark.long) for t in TARGETS])
def test_default_runs_pass_or_name_a_command_that_does(target, ran):
    code, out, report = ran("--target", target)
    assert report["verdict"]["passed"] == (code == 0) == ("ulam: passed" in out) == (target == "gaussian")
    if code:
        assert code == 1 and re.search("^ulam: failed: .*, expected at most", out, re.M)
        words = advised(out)
        assert words is not None and words[:2] == ["--target", target]
        code, out, report = ran(*words)
    assert code == 0 and report["verdict"]["passed"] and advised(out) is None
    numbers = report["verdict"]
    assert numbers["rhat"]["value"] <= 1.01 and numbers["ess_bulk"]["value"] >= 400 <= numbers["ess_tail"]["value"]
    assert numbers["divergence_rate"] <= 1e-3


@pytest.mark.parametrize(
    ("target", "mean_square"),
    [("mixture", 4.49), ("rosenbrock", 11.0), pytest.param("funnel", 9.0, marks=pytest.mark.long), ("ring", 4.635)],
)
def test_runs_as_advised_have_the_law_of_the_target(target, mean_square, ran):
    """E x_0^2, of the formula of each density, within four standard errors by the effective sample size."""
    words = advised(ran("--target", target)[1])
    ran(*words)
    first = arrays("run/draws.npz")["draws"][:, :, 0].astype(np.float64) ** 2
    of_chains = first.mean(1)  # chains are independent
    assert abs(of_chains.mean() - mean_square) < 4 * of_chains.std(ddof=1) / len(of_chains) ** 0.5


def test_the_table_has_the_worst_elements_first_and_few_rows(ran):
    _, out, report = ran("--target", "funnel", "--dimension", "30", "--chains", "8", "--steps", "100")
    rows = [line.split() for line in out.splitlines() if re.match(r"(x\[\d+\]|energy) ", line)]
    rhats = [float(row[-1]) for row in rows]
    assert len(rows) == 8 and rhats == sorted(rhats, reverse=True) and "(the 8 worst of 31)" in out
    assert len(report["summary"]) == 31
    assert rhats[0] == pytest.approx(max(row["r_hat"] for row in report["summary"].values()), rel=1e-3)


def test_samplers_with_a_test_adapt_by_default(ran):
    """To 0.574 and 0.8, unless told otherwise or without a warm-up."""
    for words, rate in (
        (["--sampler", "mala"], 0.574),
        (["--sampler", "hmc"], 0.8),
        (["--sampler", "ula"], None),
        (["--sampler", "mala", "--adapt", "off"], None),
        (["--sampler", "mala", "--adapt", "0.7"], 0.7),
        (["--sampler", "mala", "--warmup", "0"], None),
    ):
        _, out, report = ran("--target", "gaussian", "--chains", "4", "--steps", "50", *words)
        assert report["adapt"] == rate and ("adapted to" if rate else "not adapted") in out
        assert (report["step"]["least"] == report["step"]["most"] == 0.1) == (rate is None)


@pytest.mark.parametrize("words", [["--sampler", "nuts"], ["--sampler", "hmc", "--step", "30", "--leapfrog", "3"]])
@pytest.mark.parametrize("how", ["pooled", "chain"])
def test_a_warm_up_finds_the_step(words, how, ran):
    _, out, report = ran(
        "--target", "gaussian", "--chains", "8", "--steps", "20", "--warmup", "40", "--adapt", how, *words
    )
    step = report["step"]
    assert report["adapt"] == how and f"warm-up {how}" in out and step["most"] < 5
    assert (step["least"] == step["most"]) == (how == "pooled")


def test_an_energy_of_the_wrong_sign_is_named(tmp_path, ran):
    (tmp_path / "signs.py").write_text("def wrong():\n    return lambda x: -x.square().sum(1) / 2\n")
    code, out, report = ran("--target", "signs:wrong", "--shape", "2", "--chains", "8", "--steps", "100")
    assert code == 1 and report["verdict"]["cause"]["name"] == "runaway" and advised(out) is None
    assert "ulam: the energy falls the farther out the states are" in out and "change the sign of the energy" in out


@pytest.mark.parametrize("walls", [True, False])
def test_no_step_is_advised_at_hard_walls(walls, tmp_path, ran):
    made = "import math, torch\ndef box():\n    return lambda x: torch.where((x.abs() > 3).any(1), {}, energy(x))\n"
    made += "def energy(x):\n    return 0.1 * x.square().sum(1)\n"
    (tmp_path / f"boxes{walls}.py").write_text(made.format("math.inf" if walls else "energy(x)"))
    words = ["--target", f"boxes{walls}:box", "--shape", "2", "--chains", "8", "--steps", "100", "--warmup", "0"]
    code, out, report = ran(*words, "--sampler", "hmc", "--step", "1.5" if walls else "30")
    assert code == 1 and report["verdict"]["cause"]["name"] == "divergences"
    told = "ulam: paths end beyond hard walls, where the energy is infinite: make the target a ulam.mcmc.Model with"
    assert (told in out, advised(out) is None) == (walls, walls)


def test_one_chain_is_told_to_be_four(ran):
    code, out, report = ran("--target", "gaussian", "--chains", "1", "--steps", "2000")
    assert code == 1 and report["verdict"]["cause"]["name"] == "few" and report["verdict"]["rhat"]["value"] is None
    words = advised(out)
    assert words == ["--target", "gaussian", "--chains", "4", "--steps", "2000"]
    assert ran(*words)[0] == 0


def test_advice_keeps_what_was_asked_for(tmp_path, ran):
    """Options that stay, numbers to the bit, and a temperature that becomes the first of a ladder."""
    (tmp_path / "two wells.py").write_text(
        "def wells():\n    return lambda x: 2 * (x.square() - 9).square().sum(1) / 9\n"
    )
    step = repr(1 / 30)
    words = ["--target", "two wells:wells", "--shape", "1", "--step", step, "--temperature", "1.5", "--seed", "7"]
    code, out, report = ran(*words, "--chains", "16", "--steps", "400", "--slots", "16")
    assert code == 1 and report["verdict"]["cause"]["name"] == "modes"
    again = advised(out)
    given = dict(zip(again[::2], again[1::2], strict=True))
    assert given == {
        "--target": "two wells:wells", "--shape": "1", "--step": step, "--seed": "7", "--chains": "16",
        "--steps": "2000", "--thin": "5", "--slots": "16", "--temperatures": "1.5,3,6,12",
    }  # fmt: skip


@pytest.mark.parametrize(
    "sampler",
    [[], ["--sampler", "ula", "--step", "5e-5"], ["--adapt", "chain"]],
    ids=["mala", "ula", "mala each alone"],
)
def test_energies_of_your_own_that_are_too_slow_are_for_nuts_and_masses(sampler, tmp_path, ran):
    """Standard deviations of 1 and 0.01, which masses make alike."""
    (tmp_path / "scales.py").write_text("def long():\n    return lambda x: (x[:, 0] ** 2 + 1e4 * x[:, 1] ** 2) / 2\n")
    words = ["--target", "scales:long", "--shape", "2", "--chains", "8", "--steps", "400", "--warmup", "300"]
    _, out, report = ran(*words, *sampler)
    assert report["verdict"]["cause"]["name"] == "slow"
    again = advised(out)
    given = dict(zip(again[::2], again[1::2], strict=True))
    assert given == {
        "--target": "scales:long", "--shape": "2", "--sampler": "nuts", "--chains": "8", "--steps": "400",
        "--adapt": "pooled",
    }  # fmt: skip
    assert ran(*again)[0] == 0


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--sampler", "hmc", "--step", "0.005", "--adapt", "off"], "slow"),
        (["--sampler", "hmc", "--step", "0.005", "--warmup", "0"], "slow"),
        (["--step", "2e-4", "--adapt", "off", "--seed", "5"], "slow"),
        (["--sampler", "malt", "--step", "60", "--adapt", "off"], "divergences"),
    ],
    ids=["short paths", "no warm-up", "small steps", "large steps"],
)
def test_steps_that_were_given_and_do_not_do_are_found_by_all_chains(words, cause, ran):
    code, out, report = ran("--target", "gaussian", *words)
    assert code == 1 and report["verdict"]["cause"]["name"] == cause
    again = advised(out)
    assert "--step" not in again and again[again.index("--adapt") + 1] == "pooled" and "--warmup" not in again
    assert ran(*again)[0] == 0


def test_the_paths_that_were_advised_are_not_undone(ran):
    """HMC of 1000 leapfrog steps, not adapted, is what a funnel is told to take: more of it comes next."""
    words = ["--target", "gaussian", "--chains", "4", "--steps", "100", "--sampler", "hmc", "--step", "1e-5"]
    code, out, _ = ran(*words, "--leapfrog", "1000", "--adapt", "off")
    again = advised(out)
    assert code == 1 and again[again.index("--adapt") + 1] == "off" and int(again[again.index("--leapfrog") + 1]) > 1000


def test_without_arviz_a_run_says_so_before_it_begins(ran, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "arviz", None)
    words = ["--target", "gaussian", "--chains", "2", "--steps", "5"]
    assert main(["mcmc", *words, "--no-plots", "--out", "x"]) == 2
    assert capsys.readouterr().err.startswith("ulam: error: arviz: got no installation, expected one: pip install")
    assert not (tmp_path / "x").exists()
    code, out, report = ran(*words, "--no-verdict")
    assert code == 0 and "ulam: passed" not in out and report["verdict"] is None
