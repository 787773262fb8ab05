"""The worked example of CONTRIBUTING.md and the Python of README.md do what the text says."""

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

ROOT = Path(__file__).parents[2]


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def test_the_sampler_of_contributing_is_deterministic_ddim():
    module = types.ModuleType("plain")
    sys.modules["plain"] = module
    exec(python_blocks("CONTRIBUTING.md")[0], module.__dict__)
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
    example = python_blocks("CONTRIBUTING.md")[0]
    path = re.match(r"# engine/(ulam/samplers/\w+\.py)\n", example)
    assert path is not None
    shutil.copytree(ulam.__path__[0], tmp_path / "ulam")
    (tmp_path / path[1]).write_text(example)
    code = """if True:
        from pathlib import Path
        import ulam
        from ulam.cli import main as cli
        from ulam.cli import samplers_page
        assert Path(ulam.__file__).is_relative_to(Path.cwd())
        assert ulam.samplers.Plain.__module__ == "ulam.samplers.plain" and "Plain" in ulam.samplers.__all__
        Path("page.md").write_text(samplers_page.page())
        raise SystemExit(cli.main("sample --model digits --sampler plain --steps 2 --chains 2 --out out".split()))
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    (job,) = json.loads((tmp_path / "out" / "report.json").read_text())["jobs"]
    assert job["sampler"] == "Plain(steps=2)"
    page, sources = (tmp_path / "page.md").read_text().split("## Sources\n")
    assert "\n- [Plain](#plain): a first look at how samplers are written.\n" in page
    assert "\n| [Plain()](#plain) | 1 | 20 | 0 | none |\n" in page
    assert "\n### Plain\n" in page.split("## Solvers of the probability flow\n")[1].split("\n## ")[0]
    assert "\n- Song 2021a: " in sources


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
