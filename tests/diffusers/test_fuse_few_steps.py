"""Fused schedulers of few steps, whose `step` has arguments of its own, against diffusers'; dtypes and refusals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fuse_cases import SHAPE, assert_same_loops, begin, loop, make, network
from ulam.integrations.diffusers import fuse

CLOSE = 1e-5
EULER, HEUN, LCM = (f"FlowMatch{kind}Scheduler" for kind in ("EulerDiscrete", "HeunDiscrete", "LCM"))
LTX, MAP, HELIOS = "LTXEulerAncestralRFScheduler", "FlowMapEulerDiscreteScheduler", "HeliosScheduler"
DYNAMIC = {"use_dynamic_shifting": True}


def flow_net(x: torch.Tensor) -> torch.Tensor:
    return 0.6 * torch.tanh(x) + 0.1 * torch.sin(3 * x)


Calls = Callable[[Any, torch.Tensor, torch.Generator], list[torch.Tensor]]


def scm(scheduler: Any, x: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    returned = []
    for t in scheduler.timesteps[:-1]:
        output = scheduler.step(flow_net(x), t, x, generator=generator)
        x = output.prev_sample
        returned += [x, output.pred_original_sample]
    return returned


def dmd(scheduler: Any, x: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    noise, returned = torch.randn(x.shape, generator=generator), []
    given = {"dmd_sigmas": scheduler.sigmas, "dmd_timesteps": scheduler.timesteps, "all_timesteps": scheduler.timesteps}
    for i, t in enumerate(scheduler.timesteps):
        output = scheduler.step(flow_net(x), t, x, cur_sampling_step=i, dmd_noisy_tensor=noise, **given)
        x = output.prev_sample
        returned.append(x)
    return returned


def stages(scheduler: Any, x: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    returned = []
    for t in scheduler.timesteps:
        x, *_ = scheduler.step(flow_net(x), t, x, return_dict=False)
        returned.append(x)
    return returned


def piflow(scheduler: Any, x: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    returned = []
    for t in scheduler.timesteps:
        outputs = torch.cat([flow_net(x + 0.3 * k) for k in range(scheduler.n_grid)], dim=-1)
        x = scheduler.step(outputs, t, x).prev_sample
        returned.append(x)
    return returned


def proteina(scheduler: Any, x: torch.Tensor, generator: torch.Generator) -> list[torch.Tensor]:
    """In float64, since diffusers divides a difference of samples by times as small as 0.001."""
    x, mask, returned = x.flatten(2).double(), torch.rand(x.shape[:2], generator=generator) > 0.3, []
    generators = [torch.Generator().manual_seed(i) for i in range(len(x))]
    for t in scheduler.timesteps:
        x = scheduler.step(flow_net(x), t, x, mask, generator=generators).prev_sample
        returned.append(x)
    return returned


THREE, FIVE = {"stages": 3}, {"num_inference_steps": 5}
OWN: list[tuple[str, Calls, dict[str, Any], dict[str, Any]]] = [
    ("SCM", scm, {}, {"num_inference_steps": 2}),
    ("SCM", scm, {"sigma_data": 0.8}, {"num_inference_steps": 5, "intermediate_timesteps": None}),
    (
        "SCM",
        scm,
        {},
        {
            "num_inference_steps": 3,
            "timesteps": [1.5, 1.1, 0.4, 0.0],
            "max_timesteps": None,
            "intermediate_timesteps": None,
        },
    ),
    ("SCM", scm, {}, {"num_inference_steps": 1, "intermediate_timesteps": None, "max_timesteps": 1.564}),
    *(("Helios", stages, THREE, {**FIVE, "stage_index": stage}) for stage in range(3)),
    *(
        ("Helios", stages, {**THREE, "solver_order": order, "solver_type": kind}, {**FIVE, "stage_index": 2})
        for order in (1, 2, 3)
        for kind in ("bh1", "bh2")
    ),
    ("Helios", stages, {**THREE, "scheduler_type": "euler"}, {"num_inference_steps": 4, "stage_index": 1}),
    ("Helios", stages, {**THREE, **DYNAMIC}, {"num_inference_steps": 5, "stage_index": 1, "mu": 0.7}),
    ("Helios", stages, {**THREE, "lower_order_final": False}, {"num_inference_steps": 6, "stage_index": 1}),
    ("Helios", stages, {**THREE, "disable_corrector": [0, 2]}, {"num_inference_steps": 6, "stage_index": 1}),
    ("HeliosDMD", dmd, THREE, {"num_inference_steps": 3, "stage_index": 0}),
    ("HeliosDMD", dmd, THREE, {"num_inference_steps": 3, "stage_index": 2, "is_amplify_first_chunk": True}),
    ("HeliosDMD", dmd, {**THREE, **DYNAMIC}, {"num_inference_steps": 3, "stage_index": 1, "mu": 0.7}),
    ("HeliosDMD", dmd, {}, {"num_inference_steps": 3}),
    *(("Piflow", piflow, {"n_grid": grid}, {"num_inference_steps": 4}) for grid in (2, 10)),
    ("Piflow", piflow, {"final_step_size_scale": 1.0, "num_policy_substeps": 9}, {"num_inference_steps": 3}),
    ("Piflow", piflow, {"shift": 1.0}, {"num_inference_steps": 2}),
    ("RFD4Proteina", proteina, {}, {"num_inference_steps": 12}),
    ("RFD4Proteina", proteina, {"schedule_mode": "power", "noise_mode": "1/t"}, {"num_inference_steps": 12}),
    ("RFD4Proteina", proteina, {"tail_steps": 0}, {"num_inference_steps": 6, "start_time": 0.3}),
]


def own_loop(scheduler: Any, calls: Calls, grid: dict[str, Any]) -> torch.Tensor:
    scheduler.set_timesteps(**grid)
    generator = torch.Generator().manual_seed(0)
    return torch.stack(calls(scheduler, torch.randn((2, 3, 4, 2, 2), generator=generator), generator))


@pytest.mark.parametrize(
    ("name", "calls", "config", "grid"), [pytest.param(*case, id=f"{i}-{case[0]}") for i, case in enumerate(OWN)]
)
def test_steps_of_their_own(name: str, calls: Calls, config: dict[str, Any], grid: dict[str, Any]) -> None:
    name = f"{name}Scheduler"
    expected = own_loop(make(name, **config), calls, grid)
    fused = fuse(make(name, **config))
    for _ in range(2):  # set anew, the loop is the same
        mine = own_loop(fused, calls, grid)
        assert mine.dtype == expected.dtype
        assert (mine - expected).abs().max() <= CLOSE * expected.abs().max().clamp(min=1)


def test_flow_maps_go_to_any_time() -> None:
    runs = []
    for scheduler in (fuse(make(MAP, shift=5.0)), make(MAP, shift=5.0)):
        scheduler.set_timesteps(4)
        times = scheduler.timesteps
        (x, _), outputs = begin(scheduler), []
        for t, r in ((times[0], times[2]), (times[2], None), (300.0, 0.0), (times[1], 123.0), (777.0, times[3])):
            x = scheduler.step(network(x, t), t, x, r).prev_sample
            outputs.append((x,))
        runs.append(outputs)
        assert scheduler.step_index == 5
    assert_same_loops(*runs, close=CLOSE)


def test_flow_maps_take_two_times_a_sample() -> None:
    """diffusers reads the first of times that are on its schedule for all samples."""
    scheduler = fuse(make(MAP))
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    m = network(x, 0)
    t, r = torch.tensor([1000.0, 750.0, 333.0]), torch.tensor([500.0, 0.0, 333.0])
    expected = x.double() + ((r - t) / 1000).double().reshape(-1, 1, 1, 1) * m
    assert (scheduler.step(m, t, x, r).prev_sample - expected).abs().max() < 1e-6
    alone = scheduler.step(m, t[:1], x, 500.0).prev_sample
    assert torch.equal(alone[0], scheduler.step(m, t, x, r).prev_sample[0])


# ------------------------------------------------------------------------------------------------------- dtypes

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ONE_STEP: dict[str, dict[str, Any]] = {
    **{name: {"num_inference_steps": 4} for name in (EULER, HEUN, LCM, LTX, MAP, HELIOS)},
    "SCMScheduler": {"num_inference_steps": 2},
    "HeliosDMDScheduler": {"num_inference_steps": 2},
    "PiflowScheduler": {"num_inference_steps": 2},
    "RFD4ProteinaScheduler": {"num_inference_steps": 12},
}


@pytest.mark.parametrize("name", ONE_STEP)
@pytest.mark.parametrize("output", FLOATS)
@pytest.mark.parametrize("sample", FLOATS)
def test_results_have_the_dtypes_of_diffusers(name: str, sample: torch.dtype, output: torch.dtype) -> None:
    results = []
    for scheduler in (make(name), fuse(make(name))):
        scheduler.set_timesteps(**ONE_STEP[name])
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((1, 3, 4, 2, 2), generator=generator)
        x = x.flatten(2).to(sample) if name.startswith("RFD4") else x.to(sample)
        m = torch.tanh(x.float()).to(output)
        t, more = scheduler.timesteps[0], {}
        if name.startswith("RFD4"):
            t, more = scheduler.timesteps[0], {"emit_mask": torch.ones(x.shape[:2], dtype=torch.bool)}
        if name.startswith("Piflow"):
            m = m.repeat_interleave(scheduler.n_grid, dim=-1)
        if name.endswith("DMDScheduler"):
            more = {"dmd_noisy_tensor": torch.randn(x.shape, generator=generator).to(sample)}
            more |= {"dmd_sigmas": scheduler.sigmas, "dmd_timesteps": scheduler.timesteps}
            more |= {"all_timesteps": scheduler.timesteps}
        if "generator" in inspect.signature(scheduler.step).parameters:
            more["generator"] = generator
        try:
            results.append(scheduler.step(m, t, x, return_dict=False, **more))
        except RuntimeError:  # diffusers has products of two dtypes, which no network gives here
            assert not results
            return
    for theirs, ours in zip(*results, strict=True):
        if theirs is not None and not name.startswith("Helios"):
            assert ours.dtype == theirs.dtype
            close = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
            least = 1e-4 if name.startswith("RFD4") else 1e-5
            tolerance = max(close.get(dtype, least) for dtype in (sample, output, ours.dtype))
            assert (ours.double() - theirs.double()).abs().max() <= tolerance * max(1, theirs.abs().max())
    assert results[0][0].dtype == results[1][0].dtype


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (LCM, {"scale_factors": [0.5, 1.0]}, "scale_factors=.*, expected none: a step that changes the sample's shape"),
        ("SCMScheduler", {"prediction_type": "epsilon"}, "prediction_type='epsilon', expected trigflow"),
        (HELIOS, {"scheduler_type": "dmd"}, "scheduler_type='dmd', expected euler or unipc; for DMD take HeliosDMD"),
        (HELIOS, {"use_flow_sigmas": False}, "use_flow_sigmas=False, expected True"),
        (HELIOS, {"thresholding": True}, "thresholding=True, expected False"),
        (HELIOS, {"predict_x0": False}, "predict_x0=False, expected True with flow_prediction"),
        (LTX, {"eta": -1.0}, "eta=-1.0, expected a finite number of at least 0"),
    ],
)
def test_options_without_rows_are_named(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^scheduler: got {message}"):
        fuse(make(name, **config))


def test_scale_factors_that_are_set_later_are_named_by_the_step() -> None:
    scheduler = fuse(make(LCM))
    scheduler.set_timesteps(3)
    scheduler.set_scale_factors([0.5, 1.0], "bicubic")
    x, _ = begin(scheduler)
    with pytest.raises(ValueError, match=r"^scheduler: got scale_factors=\[0.5, 1.0\], expected none"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_scale_factors([], "bicubic")
    assert_same_loops(loop(scheduler), loop(make(LCM), 3))


def test_no_step_of_scm_begins_at_its_end() -> None:
    scheduler = fuse(make("SCMScheduler"))
    scheduler.set_timesteps(2)
    x, _ = begin(scheduler)
    for t in scheduler.timesteps[:-1]:
        scheduler.step(x, t, x)
    with pytest.raises(
        ValueError, match=r"^timestep: got 0, expected one of scheduler.timesteps but the last, the end"
    ):
        scheduler.step(x, scheduler.timesteps[-1], x)


def test_flow_maps_need_each_timestep_once() -> None:
    """diffusers goes nowhere from the first of two equal timesteps, and from the second neither."""
    with pytest.raises(ValueError, match=r"^timesteps: got 500 twice, expected each once: FlowMapEuler"):
        fuse(make(MAP)).set_timesteps(sigmas=[1.0, 0.5, 0.5])
    scheduler = fuse(make(MAP))
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    with pytest.raises(ValueError, match=r"^timestep: got 300\.0, expected one of scheduler\.timesteps"):
        scheduler.step(x, 300.0, x)
    for wrong in (float("nan"), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"^r_timestep: got .*, expected a number from 0 to 1000 or \[3\] of them"):
            scheduler.step(x, 300.0, x, wrong)


def test_dmd_names_what_it_was_not_given() -> None:
    scheduler = fuse(make("HeliosDMDScheduler"))
    scheduler.set_timesteps(3)
    x, t = torch.zeros(SHAPE), scheduler.timesteps
    for name in ("dmd_sigmas", "dmd_timesteps", "all_timesteps", "dmd_noisy_tensor"):
        given = {"dmd_sigmas": scheduler.sigmas, "dmd_timesteps": t, "all_timesteps": t, "dmd_noisy_tensor": x}
        with pytest.raises((TypeError, ValueError), match=f"^{name}: got None.*, expected"):
            scheduler.step(x, t[0], x, **{**given, name: None})


def test_piflow_and_proteina_name_wrong_arguments() -> None:
    scheduler = fuse(make("PiflowScheduler", n_grid=3))
    scheduler.set_timesteps(3)
    x = torch.zeros(2, 5, 4)
    with pytest.raises(
        ValueError, match=r"^model_output: got shape \[2, 5, 4\], expected \[2, 5, 12\], n_grid outputs"
    ):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler = fuse(make("RFD4ProteinaScheduler"))
    scheduler.set_timesteps(12)
    mask, first = torch.ones(2, 5, dtype=torch.bool), scheduler.timesteps[0]
    with pytest.raises(ValueError, match=r"^timestep: got 0\.\d+, expected the next of scheduler.timesteps, 0\.001"):
        scheduler.step(x, scheduler.timesteps[3], x, mask)
    with pytest.raises(ValueError, match=r"^generator: got 1 for 2 samples, expected another one for each"):
        scheduler.step(x, first, x, mask, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"^emit_mask: got shape \[2, 4\], expected \[2, 5\]"):
        scheduler.step(x, first, x, mask[:, :4])
    with pytest.raises(TypeError, match=r"^emit_mask: got .*, expected a tensor of bools"):
        scheduler.step(x, first, x, mask.float())
