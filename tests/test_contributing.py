"""The worked example of CONTRIBUTING.md and the Python of README.md do what the text says."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import numpy as np
import torch

import ulam

ROOT = Path(__file__).parents[1]


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
