"""The worked examples of CONTRIBUTING.md and the Python of README.md do what the text says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import ulam
from chain_laws import COVARIANCE, MEAN, check_law, gaussian, within
from chain_runs import curved, run, same

ROOT = Path(__file__).parents[2]


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def example(name: str) -> tuple[str, str]:
    """(path in `engine`, code) of the example in CONTRIBUTING.md that is a file of this name."""
    for code in python_blocks("CONTRIBUTING.md"):
        path = re.match(r"# engine/(ulam/[\w/]+\.py)\n", code)
        if path is not None and Path(path[1]).stem == name:
            return path[1], code
    raise AssertionError(f"name: got {name}, expected an example of CONTRIBUTING.md")


def executed(name: str) -> types.ModuleType:
    """That example as a module."""
    module = sys.modules[name] = types.ModuleType(name)
    exec(example(name)[1], module.__dict__)
    return module


def copy_with(name: str, folder: Path) -> None:
    """A copy of the package in `folder` with that example as the file it says it is."""
    path, code = example(name)
    shutil.copytree(ulam.__path__[0], folder / "ulam")
    assert not (folder / path).exists()
    (folder / path).write_text(code)


def add_lines(path: Path, above: str, *lines: str) -> None:
    """Insert lines above the one line of a file that begins with `above`."""
    text = path.read_text()
    assert text.count(f"\n{above}") == 1, (path, above)
    path.write_text(text.replace(f"\n{above}", "\n" + "".join(f"{line}\n" for line in lines) + above))


def run_in(folder: Path, code: str) -> None:
    """Run code with the copy of the package that is there."""
    code = "import pathlib, ulam\nassert pathlib.Path(ulam.__file__).is_relative_to(pathlib.Path.cwd())\n" + code
    paths = [str(folder), str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env=environment)


def test_the_sampler_of_contributing_is_deterministic_ddim():
    module = executed("plain")
    for schedule in (ulam.schedules.vp_cosine(1000), ulam.schedules.ve(0.01, 50.0), ulam.schedules.flow()):
        for predicts in ("x0", "v") if schedule.kind == "flow" else ("eps", "x0", "v"):  # alpha = 0 at t = 1
            for chosen in ({"spacing": "leading" if schedule.kind == "vp" else None}, {"sigmas": (0.9, 0.3, 0.1)}):
                steps = 3 if "sigmas" in chosen else 10
                got = module.Plain(steps, final=1e-3, **chosen).program(schedule, predicts)
                expected = ulam.samplers.DDIM(steps, final=1e-3, **chosen).program(schedule, predicts)
                assert np.allclose(got.A, expected.A, rtol=1e-12, atol=1e-12)
                assert (got.time == expected.time).all() and got.nfe == steps
    assert module.Plain(4).program(ulam.schedules.flow(), "v") is module.Plain(4).program(ulam.schedules.flow(), "v")


def test_the_sampler_of_contributing_needs_no_other_file(tmp_path: Path):
    """In a copy of the package with that one file more it is exported, on the page, and known to the command line."""
    copy_with("plain", tmp_path)
    code = """if True:
        from pathlib import Path
        from ulam.cli import main as cli
        from ulam.cli import samplers_page
        assert ulam.samplers.Plain.__module__ == "ulam.samplers.plain" and "Plain" in ulam.samplers.__all__
        Path("page.md").write_text(samplers_page.page())
        raise SystemExit(cli.main("sample --model digits --sampler plain --steps 2 --chains 2 --out out".split()))
    """
    run_in(tmp_path, code)
    (job,) = json.loads((tmp_path / "out" / "report.json").read_text())["jobs"]
    assert job["sampler"] == "Plain(steps=2)"
    page, sources = (tmp_path / "page.md").read_text().split("## Sources\n")
    assert "\n- [Plain](#plain): a first look at how samplers are written.\n" in page
    assert "\n| [Plain()](#plain) | 1 | 20 | 0 | none |\n" in page
    assert "\n### Plain\n" in page.split("## Solvers of the probability flow\n")[1].split("\n## ")[0]
    assert "\n- Song 2021a: " in sources


@pytest.fixture(scope="module")
def random_walk() -> types.ModuleType:
    return executed("random_walk")


def test_the_chain_sampler_of_contributing_has_its_exact_law(random_walk: types.ModuleType):
    """The density's own, whatever the proposals are, and T times its covariance at the temperature T."""
    options = {"chains": 40_000, "warmup": 299, "steps": 1, "seed": 3, "progress": False}
    x = ulam.mcmc.run(gaussian(), random_walk.RandomWalk(0.8), **options).x
    check_law(x, MEAN, COVARIANCE)
    target = ulam.mcmc.Gaussian(torch.zeros(2), torch.tensor([1.0, 4.0]))
    sampler = random_walk.RandomWalk(0.8, temperature=2.0, preconditioner=torch.tensor([1.0, 4.0]))
    check_law(ulam.mcmc.run(target, sampler, **options).x, np.zeros(2), np.diag([2.0, 8.0]))


@pytest.mark.parametrize("std", [0.5, 2.4])
def test_the_chain_sampler_of_contributing_accepts_at_the_exact_rate(random_walk: types.ModuleType, std: float):
    """2 / pi arctan(2 / s) for proposals of standard deviation s on N(0, 1), in one dimension."""
    sampler, options = random_walk.RandomWalk(std**2 / 2), {"chains": 100_000, "steps": 1, "seed": 5, "progress": False}
    accepted = ulam.mcmc.run(ulam.mcmc.Gaussian([0.0]), sampler, **options).acceptance
    assert within(accepted, 2 / np.pi * np.arctan(2 / std))


@pytest.mark.parametrize("kind", ["density", "energy"])
def test_chains_of_contributing_have_the_same_bits_in_other_batches(random_walk: types.ModuleType, kind: str):
    target = gaussian() if kind == "density" else ulam.Energy(curved)
    for sampler in (
        random_walk.RandomWalk(0.4),
        ulam.mcmc.ParallelTempering(random_walk.RandomWalk(0.4), [1.0, 2.0, 4.0]),
    ):
        many = run(target, sampler, chains=1000, shape=(2,))
        assert same(run(target, sampler, chains=[5], shape=(2,)), many, slice(5, 6))
        assert same(run(target, sampler, chains=[999, 5], shape=(2,)), many, [999, 5])
        assert same(run(target, sampler, chains=1000, shape=(2,), slots=64), many)
        assert same(run(target, sampler, chains=1000, shape=(2,), backend="reference"), many)
        assert len(many.draws.flatten(1).unique(dim=0)) == 1000


def test_the_chain_sampler_of_contributing_is_exported_as_it_says(tmp_path: Path):
    """With the lines that the text names it is in both modules and on the command line."""
    line = "from .mcmc.random_walk import RandomWalk as RandomWalk"
    assert f"`{line}`" in (ROOT / "CONTRIBUTING.md").read_text()
    copy_with("random_walk", tmp_path)
    package = tmp_path / "ulam"
    add_lines(package / "samplers" / "__init__.py", "from .mcmc.sgld ", line)
    add_lines(package / "mcmc" / "__init__.py", "from ..samplers.mcmc.sgld ", line.replace(".mcmc", "..samplers.mcmc"))
    add_lines(package / "mcmc" / "__init__.py", '    "Ring",', '    "RandomWalk",')
    lines = "from ..samplers import RandomWalk", 'SAMPLERS["random-walk"] = RandomWalk'
    add_lines(package / "cli" / "mcmc.py", "OPTIONS = ", *lines)
    code = """if True:
        from ulam.cli import main as cli
        assert ulam.samplers.RandomWalk is ulam.mcmc.RandomWalk and "RandomWalk" in ulam.mcmc.__all__
        options = "--target gaussian --sampler random-walk --steps 2000 --thin 4 --adapt 0.3 --no-plots --out out"
        raise SystemExit(cli.main(["mcmc", *options.split()]))
    """
    run_in(tmp_path, code)
    assert (tmp_path / "out" / "report.json").exists()


def test_the_fused_family_of_contributing_is_here_and_makes_the_steps_of_diffusers():
    """With the lines that the text names, against diffusers' own class call by call."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    path, code = example("consistency")
    assert code.split("\n", 1)[1] == (ROOT / "engine" / path).read_text()
    folder = (ROOT / "engine" / path).parents[1]
    named = '"CMStochasticIterativeScheduler": FusedConsistency'
    rules = ['"s_noise": _number(0)', '"clip_denoised": FLAG']
    for file, lines in (("fusing.py", [named]), ("configuration.py", rules)):
        for line in lines:
            assert f"`{line}`" in (ROOT / "CONTRIBUTING.md").read_text()
            assert f"    {line},\n" in (folder / file).read_text()
    exec(FUSED_AGAINST_DIFFUSERS, {})


FUSED_AGAINST_DIFFUSERS = """if True:
    import torch
    from fuse_cases import ALL, assert_same_loops, begin, loop, make
    from ulam.integrations.diffusers import fuse

    name = "CMStochasticIterativeScheduler"
    assert name in ALL
    options = [{}, {"clip_denoised": False}, {"s_noise": 1.1, "rho": 5.0}, {"sigma_data": 1.0, "sigma_max": 20.0}]
    for config in [*options, {"num_train_timesteps": 200, "sigma_min": 0.01}]:
        for steps, first in ((1, 0), (2, 0), (7, 0), (7, 3), (40, 0)):
            ours, theirs = (loop(s, steps, first=first) for s in (fuse(make(name, **config)), make(name, **config)))
            assert_same_loops(ours, theirs)
    for steps in (1, 2):
        states = []
        for scheduler in (fuse(make(name)), make(name)):
            scheduler.set_timesteps(steps)
            x, generator = begin(scheduler)
            scheduler.step(x, scheduler.timesteps[0], scheduler.scale_model_input(x, scheduler.timesteps[0]), generator)
            states.append(generator.get_state())
        assert torch.equal(*states), "another number of draws"
    try:
        fuse(make(name, s_noise=-1.0))
    except ValueError as error:
        assert str(error) == "scheduler: got s_noise=-1.0, expected a finite number of at least 0", error
    else:
        raise AssertionError("s_noise: got no error")

    alone, among = (fuse(make(name), noise="noise-v1", seed=3, chains=ids) for ids in ([1], [0, 1, 2]))
    x, _ = begin(among)
    for scheduler in (alone, among):
        scheduler.set_timesteps(4)
    time = among.timesteps[0]
    all_three = among.step(torch.sin(x), time, x).prev_sample
    assert torch.equal(alone.step(torch.sin(x[1:2]), time, x[1:2]).prev_sample, all_three[1:2])
"""


def test_a_sampler_of_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = "from ulam.samplers.grid import GridSampler\nclass DDIM(GridSampler): pass\n"
    (tmp_path / "taken_name.py").write_text(lines)
    exported = list(ulam.samplers.__all__)
    monkeypatch.setattr(ulam.samplers, "__path__", [str(tmp_path)])
    with pytest.raises(
        ImportError, match=r"samplers\.taken_name: got a sampler DDIM, expected a name that is not taken"
    ):
        ulam.samplers._export_others()
    del sys.modules["ulam.samplers.taken_name"]
    assert ulam.samplers.__all__ == exported and ulam.samplers.DDIM.__module__ == "ulam.samplers.ddim"


def test_the_library_examples_of_the_readme_run():
    """Each block runs as it stands, in order, in one namespace."""
    namespace: dict[str, object] = {}
    for block in python_blocks("README.md"):
        exec(block, namespace)
    x = namespace["x"]
    assert isinstance(x, torch.Tensor) and bool(torch.isfinite(x).all())


def test_the_documents_are_whole():
    """No placeholder is left, every relative link leads somewhere."""
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        text = (ROOT / document).read_text()
        assert not re.search(r"@[A-Z_]+@", text), document
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / target).exists(), (document, target)


def test_every_package_is_listed_for_the_wheel():
    listed = re.findall(r'^    "(ulam[a-z_.]*)",$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    found = {
        ".".join(init.parent.relative_to(root).parts)
        for root in (ROOT / "engine", ROOT / "kernels")
        for init in root.rglob("__init__.py")
    }
    assert found == set(listed)
