"""fuse: where a loop is, on grids whose timesteps repeat, from any call on, and with a timestep for every sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from fuse_cases import ALL, SHAPE, assert_same_loops, begin, make, network
from ulam.integrations.diffusers import fuse

COSINE: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}
STABLE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "use_beta_sigmas": True,
}
SOLVERS = [
    f"{name}Scheduler" for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep")
]
REPEATING = [
    *((name, COSINE, 20) for name in (*SOLVERS, "KDPM2DiscreteScheduler", "HeunDiscreteScheduler")),
    *((name, STABLE, 33) for name in (*SOLVERS, "KDPM2DiscreteScheduler")),
]


def walk(
    scheduler: Any, steps: int, first: int = 0, *, announced: bool = False, time: Callable[[Any], Any] = lambda t: t
) -> list[tuple[torch.Tensor, ...]]:
    """What every call of step gives from call `first` on; time: what is told of a timestep."""
    scheduler.set_timesteps(steps)
    if announced:
        scheduler.set_begin_index(first)
    return [(x,) for x in again(scheduler, first, time)]


def again(scheduler: Any, first: int = 0, time: Callable[[Any], Any] = lambda t: t) -> list[torch.Tensor]:
    """One more loop on the timesteps that are set."""
    (x, generator), results = begin(scheduler), []
    named = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps[first:]:
        told = time(t)
        scaled = scheduler.scale_model_input(x, told) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, t), told, x, **named).prev_sample
        results.append(x)
    return results


def repeated(scheduler: Any, steps: int) -> list[int]:
    """The positions whose timestep is that of the position before."""
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    return [i for i in range(1, len(times)) if times[i] == times[i - 1]]


@pytest.mark.parametrize(("name", "config", "steps"), REPEATING)
@pytest.mark.parametrize("how", ["announced", "part of timesteps", "copies", "numbers"])
def test_loops_begin_at_the_first_row(name: str, config: dict[str, Any], steps: int, how: str) -> None:
    """Against diffusers, told where the loop begins: untold, its solvers begin at the second of equal timesteps."""
    theirs = make(name, **config)
    times = {"copies": torch.clone, "numbers": float}
    ours = walk(fuse(theirs), steps, announced=how == "announced", time=times.get(how, lambda t: t))
    assert_same_loops(ours, walk(theirs, steps, announced=True))
    if name in SOLVERS:
        assert repeated(theirs, steps)


@pytest.mark.parametrize(("name", "config", "steps"), REPEATING)
def test_loops_may_begin_at_any_of_equal_timesteps(name: str, config: dict[str, Any], steps: int) -> None:
    """In the middle of a run of equal ones and at its end: a part of `timesteps` says which of them it is."""
    theirs = make(name, **config)
    places = {place // 2 * 2 if "2Discrete" in name or "Heun" in name else place for place in repeated(theirs, steps)}
    for first in sorted(places)[1:3] + sorted(places)[-1:]:
        expected = walk(theirs, steps, first, announced=True)
        for announced in (True, False):
            assert_same_loops(walk(fuse(theirs), steps, first, announced=announced), expected)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_loop_is_begun_anew_among_equal_timesteps(name: str) -> None:
    """One that was given up after its first or second call, and one that went to its end."""
    scheduler = fuse(make(name, **COSINE))
    expected = walk(scheduler, 20)
    for calls in (1, 2, 3, 20):
        x, _ = begin(scheduler, seed=9)
        for t in scheduler.timesteps[:calls]:
            x = scheduler.step(network(x, t), t, x).prev_sample
        for mine, (other,) in zip(again(scheduler), expected, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("announced", [False, True])
def test_a_timestep_for_every_sample_among_equal_ones(name: str, announced: bool) -> None:
    """All samples are told the same: that is the loop with one timestep."""
    scheduler = fuse(make(name, **COSINE))
    expected = walk(scheduler, 20)
    got = walk(scheduler, 20, announced=announced, time=lambda t: t.repeat(SHAPE[0]))
    for (mine,), (other,) in zip(got, expected, strict=True):
        assert torch.equal(mine, other)


def test_every_sample_begins_where_it_is_announced() -> None:
    """set_begin_index counts for a chain whose timestep is the one there; others begin at their own."""
    scheduler = fuse(make("DPMSolverMultistepScheduler", **COSINE))
    scheduler.set_timesteps(20)
    times = scheduler.timesteps
    assert len({float(t) for t in times[:4]}) == 1
    x, _ = begin(scheduler)
    scheduler.set_begin_index(2)
    told = torch.stack([times[2], times[2], times[15]])
    together = scheduler.step(network(x, told), told, x).prev_sample
    for chain, first in enumerate((2, 2, 15)):
        scheduler.set_timesteps(20)
        scheduler.set_begin_index(first)
        alone = scheduler.step(network(x, times[first]), times[first], x).prev_sample
        assert torch.equal(together[chain], alone[chain])


@pytest.mark.parametrize("name", [*SOLVERS, "KDPM2DiscreteScheduler"])
def test_noise_is_added_at_the_level_where_the_loop_begins(name: str) -> None:
    scheduler = fuse(make(name, **COSINE))
    scheduler.set_timesteps(20)
    x, z = torch.zeros(SHAPE), torch.ones(SHAPE)
    untold = scheduler.add_noise(x, z, scheduler.timesteps[:1].repeat(SHAPE[0]))
    scheduler.set_begin_index(0)
    assert torch.equal(untold, scheduler.add_noise(x, z, scheduler.timesteps[:1].repeat(SHAPE[0])))
    scheduler.set_begin_index(4)
    told = scheduler.add_noise(x, z, scheduler.timesteps[4:5].repeat(SHAPE[0]))
    scheduler.set_timesteps(20)
    assert torch.equal(told, scheduler.add_noise(x, z, scheduler.timesteps[4:5])) or "KDPM2" in name
    assert not torch.equal(told, untold)


@pytest.mark.parametrize("name", [name for name in ALL if hasattr(getattr(diffusers, name), "set_begin_index")])
@pytest.mark.parametrize("position", [-1, 40, 2.5, True])
def test_a_position_that_is_not_there_is_named(name: str, position: Any) -> None:
    scheduler = fuse(make(name))
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(position)
    x, _ = begin(scheduler)
    with pytest.raises(ValueError, match=rf"begin_index: got {position}, expected a position of the \d+ timesteps"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_schedulers_that_know_a_step_by_its_timestep_need_each_once(name: str) -> None:
    scheduler = fuse(make(name))
    scheduler.set_timesteps(4)
    scheduler.timesteps = torch.tensor([900, 500, 500, 100])
    x, _ = begin(scheduler)
    with pytest.raises(ValueError, match=f"timesteps: got 500 twice, expected each once: {name}"):
        scheduler.step(x, 500, x)


def test_pndm_from_its_second_timestep() -> None:
    """Told twice there, as always: the first of the two changes nothing, and the loop is that from the second."""
    scheduler = fuse(make("PNDMScheduler", skip_prk_steps=True))
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[1] == scheduler.timesteps[2]
    from_first, from_second = again(scheduler, 1), again(scheduler, 2)
    assert torch.equal(from_first[0], begin(scheduler)[0])
    for mine, other in zip(from_first[1:], from_second, strict=True):
        assert torch.equal(mine, other)
