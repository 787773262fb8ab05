"""fuse: the position in a loop, timesteps per sample, threads, and the noise."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import diffusers
import pytest
import torch

import ulam
from fuse_cases import ALL, SHAPE, begin, loop, make, network
from ulam import schedules
from ulam.integrations.diffusers import fuse
from ulam.samplers import DDPM, DPMSolverPP

HISTORY = ["PNDMScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"]


# ------------------------------------------------------------------------------------------------- position


@pytest.mark.parametrize("name", ALL)
def test_a_loop_begins_anew_without_set_timesteps(name: str) -> None:
    scheduler = fuse(make(name))
    scheduler.set_timesteps(6)
    expected = loop(scheduler)
    x, _ = begin(scheduler, seed=9)
    t = scheduler.timesteps[0]
    scheduler.step(network(x, t), t, x)  # a loop that was given up
    for mine, theirs in zip(loop(scheduler), expected, strict=True):
        assert torch.equal(mine[0], theirs[0])


@pytest.mark.parametrize("name", ALL)
def test_a_timestep_for_every_sample(name: str) -> None:
    """The samples run through the loop one call behind the other; each is what it is in a batch of its own."""
    config = {"shift": 2.0} if name.startswith("Flow") else {}
    scheduler, steps = fuse(make(name, **config), noise="noise-v1", seed=5), 6
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps
    x, _ = begin(scheduler)
    expected = []
    for chain in range(len(x)):
        alone = fuse(make(name, **config), noise="noise-v1", seed=5, chains=[chain])
        alone.set_timesteps(steps)
        y, outputs = x[chain : chain + 1], []
        for t in times:
            scaled = alone.scale_model_input(y, t) if hasattr(alone, "scale_model_input") else y
            y = alone.step(network(scaled, t), t, y).prev_sample
            outputs.append(y)
        expected.append(outputs)
    for call in range(len(times) - 2):
        t = torch.stack([times[call], times[max(0, call - 1)], times[max(0, call - 2)]])
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), t, x).prev_sample
        if call < 2:  # the samples that have not begun stay
            x = torch.stack([x[c] if c <= call else begin(scheduler)[0][c] for c in range(3)])
        for chain in range(min(call + 1, 3)):
            assert torch.equal(x[chain], expected[chain][call - chain][0])


def test_timesteps_of_the_wrong_count() -> None:
    scheduler = fuse(diffusers.DDPMScheduler())
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"timestep: got shape \[2\], expected a number or \[3\]"):
        scheduler.step(x, torch.tensor([3, 4]), x)
    with pytest.raises(ValueError, match=r"timestep: got 3\.5, expected one of scheduler\.timesteps"):
        scheduler.step(x, 3.5, x)


@pytest.mark.parametrize("name", ["DDPMScheduler", *HISTORY, "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("own_steps", [False, True])
def test_threads_do_not_disturb_one_another(name: str, own_steps: bool) -> None:
    """Four threads go through loops of one scheduler, call by call in turn, also of different lengths."""
    scheduler = fuse(make(name))
    scheduler.set_timesteps(9)
    counts = [9, 10, 11, 12] if own_steps else [9] * 4
    expected = [loop(fuse(make(name)), count, seed=thread) for thread, count in enumerate(counts)]
    turn, results = threading.Barrier(4), {}

    def run(thread: int) -> None:
        if own_steps:
            scheduler.set_timesteps(counts[thread])
        turn.wait(30)
        x, generator = begin(scheduler, seed=thread)
        takes = "generator" in inspect.signature(scheduler.step).parameters
        calls = []
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(scaled, t), t, x, **({"generator": generator} if takes else {})).prev_sample
            calls.append(x)
            if not own_steps:
                turn.wait(30)
        results[thread] = calls

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for thread, calls in enumerate(expected):
        for mine, theirs in zip(results[thread], calls, strict=True):
            assert torch.equal(mine, theirs[0])


# ---------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_generators(name: str) -> None:
    """No generator is torch's own; a list has one for every sample."""
    theirs = make(name)
    samples = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(4)
        x, _ = begin(scheduler)
        t = scheduler.timesteps[1]
        torch.manual_seed(11)
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(scaled, t), t, x).prev_sample
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        t = scheduler.timesteps[2]
        samples.append((x, scheduler.step(network(x, t), t, x, generator=generators).prev_sample))
    for mine, other in zip(*samples, strict=True):
        assert (mine - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("name", ALL)
def test_generators_are_left_where_diffusers_leaves_them(name: str) -> None:
    theirs = make(name)
    if "generator" in inspect.signature(theirs.step).parameters:
        states = []
        for scheduler in (fuse(theirs), theirs):
            generator = torch.Generator().manual_seed(1)
            scheduler.set_timesteps(5)
            x, _ = begin(scheduler)
            for t in scheduler.timesteps:
                x = scheduler.step(torch.tanh(x), t, x, generator=generator).prev_sample
            states.append(generator.get_state())
        assert torch.equal(*states)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("DDPMScheduler", DDPM(12, clip=(-1, 1))),
        ("DPMSolverMultistepScheduler", DPMSolverPP(12, sde=True)),
    ],
)
def test_noise_v1_gives_the_numbers_of_ulam_sample(name: str, sampler: Any) -> None:
    """Coefficients come from float32 alphas_cumprod here, so that the numbers differ in the last digits."""
    config = {} if name == "DDPMScheduler" else {"algorithm_type": "sde-dpmsolver++"}
    scheduler = fuse(make(name, **config), noise="noise-v1", seed=7, chains=[4, 2, 9])
    scheduler.set_timesteps(12)
    x = ulam.noise.normal(SHAPE[1:], seed=7, chains=[4, 2, 9], tag=1)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(x), t, x, generator=None).prev_sample
    denoiser = ulam.Denoiser(lambda x, t: torch.tanh(x), schedules.vp_linear(), predicts="eps")
    expected = ulam.sample(denoiser, sampler, shape=SHAPE[1:], chains=[4, 2, 9], seed=7, progress=False)
    assert (x - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_noise_v1_of_the_score_sde() -> None:
    """The predictor's noise is that of its row, stage 0; the corrector's is of the stages before it."""
    scheduler = fuse(diffusers.ScoreSdeVeScheduler(num_train_timesteps=8), noise="noise-v1", seed=3)
    x, zero = torch.zeros(SHAPE), torch.zeros(SHAPE)
    for row, i in enumerate(range(7, 4, -1)):
        for stage in (1, 2):
            z = ulam.noise.normal(SHAPE[1:], seed=3, chains=3, row=row, stage=stage)
            moved = scheduler.step_correct(z, zero).prev_sample
            torch.testing.assert_close(moved, (2 * 0.15**2 + 2 * 0.15) * z, rtol=1e-5, atol=1e-6)
        g = (scheduler.discrete_sigmas[i] ** 2 - scheduler.discrete_sigmas[i - 1] ** 2) ** 0.5
        x = scheduler.step_pred(zero, scheduler.timesteps[row], zero).prev_sample
        torch.testing.assert_close(x, g * ulam.noise.normal(SHAPE[1:], seed=3, chains=3, row=row), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"])
def test_backends_give_the_same_bits(name: str) -> None:
    runs = [loop(fuse(make(name), noise="noise-v1", backend=backend), 6) for backend in ("cpu", "reference")]
    for mine, other in zip(*runs, strict=True):
        assert torch.equal(mine[0], other[0])
    with pytest.raises(ValueError, match="backend"):
        loop(fuse(make(name), noise="noise-v1", backend="gpu"), 6)


def test_a_second_output_under_churn_has_the_noise_of_its_step() -> None:
    """Of two samples in one batch, each with its own noise, and after later steps have drawn theirs."""
    theirs = diffusers.EulerDiscreteScheduler()
    outputs = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(5)
        x, generator = begin(scheduler)
        first = scheduler.step(x, scheduler.timesteps[0], x, s_churn=3.0, generator=generator)
        scheduler.step(x, scheduler.timesteps[1], first.prev_sample, s_churn=3.0, generator=generator)
        outputs.append(first.pred_original_sample)
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-4)


def test_chains_must_be_as_many_as_samples() -> None:
    scheduler = fuse(diffusers.DDPMScheduler(), noise="noise-v1", chains=2)
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="chains: got 2 ids for 3 samples, expected one a sample of the batch"):
        scheduler.step(x, 500, x)
