"""What noise is for is chosen in one place, and nothing shares its normals with anything else."""

import ast
import itertools
import re
from pathlib import Path

import pytest
import torch

import ulam
from ulam import bounds, noise
from ulam.estimation import forward
from ulam.noise import Purpose

ROOT = Path(__file__).parents[2]
PURPOSES = {name: value for name, value in vars(noise).items() if isinstance(value, Purpose)}


def test_no_two_purposes_share_normals():
    for (one, a), (other, b) in itertools.combinations(PURPOSES.items(), 2):
        assert (a.tag, a.stage) != (b.tag, b.stage), f"{one} and {other}"
        assert a.name != b.name
    assert len(PURPOSES) >= 15
    for purpose in PURPOSES.values():
        assert 0 <= purpose.stage < noise.DRAWS_PER_ROW and 0 <= purpose.tag < 15  # 15 is the key's own


def test_normals_of_two_purposes_differ():
    drawn = [noise.normal_for(p, (64,), seed=3, chains=4, row=5) for p in PURPOSES.values()]
    for a, b in itertools.combinations(drawn, 2):
        assert int(torch.isin(a, b).sum()) < 5  # of 256 floats, now and then two are equal by chance


def test_no_other_file_chooses_a_tag_or_a_stage():
    """Calls with a number for tag= or stage=, constants named so, and draws made by hand."""
    found = []
    for path in sorted((ROOT / "engine").rglob("*.py")):
        if path.name == "noise.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg in ("tag", "stage") and isinstance(node.value, ast.Constant):
                found.append(f"{path.name}:{node.value.lineno} {node.arg}={node.value.value}")
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                found += [
                    f"{path.name}:{node.lineno} {n}" for n in names if re.search(r"\b(TAG|STAGE)\b|_(TAG|STAGE)$", n)
                ]
    assert not found


def test_the_kernels_tag_of_metropolis_tests_is_this_one():
    header = (ROOT / "csrc/include/ulam/mcmc.h").read_text()
    assert f"kAcceptTag = {noise.ACCEPTANCE.tag};" in header
    assert noise.SWAP.tag == noise.RESTART.tag == noise.ACCEPTANCE.tag  # all are tests by the same operation


def test_a_bound_and_training_share_no_noise():
    """An evaluation of the bound saw the very noise that a training step had seen."""
    seen = []

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return torch.zeros_like(x)

    schedule = ulam.schedules.vp_linear(10)
    x_0 = torch.zeros(2, 1, 16)  # x_t is sigma z
    bounds.vlb(ulam.Denoiser(net, schedule), x_0, seed=0)
    for step in range(10):
        z = forward.add_noise(x_0, torch.zeros(2, dtype=torch.float64), schedule, "eps", step=step).target
        for x_t in seen:
            ratio = x_t[0, 0] / z[0, 0]
            assert ratio.std() > 1e-3, f"evaluation at the noise of training step {step}"


@pytest.mark.parametrize("purpose", PURPOSES.values(), ids=str)
def test_draws_are_of_a_row_and_a_stage(purpose):
    assert purpose.draw() == purpose.stage
    assert purpose.draw(7) == 7 * 16 + purpose.stage
    assert purpose.draw((1 << 60) - 1) == purpose.stage - 16  # the last row, as an int64
