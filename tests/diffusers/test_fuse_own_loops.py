"""Fused schedulers with loops of their own against diffusers': CogVideoX, Wuerstchen, RePaint, Karras VE, score SDE."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fuse_cases import SHAPE, assert_same_loops, begin, make, network
from ulam.integrations.diffusers import fuse

CLOSE = 1e-5
PREDICTIONS = ("epsilon", "sample", "v_prediction")
GRIDS: list[dict[str, Any]] = [
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing"},
]
DPM_COG, WUERSTCHEN, REPAINT = "CogVideoXDPMScheduler", "DDPMWuerstchenScheduler", "RePaintScheduler"


def both(name: str, config: dict[str, Any]) -> tuple[Any, Any]:
    return fuse(make(name, **config)), make(name, **config)


def cogvideox(scheduler: Any, steps: int, first: int = 0, **step: Any) -> list[tuple[torch.Tensor, ...]]:
    """As its pipelines have it: every call is told the one before, and its estimate."""
    scheduler.set_timesteps(steps)
    (x, generator), old, returned = begin(scheduler), None, []
    times = scheduler.timesteps[first:]
    for i, t in enumerate(times):
        back = times[i - 1] if i else None
        x, old = scheduler.step(network(x, t), old, t, back, x, generator=generator, **step)
        returned.append((x, old))
    return returned


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize(
    "config",
    [
        *({**grid, "prediction_type": prediction} for grid in GRIDS for prediction in PREDICTIONS),
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"set_alpha_to_one": False},
        {"snr_shift_scale": 1.0},
    ],
)
def test_cogvideox_with_the_solver(config: dict[str, Any], steps: int) -> None:
    for first in {0, steps // 3}:
        runs = [cogvideox(scheduler, steps, first) for scheduler in both(DPM_COG, config)]
        assert_same_loops(*runs, close=CLOSE)


def test_cogvideox_off_its_grid_and_in_its_output_classes() -> None:
    x, old, m = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(5))
    results = []
    for scheduler in both(DPM_COG, {}):
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(1)
        given = [(old, 555, 700), (None, 555, 700), (old, 20, 120), (None, 431, None)]
        results.append([scheduler.step(m, o, t, b, x, generator=generator, return_dict=True) for o, t, b in given])
    for ours, theirs in zip(*results, strict=True):
        assert isinstance(ours, tuple) == isinstance(theirs, tuple)
        pairs = [tuple(r.values()) if isinstance(r, dict) else r for r in (ours, theirs)]
        for mine, other in zip(*pairs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_cogvideox_bits_under_noise_v1_depend_on_the_chain_alone() -> None:
    x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))
    samples = []
    for chains, part in (([4, 1, 7], slice(None)), ([1], slice(1, 2))):
        scheduler = fuse(make(DPM_COG), noise="noise-v1", seed=3, chains=chains)
        scheduler.set_timesteps(6)
        first, second = scheduler.timesteps[:2]
        _, old = scheduler.step(m[part], None, first, None, x[part])
        samples.append(scheduler.step(m[part], old, second, first, x[part])[0])
    assert torch.equal(samples[0][1:2], samples[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timestep": 1000}, r"^timestep: got 1000, expected a training step below 1000"),
        ({"timestep": 2.5}, r"^timestep: got 2.5, expected a training step"),
        ({"timestep_back": -1}, r"^timestep_back: got -1, expected a training step"),
        ({"timestep_back": None}, r"^timestep_back: got None, expected the timestep of old_pred_original_sample"),
        ({"old_pred_original_sample": torch.zeros(2)}, r"^old_pred_original_sample: got shape \[2\], expected"),
        ({"model_output": torch.zeros(2, 3)}, r"^model_output: got shape \[2, 3\], expected"),
        ({"generator": 3}, r"^generator: got a int, expected a torch.Generator"),
        ({"return_dict": "no"}, r"^return_dict: got 'no', expected"),
    ],
)
def test_cogvideox_names_what_is_wrong(wrong: dict[str, Any], message: str) -> None:
    scheduler = fuse(make(DPM_COG))
    scheduler.set_timesteps(6)
    x = torch.zeros(SHAPE)
    given = {"model_output": x, "old_pred_original_sample": x, "timestep": 500, "timestep_back": 700, "sample": x}
    with pytest.raises((TypeError, ValueError), match=message):
        scheduler.step(**{**given, **wrong})


def wuerstchen(scheduler: Any, steps: int, told: Any) -> list[tuple[torch.Tensor, ...]]:
    scheduler.set_timesteps(steps)
    (x, generator), returned = begin(scheduler), []
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(network(x, t), told(t), x, generator=generator).prev_sample
        returned.append((x,))
    return returned


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("config", [{}, {"scaler": 2.0}, {"scaler": 0.5}, {"s": 0.1}])
def test_wuerstchen(config: dict[str, Any], steps: int) -> None:
    theirs = wuerstchen(make(WUERSTCHEN, **config), steps, lambda t: t.repeat(SHAPE[0]))
    for told in (lambda t: t.repeat(SHAPE[0]), lambda t: t[None], float):
        assert_same_loops(wuerstchen(fuse(make(WUERSTCHEN, **config)), steps, told), theirs, close=CLOSE)


def test_wuerstchen_makes_no_step_from_its_last_timestep() -> None:
    scheduler = fuse(make(WUERSTCHEN))
    x, _ = begin(scheduler)
    with pytest.raises(ValueError, match="timesteps: got none, expected a call of set_timesteps first"):
        scheduler.step(x, 1.0, x)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match="timestep: got 0, the last one, expected one that another of timesteps"):
        scheduler.step(x, scheduler.timesteps[-1:], x)


def repaint(scheduler: Any, steps: int, **grid: int) -> list[tuple[torch.Tensor, ...]]:
    """As its pipeline has it: a step where the timesteps fall, undo_step where they rise."""
    scheduler.set_timesteps(steps, **grid)
    (x, generator), returned = begin(scheduler), []
    known, mask = torch.sin(torch.arange(48.0)).reshape(1, 3, 4, 4), (torch.arange(4.0) / 3).reshape(1, 1, 1, 4)
    before = scheduler.timesteps[0] + 1
    for t in scheduler.timesteps:
        if t < before:
            returned.append(scheduler.step(network(x, t), t, x, known, mask, generator=generator).to_tuple())
            x = returned[-1][0]
        else:
            x = scheduler.undo_step(x, before, generator)
        before = t
    return returned


@pytest.mark.parametrize("config", [{}, {"eta": 1.0}, {"eta": 0.5, "clip_sample": False}])
def test_repaint(config: dict[str, Any]) -> None:
    for steps, grid in ((8, {"jump_length": 3, "jump_n_sample": 2}), (5, {})):
        runs = [repaint(scheduler, steps, **grid) for scheduler in both(REPAINT, config)]
        assert_same_loops(*runs, close=CLOSE)


def test_repaint_under_noise_v1_draws_anew_at_a_timestep_that_comes_again() -> None:
    """The known part is the image and the call's noise, whatever the batch is."""
    x, runs = torch.zeros(SHAPE), []
    for chains, part in (([4, 1, 7], slice(None)), ([1], slice(1, 2))):
        scheduler = fuse(make(REPAINT), noise="noise-v1", seed=3, chains=chains)
        scheduler.set_timesteps(8, jump_length=3, jump_n_sample=2)
        known, t = torch.ones(1, 1, 1, 1), scheduler.timesteps[3]
        runs.append([scheduler.step(x[part], t, x[part], known, known).prev_sample for _ in range(2)])
        runs[-1].append(scheduler.undo_step(runs[-1][-1], t))
    assert all(torch.equal(many[1:2], alone) for many, alone in zip(*runs, strict=True))
    assert not torch.equal(*runs[0][:2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask": torch.zeros(5)}, r"^mask: got shape \[5\], expected one that broadcasts to \[3, 3, 4, 4\] like"),
        ({"original_image": 3}, r"^original_image: got 3, expected"),
        ({"timestep": 3}, r"^timestep: got 3.0, expected one of scheduler.timesteps"),
        ({"generator": 3}, r"^generator: got a int, expected a torch.Generator"),
    ],
)
def test_repaint_names_what_is_wrong_and_draws_nothing(wrong: dict[str, Any], message: str) -> None:
    scheduler, x, generator = fuse(make(REPAINT)), torch.zeros(SHAPE), torch.Generator().manual_seed(0)
    scheduler.set_timesteps(10)
    given = {"model_output": x, "timestep": 500, "sample": x, "original_image": x, "mask": x, "generator": generator}
    with pytest.raises((TypeError, ValueError), match=message):
        scheduler.step(**{**given, **wrong})
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state())


def karras_ve(scheduler: Any, steps: int) -> list[tuple[torch.Tensor, ...]]:
    """As its pipeline has it, in float64: noise, Euler's step, and where the next level is not 0 the correction.

    Its levels are squares, up to 1e4, where diffusers' derivatives cancel in float32.
    """
    scheduler.set_timesteps(steps)
    scheduler.schedule = scheduler.schedule.double()
    (x, generator), returned = begin(scheduler, dtype=torch.float64), []
    for t in scheduler.timesteps:
        sigma = scheduler.schedule[t]
        before = scheduler.schedule[t - 1] if t > 0 else 0
        hat, sigma_hat = scheduler.add_noise_to_input(x, sigma, generator=generator)
        output = scheduler.step(network(hat, sigma_hat), sigma_hat, before, hat)
        returned.append(output.to_tuple())
        if before != 0:
            m = network(output.prev_sample, before)
            given = (m, sigma_hat, before, hat, output.prev_sample, output.derivative)
            output = scheduler.step_correct(*given)
            returned.append(output.to_tuple())
        x = output.prev_sample
    return returned


@pytest.mark.parametrize("config", [{}, {"s_churn": 0.0}, {"sigma_max": 20.0, "s_noise": 1.0}])
def test_karras_ve(config: dict[str, Any]) -> None:
    for steps in (2, 9):
        runs = [karras_ve(scheduler, steps) for scheduler in both("KarrasVeScheduler", config)]
        for ours, theirs in zip(*runs, strict=True):
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    scheduler, x = fuse(make("KarrasVeScheduler")), torch.ones(SHAPE)
    for wrong in (-1.0, float("nan"), "x", torch.ones(2)):
        with pytest.raises((TypeError, ValueError), match=r"^sigma_prev: got .*, expected a finite noise level"):
            scheduler.step(x, 2.0, wrong, x)
    alone, among = (fuse(make("KarrasVeScheduler"), noise="noise-v1", chains=ids) for ids in ([1], [0, 1, 2]))
    for each in (alone, among):
        each.set_timesteps(4)
    assert torch.equal(alone.add_noise_to_input(x[1:2], 3.0)[0], among.add_noise_to_input(x, 3.0)[0][1:2])


@pytest.mark.parametrize("config", [{}, {"beta_min": 0.5, "beta_max": 10.0, "sampling_eps": 0.01}])
def test_score_sde_vp(config: dict[str, Any]) -> None:
    runs = []
    for scheduler in both("ScoreSdeVpScheduler", config):
        scheduler.set_timesteps(12)
        (x, generator), returned = begin(scheduler), []
        for t in scheduler.timesteps:
            x, mean = scheduler.step_pred(network(x, t), x, t[None], generator=generator)
            returned.append((x, mean))
        runs.append(returned)
    assert_same_loops(*runs, close=CLOSE)
    scheduler, x = fuse(make("ScoreSdeVpScheduler")), torch.zeros(SHAPE)
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"^score: got shape \[2\], expected \[3, 3, 4, 4\] like x"):
        scheduler.step_pred(torch.zeros(2), x, scheduler.timesteps[:1])
