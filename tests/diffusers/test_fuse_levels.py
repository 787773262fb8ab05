"""fuse: noise levels that repeat, rise or are not finite, and the arguments that are refused before the first step."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from fuse_cases import SHAPE, assert_same_loops, begin, loop, make, network
from ulam.integrations.diffusers import fuse

NAN = r"(sigmas|timesteps): got .*nan.*, expected .*finite"
FLOW = "FlowMatchEulerDiscreteScheduler"
ONE_CALL = ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "EDMEulerScheduler", FLOW]


def repeat(scheduler: Any, steps: int, *places: int) -> None:
    """Set timesteps, and the levels (and times) behind these places to those of the places."""
    scheduler.set_timesteps(steps)
    for place in places:
        scheduler.sigmas[place + 1] = scheduler.sigmas[place]
        scheduler.timesteps[place + 1] = scheduler.timesteps[place]


@pytest.mark.parametrize("places", [(0,), (4,), (3, 4), (0, 1, 5)])
@pytest.mark.parametrize("name", ONE_CALL)
@pytest.mark.parametrize("step", [{}, {"s_churn": 5.0}])
def test_levels_that_repeat_are_as_in_diffusers(name: str, places: tuple[int, ...], step: dict[str, Any]) -> None:
    step = step if name in ("EulerDiscreteScheduler", "EDMEulerScheduler") else {}
    runs = []
    for scheduler in (fuse(make(name)), make(name)):
        repeat(scheduler, 8, *places)
        scheduler.set_begin_index(0)
        runs.append(loop(scheduler, **step))
    assert_same_loops(*runs)


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_both_calls_of_a_step_that_goes_nowhere_change_nothing(name: str, steps: int) -> None:
    runs = []
    for scheduler in (fuse(make(name)), make(name)):
        scheduler.set_timesteps(6)
        at = 2 * (steps - 1)  # of the step's first call
        scheduler.sigmas[at + 1 : at + 3] = scheduler.sigmas[at]
        if name.startswith("KDPM2"):
            scheduler.sigmas_interpol[at + 1 : at + 3] = scheduler.sigmas[at]
            scheduler.sigmas_interpol[at + 3 : at + 5] = (scheduler.sigmas[at] * scheduler.sigmas[at + 3]).sqrt()
        scheduler.timesteps[at + 1 : at + 3] = scheduler.timesteps[at]
        scheduler.set_begin_index(0)
        runs.append(loop(scheduler))
    assert_same_loops(*runs)
    assert torch.equal(runs[0][at + 1][0], runs[0][at - 1][0])


SOLVERS = [
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("DEISMultistepScheduler", {"solver_order": 3}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("LMSDiscreteScheduler", {}),
]


@pytest.mark.parametrize("places", [(4,), (3, 4), (0,), (6,)])
@pytest.mark.parametrize(("name", "config"), SOLVERS)
def test_solvers_go_on_behind_a_level_that_repeats(name: str, config: dict[str, Any], places: tuple[int, ...]) -> None:
    """As on the grid without the repetition, to the bit: there diffusers divides by zero, and gives NaN."""
    whole = fuse(make(name, **config))
    repeat(whole, 20, *places)
    ours, kept = loop(whole), [i for i in range(20) if i not in places]
    short = fuse(make(name, **config))
    short.set_timesteps(20)
    short.sigmas, short.timesteps = whole.sigmas[[*kept, 20]], whole.timesteps[kept]
    short.num_inference_steps = len(kept)
    for mine, other in zip([ours[i] for i in kept], loop(short), strict=True):
        assert torch.equal(mine[0], other[0])
    before = begin(whole)[0] if places[0] == 0 else ours[places[0] - 1][0]
    assert torch.equal(ours[places[0]][0], before)


@pytest.mark.parametrize("sigmas", [[1, 0.5, 0], [0.8, 0.8, 0.4], [1.0, 0.5, 0.5, 0.0], [0.0], [0.3, 0.0, 0.0]])
@pytest.mark.parametrize("stochastic", [False, True])
def test_flow_levels_may_end_at_zero_and_repeat(sigmas: list[float], stochastic: bool) -> None:
    runs = []
    for scheduler in (fuse(make(FLOW, stochastic_sampling=stochastic)), make(FLOW, stochastic_sampling=stochastic)):
        if stochastic and 0.0 in sigmas:  # fresh noise has no level of its own at the data
            scheduler.set_timesteps(sigmas=np.array([s for s in sigmas if s] or [0.5]))
        else:
            scheduler.set_timesteps(sigmas=np.array(sigmas))
        scheduler.set_begin_index(0)
        runs.append(loop(scheduler))
    assert_same_loops(*runs)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("first", [0, 3])
def test_flow_matching_from_the_data_to_noise(stochastic: bool, first: int) -> None:
    config = {"invert_sigmas": True, "stochastic_sampling": stochastic}
    runs = []
    for scheduler in (fuse(make(FLOW, **config)), make(FLOW, **config)):
        scheduler.set_timesteps(8)
        assert scheduler.sigmas[0] == 0 and scheduler.sigmas[-1] == 1
        runs.append(loop(scheduler, first=first))
    assert_same_loops(*runs)


def test_an_order_that_has_no_rows_is_refused_by_fuse() -> None:
    with pytest.raises(ValueError, match=r"^scheduler: got solver_order=5, expected at most 4$"):
        fuse(make("UniPCMultistepScheduler", solver_order=5))


def test_unipc_of_order_four() -> None:
    theirs = make("UniPCMultistepScheduler", solver_order=4)
    assert_same_loops(loop(fuse(theirs), 12), loop(theirs, 12))


@pytest.mark.parametrize("steps", [2, 17, 33])
@pytest.mark.parametrize(("rho", "sigma_max"), [(1.5, 80.0), (3.0, 20.0), (5.0, 20.0), (7.0, 80.0), (11.0, 5.0)])
def test_a_last_level_that_rises_by_rounding_alone_is_that_of_diffusers(
    rho: float, sigma_max: float, steps: int
) -> None:
    """Karras' levels in float32 end up to 1e-4 below sigma_min, which follows them."""
    options = {"rho": rho, "sigma_max": sigma_max, "final_sigmas_type": "sigma_min"}
    theirs = make("EDMDPMSolverMultistepScheduler", **options)
    assert_same_loops(loop(fuse(theirs), steps), loop(theirs, steps))


@pytest.mark.parametrize(
    ("name", "config", "call", "message"),
    [
        (FLOW, {}, {"sigmas": [0.2, 0.5]}, "sigmas: got 0.2 before 0.5, expected levels that do not rise"),
        (FLOW, {}, {"sigmas": [1.5, 0.5]}, r"sigmas: got \[1.5, 0.5, 0.0\], expected finite levels from 0 to 1"),
        (FLOW, {}, {"sigmas": [1.0, float("nan")]}, NAN),
        (FLOW, {"shift_terminal": 0.1}, {"num_inference_steps": 1}, NAN),
        ("EulerDiscreteScheduler", {}, {"sigmas": [3.0, 5.0, 1.0]}, "sigmas: got 3 before 5, expected levels"),
        ("EulerDiscreteScheduler", {}, {"sigmas": [3.0, -1.0, 0.0]}, "sigmas: got .*-1.0.*, expected finite"),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, {"sigmas": [0.1, 0.9]}, "sigmas: got 0.1 before 0.9"),
    ],
)
def test_levels_that_have_no_rows_are_refused_by_set_timesteps(
    name: str, config: dict[str, Any], call: dict[str, Any], message: str
) -> None:
    scheduler = fuse(make(name, **config))
    with pytest.raises(ValueError, match=message) as raised:
        scheduler.set_timesteps(**{name: np.array(given)[()] for name, given in call.items()})
    assert "\n" not in str(raised.value)


def test_a_refused_grid_leaves_the_scheduler_usable() -> None:
    scheduler = fuse(make(FLOW))
    with pytest.raises(ValueError, match="sigmas: got"):
        scheduler.set_timesteps(sigmas=[0.2, 0.5])
    assert_same_loops(loop(scheduler, 5), loop(make(FLOW), 5))


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "LCMScheduler"])
def test_timesteps_below_zero_are_named(name: str) -> None:
    """diffusers reads alphas_cumprod from its end there."""
    scheduler = fuse(make(name))
    scheduler.set_timesteps(4)
    scheduler.timesteps = torch.tensor([700, 300, -5])
    x, _ = begin(scheduler)
    with pytest.raises(ValueError, match="timesteps: got -5, expected values of at least 0"):
        scheduler.step(x, 700, x)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler", FLOW])
def test_generators_that_are_none_or_too_few(name: str) -> None:
    config = {"stochastic_sampling": True} if name == FLOW else {}
    scheduler = fuse(make(name, **config))
    scheduler.set_timesteps(4)
    (x, _), t = begin(scheduler), scheduler.timesteps[0]
    m, two = network(x, t), [torch.Generator() for _ in range(2)]
    with pytest.raises(ValueError, match="generator: got 2 generators, expected one, or 3, one a sample"):
        scheduler.step(m, t, x, generator=two)
    for wrong in (7, "cpu", (two[0],), [two[0], 1, two[1]]):
        with pytest.raises(TypeError, match=r"generator: got a (int|str|tuple), expected a torch.Generator or a list"):
            scheduler.step(m, t, x, generator=wrong)
    assert scheduler.step(m, t, x, generator=two[:1]).prev_sample.shape == SHAPE
    assert isinstance(scheduler, diffusers.SchedulerMixin)
