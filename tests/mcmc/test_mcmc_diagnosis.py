"""Warnings of a run: energies that are rounded too coarsely, chains that adaptation left standing still."""

from __future__ import annotations

import warnings

import pytest
import torch

from ulam import mcmc
from ulam.mcmc import HMC, MALA, ULA
from ulam.mcmc.verdicts.diagnosis import COARSE, warn_of_rounding


def energy(offset, dtype=torch.float32):
    return mcmc.Energy(lambda x: offset + x.to(dtype).square().sum(1) / 2)


def told(target, sampler, **options):
    """The warnings of a run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mcmc.run(target, sampler, **{"chains": 20, "shape": (2,), "steps": 4, "progress": False, "seed": 1, **options})
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("sampler", [MALA(0.5), HMC(0.5, 2), mcmc.ParallelTempering(ULA(0.1), [1.0, 2.0])], ids=repr)
def test_a_float32_energy_with_a_large_constant_is_told_once(sampler):
    (message,) = told(energy(1e7), sampler, slots=5)
    assert message.startswith("target: energies near 1e+07 are 1 apart in float32, too far for the Metropolis test")
    assert "\n" not in message
    assert not told(energy(1e4), sampler)
    assert not told(energy(1e7, torch.float64), sampler)


def test_no_test_no_warning():
    assert not told(energy(1e7), ULA(0.1))
    assert not told(mcmc.Gaussian([4000.0, 0.0]), MALA(0.1), x_init=torch.zeros(20, 2))  # float64 sums, far away


def test_sums_that_were_widened_and_short_formats_are_seen():
    assert told(mcmc.Energy(lambda x: (1e7 + x.square().sum(1)).double()), MALA(0.5))
    (message,) = told(mcmc.Energy(lambda x: (100 + x.square().sum(1)).bfloat16()), MALA(0.5))
    assert "are 0.5 apart in bfloat16" in message


def test_spacings_are_those_of_the_format():
    """Of neighbours, by nextafter; the temperature divides them."""
    for value in (524287.97, 2.0**20 - 0.0625, 2.0**20 + 0.125, 3.3e6 + 0.25):  # no short format has these
        at = torch.tensor([value], dtype=torch.float32)
        spacing = float(torch.nextafter(at, torch.tensor([1e9])) - at)
        for temperature in (spacing / COARSE * 1.01, spacing / COARSE * 0.99):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = warn_of_rounding(at.double() + 0, torch.tensor([temperature]).double())
            assert found == (spacing / temperature > COARSE) == bool(caught)


def test_the_rounding_changes_the_law():
    """What the warning is about: the variance and the acceptance of N(0, 1) at 1e7."""
    runs = []
    for offset in (0.0, 1e7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            options = {"chains": 2000, "shape": (1,), "warmup": 30, "steps": 30, "progress": False}
            runs.append(mcmc.run(energy(offset), MALA(0.8), **options))
    assert runs[1].acceptance.mean() < runs[0].acceptance.mean() - 0.04
    assert runs[1].variance() < runs[0].variance()


def wall(x):
    """The exponential law: its energy is infinite below 0."""
    return torch.where(x[:, 0] > 0, x[:, 0], float("inf"))


def of_adaptation(*arguments, **options):
    """The warnings that name adapt: the wall brings proposals of infinite energy, which are told too."""
    return [message for message in told(*arguments, **options) if message.startswith("adapt")]


def test_chains_that_adaptation_froze_are_named():
    options = {"chains": 64, "shape": (1,), "warmup": 20, "steps": 100, "adapt": 0.574}
    options["x_init"] = torch.full((64, 1), 0.01)
    (message,) = of_adaptation(mcmc.Energy(wall), MALA(0.1), **options)
    assert message.startswith("adapt: the step fell to 0.00036 (median 0.21) in 2 of 64 chains (6, 61), which hardly")
    assert not of_adaptation(mcmc.Energy(wall), MALA(0.1), **{**options, "warmup": 300})
    options["chains"], options["x_init"] = [6], options["x_init"][:1]
    (message,) = of_adaptation(mcmc.Energy(wall), MALA(0.1), **options)
    assert "in 1 of 1 chains (6)" in message


@pytest.mark.parametrize("slots", [1, 5, 48, 64, 100])
def test_frozen_chains_are_named_whatever_pads_the_last_batch(slots):
    options = {"chains": 64, "shape": (1,), "warmup": 20, "steps": 100, "adapt": 0.574, "slots": slots}
    (message,) = of_adaptation(mcmc.Energy(wall), MALA(0.1), x_init=torch.full((64, 1), 0.01), **options)
    assert "in 2 of 64 chains (6, 61)" in message


def test_chains_that_need_small_steps_are_not_frozen():
    """Step sizes of 1 : 10^4, each where its acceptance is the target's."""
    width = torch.tensor([1.0, 1e-2]).repeat(10)[:, None]
    target = mcmc.Energy(lambda x, w: ((x / w).square().sum(1)) / 2, cond={"w": width})
    options = {"shape": (4,), "warmup": 300, "steps": 300, "adapt": 0.574, "x_init": width.expand(20, 4)}
    assert not told(target, MALA(0.01), **options)
