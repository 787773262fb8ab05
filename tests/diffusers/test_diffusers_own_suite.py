"""What diffusers' own tests ask of fused schedulers, and the command that runs them from a checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.diffusers_suite import EXCEPTIONS

from fuse_cases import SHAPE, begin, make
from ulam.integrations.diffusers import fuse

ROOT = Path(__file__).parents[2]
ABOVE_1 = {"beta_start": 0.1, "beta_end": 2.0}  # alphas_cumprod is 0 from about the 250th training step on
X = torch.linspace(-2, 2, 144).reshape(SHAPE)


def calls(name: str, config: dict[str, Any], at: int, m: torch.Tensor) -> list[torch.Tensor]:
    """One call at `timesteps[at]`, fused and not."""
    results = []
    for scheduler in (fuse(make(name, **config)), make(name, **config)):
        scheduler.set_timesteps(50)
        generator = {} if "Inverse" in name else {"generator": torch.Generator().manual_seed(0)}
        results.append(scheduler.step(m, scheduler.timesteps[at], X, **generator).prev_sample)
    return results


@pytest.mark.parametrize("name", ["DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "TCD", "LCM", "DDIMInverse"])
def test_betas_above_1_have_rows_where_signal_is_left(name: str) -> None:
    at = 0 if name == "DDIMInverse" else -1  # the timestep of the least noise
    ours, theirs = calls(f"{name}Scheduler", ABOVE_1, at, 0.1 * X)
    assert theirs.isfinite().all() and (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    scheduler = fuse(make(f"{name}Scheduler", **ABOVE_1))
    scheduler.set_timesteps(50)
    with pytest.raises(ValueError, match=r"^(predicts|timesteps|alphas_cumprod): got .*(alpha is 0|sigma 0)"):
        scheduler.step(0.1 * X, scheduler.timesteps[-1 - at], X)


@pytest.mark.parametrize("name", ["EDMDPMSolverMultistep", "EDMEuler", "EulerDiscrete", "HeunDiscrete"])
def test_inputs_are_scaled_before_set_timesteps(name: str) -> None:
    ours, theirs = fuse(make(f"{name}Scheduler")), make(f"{name}Scheduler")
    for at in (0, 10, -1):
        time = theirs.timesteps[at]
        scaled, right = ours.scale_model_input(X, time), theirs.scale_model_input(X, time)
        assert (scaled - right).abs().max() <= 1e-6 * right.abs().max()
        ours._step_index = theirs._step_index = None
    if name == "EDMDPMSolverMultistep":
        with pytest.raises(ValueError, match=r"^timesteps: got none, expected a call of set_timesteps first"):
            ours.step(0.1 * X, theirs.timesteps[0], X)


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("name", ["UnCLIP", "DDPM", "DDPMParallel"])
def test_a_call_without_noise_reads_no_learned_variance(name: str, doubled: bool) -> None:
    m = torch.cat([0.1 * X, torch.cos(X)], dim=1) if doubled else 0.1 * X
    ours, theirs = calls(f"{name}Scheduler", {"variance_type": "learned_range"}, -1, m)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def test_a_call_after_the_last_of_piflow_is_refused_as_in_diffusers() -> None:
    for scheduler in (fuse(make("PiflowScheduler", n_grid=2)), make("PiflowScheduler", n_grid=2)):
        scheduler.set_timesteps(2)
        m = torch.cat([X, X], dim=-1)
        for t in scheduler.timesteps:
            scheduler.step(m, t, X)
        with pytest.raises(RuntimeError):
            scheduler.step(m, scheduler.timesteps[-1], X)


@pytest.mark.parametrize("changes_before", [False, True])
def test_another_tau_in_the_middle_of_a_loop(changes_before: bool) -> None:
    """One that agrees about the step before is diffusers'; another, whose corrector would mix the two, is named."""
    results = []
    for scheduler in (fuse(make("SASolverScheduler")), make("SASolverScheduler")):
        scheduler.set_timesteps(8)
        x, generator = begin(scheduler)
        for i, t in enumerate(scheduler.timesteps):
            if i == 4:
                known, from_here = scheduler.tau_func, float(t) + (1e6 if changes_before else 0.0)
                scheduler.tau_func = lambda t, known=known, first=from_here: 0.3 if t <= first else known(t)
            if i == 4 and changes_before and not results:
                before = scheduler.timesteps[3]
                with pytest.raises(ValueError, match=rf"^tau_func: got 0.3 for \d at {before} in the middle of a loop"):
                    scheduler.step(torch.sin(x), t, x, generator=generator)
                scheduler.set_timesteps(8)  # begins anew
                scheduler.step(torch.sin(x), scheduler.timesteps[0], x, generator=generator)
                return
            x = scheduler.step(torch.sin(x), t, x, generator=generator).prev_sample
        results.append(x)
    ours, theirs = results
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_the_page_has_the_exceptions() -> None:
    page = (ROOT / "docs" / "diffusers.md").read_text()
    assert dict(re.findall(r"^\| `(test_scheduler\w*\.py::\w+)` \| (.*) \|$", page, flags=re.MULTILINE)) == EXCEPTIONS


COMMON = """
from unittest import TestCase
from diffusers import DDIMScheduler, IPNDMScheduler, LMSDiscreteScheduler
from ulam.integrations.diffusers.scheduler import Fused

class Common(TestCase):
    scheduler_classes = ()

    def test_classes(self):
        for scheduler_class in self.scheduler_classes:
            assert scheduler_class in (DDIMScheduler, IPNDMScheduler, LMSDiscreteScheduler)
            assert issubclass(scheduler_class, Fused)
"""
MODULE = """
from diffusers import {scheduler}
from .test_schedulers import Common

class Test{scheduler}(Common):
    scheduler_classes = ({scheduler},)

    def {test}(self):
        assert {scheduler}.__name__ == "{scheduler}" and {holds}
"""


@pytest.mark.parametrize("plain", [False, pytest.param(True, marks=pytest.mark.long)])
def test_the_command_runs_the_tests_of_a_checkout_on_fused_classes(plain: bool, tmp_path: Path) -> None:
    """One test that passes, one exception that fails, one exception that does not, and a refused class."""
    folder = tmp_path / "tests" / "schedulers"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder / "test_schedulers.py").write_text(COMMON)
    for name, scheduler, test, holds in (
        ("ddim", "DDIMScheduler", "test_steps", True),
        ("lms", "LMSDiscreteScheduler", "test_full_loop_with_noise", False),
        ("ipndm", "IPNDMScheduler", "test_full_loop_no_noise", True),
    ):
        assert test == "test_steps" or f"test_scheduler_{name}.py::{test}" in EXCEPTIONS
        module = MODULE.format(scheduler=scheduler, test=test, holds=holds)
        (folder / f"test_scheduler_{name}.py").write_text(module)
    refused = "from diffusers import VQDiffusionScheduler\n\ndef test_tokens():\n    raise AssertionError\n"
    (folder / "test_scheduler_vq_diffusion.py").write_text(refused)
    command = [sys.executable, "-m", "bench.diffusers_suite", str(tmp_path), "-p", "no:xdist", "-rfx"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    run = subprocess.run(
        [*command, *["--plain"] * plain], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (\w+)", run.stdout.splitlines()[-1])}
    counts.pop("warning", None), counts.pop("warnings", None)
    # `Common` itself, whose tuple is empty, is collected in each of the four modules that import it
    if plain:
        assert counts == {"passed": 6, "failed": 4, "deselected": 1}, run.stdout
    else:
        assert counts == {"passed": 8, "failed": 1, "xfailed": 1, "deselected": 1}, run.stdout
        assert "[XPASS(strict)]" in run.stdout and run.returncode == 1
