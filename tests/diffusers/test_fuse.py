"""fuse: interface, state per thread, timesteps per sample, noise, outputs, saving, and what it refuses."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from fuse_cases import ALL, CONFIG, SHAPE, assert_same_loops, begin, loop, make, network, set_steps
from ulam.integrations.diffusers import buffers, fuse, fused
from ulam.integrations.diffusers.fusing import FAMILIES
from ulam.samplers import DDIM

# ------------------------------------------------------------------------------------------------ interface


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_rest_is_diffusers_own(name: str) -> None:
    theirs = make(name)
    set_steps(theirs, 10)
    ours = fuse(theirs)
    assert isinstance(ours, getattr(diffusers.schedulers, name)) and type(ours) is fused(
        getattr(diffusers.schedulers, name)
    )
    assert ours.config == theirs.config and ours.compatibles == theirs.compatibles
    assert getattr(ours, "order", None) == getattr(theirs, "order", None)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert getattr(ours, "init_noise_sigma", 0) == getattr(theirs, "init_noise_sigma", 0)
    for method in ("step", "step_pred", "step_correct", "set_timesteps", "scale_model_input"):
        if hasattr(theirs, method):
            names = [list(inspect.signature(getattr(s, method)).parameters) for s in (ours, theirs)]
            assert names[0] == names[1]


@pytest.mark.parametrize("name", ALL)
def test_the_class_takes_the_place_of_the_original(name: str) -> None:
    config = CONFIG.get(name, {})
    runs = [
        loop(cls(**config), 10)
        for cls in (fused(getattr(diffusers.schedulers, name)), getattr(diffusers.schedulers, name))
    ]
    assert_same_loops(*runs)


def test_fusing_again_and_copies_give_the_same_loop() -> None:
    scheduler = fuse(diffusers.UniPCMultistepScheduler(solver_order=3))
    scheduler.set_timesteps(10)
    expected = loop(scheduler)
    for other in (fuse(scheduler), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert type(other) is type(scheduler)
        for mine, theirs in zip(loop(other), expected, strict=True):
            assert torch.equal(mine[0], theirs[0])


def test_saved_schedulers_are_read_by_diffusers(tmp_path: Path) -> None:
    scheduler = fuse(diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, beta_end=0.03))
    scheduler.save_pretrained(tmp_path)
    for cls in (diffusers.EulerDiscreteScheduler, fused(diffusers.EulerDiscreteScheduler), diffusers.DDIMScheduler):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is cls and loaded.config.beta_end == 0.03
    assert '"_class_name": "EulerDiscreteScheduler"' in (tmp_path / "scheduler_config.json").read_text()
    assert fused(diffusers.DDIMScheduler).from_config(scheduler.config).config.beta_end == 0.03


def test_add_noise_knows_the_position_of_the_loop() -> None:
    """Inpainting pipelines call add_noise between steps; some schedulers look at their step index there."""
    theirs = diffusers.DPMSolverMultistepScheduler()
    noised = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(8)
        scheduler.set_begin_index(2)
        x, _ = begin(scheduler)
        for t in scheduler.timesteps[2:5]:
            x = scheduler.step(network(x, t), t, x).prev_sample
        noised.append(scheduler.add_noise(x, torch.ones_like(x), scheduler.timesteps[5:6]))
    torch.testing.assert_close(*noised, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "LCMScheduler", "EulerDiscreteScheduler"])
def test_outputs_are_those_of_diffusers(name: str) -> None:
    theirs = make(name)
    x, _ = begin(theirs)
    outputs = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(4)
        outputs.append(scheduler.step(x, scheduler.timesteps[3], x))  # without noise
        scheduler.set_timesteps(4)
        outputs.append(scheduler.step(x, scheduler.timesteps[3], x, return_dict=False))
    (ours, pair), (expected, tuple_) = outputs[:2], outputs[2:]
    assert isinstance(ours, type(expected)) and list(ours) == list(expected) and len(ours) == len(expected) == 2
    assert isinstance(pair, tuple) and len(pair) == len(tuple_) == 2
    first, second = pair
    for mine, other in ((ours[0], expected[0]), (ours[1], expected[1]), (first, tuple_[0]), (second, tuple_[1])):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    assert [len(part) for part in (pair[:1], (*pair, 1), ours.to_tuple())] == [1, 3, 2]
    assert dict(ours).keys() == set(expected) and "prev_sample" in ours and ours["prev_sample"] is ours.prev_sample
    assert pickle.loads(pickle.dumps(ours))[1].equal(second) and pickle.loads(pickle.dumps(pair))[1].equal(second)


def test_the_second_output_is_lazy_and_refuses_changed_arguments() -> None:
    scheduler = fuse(diffusers.DDIMScheduler())
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    output = scheduler.step(x, scheduler.timesteps[1], x)
    x.add_(1)
    assert output.prev_sample.shape == x.shape
    with pytest.raises(RuntimeError, match="pred_original_sample: got model_output or sample changed"):
        _ = output.pred_original_sample


def test_arguments_are_left_alone_and_results_are_fresh() -> None:
    for name in ALL:
        scheduler = fuse(make(name))
        scheduler.set_timesteps(4)
        x, _ = begin(scheduler)
        m = torch.tanh(x)
        before, t = (x.clone(), m.clone()), scheduler.timesteps[0]
        results = [scheduler.step(m, t, x).prev_sample]
        results.append(scheduler.step(m, scheduler.timesteps[1], results[0]).prev_sample)
        assert x.equal(before[0]) and m.equal(before[1])
        assert len({tensor.data_ptr() for tensor in (x, m, *results)}) == 4


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_dtypes(name: str, dtype: torch.dtype, close: float) -> None:
    """Results in the sample's dtype, near those of diffusers in float64, which has float32 constants."""
    scheduler = make(name)
    scheduler.set_timesteps(6)
    t = scheduler.timesteps[0]
    x = begin(scheduler)[0].to(dtype)
    m = torch.tanh(x)
    ours = fuse(scheduler).step(m, t, x, **seeded(scheduler)).prev_sample
    same = m.dtype == torch.float64 or "generator" not in inspect.signature(scheduler.step).parameters
    if same or name in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        scheduler.set_timesteps(6)
        theirs = scheduler.step(m.double(), t, x.double(), **seeded(scheduler)).prev_sample
        assert (ours.double() - theirs).abs().max() <= close * max(1, theirs.abs().max())
    assert ours.dtype == dtype


def seeded(scheduler: Any) -> dict[str, Any]:
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(3)} if takes else {}


def test_strides_do_not_matter() -> None:
    scheduler = fuse(diffusers.DDIMScheduler())
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    t = scheduler.timesteps[1]
    expected = scheduler.step(torch.tanh(x), t, x).prev_sample
    y = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(scheduler.step(torch.tanh(y), t, y).prev_sample, expected, rtol=1e-6, atol=1e-6)


def test_memory_is_used_again_only_where_nobody_holds_it() -> None:
    """Of a loop whose results are kept whole, as a view or not at all; the memory of the last kind comes back."""
    shape = (2, 3, 128, 128)
    assert torch.Size(shape).numel() >= buffers.LARGE
    scheduler = fuse(diffusers.EulerAncestralDiscreteScheduler())
    scheduler.set_timesteps(12)
    generator, m = torch.Generator().manual_seed(0), torch.randn(shape)
    x, held, seen = torch.randn(shape, generator=generator), [], set()
    for i, t in enumerate(scheduler.timesteps):
        net_in = scheduler.scale_model_input(x, t)
        kept = net_in if i % 3 == 0 else net_in[0, 1] if i % 3 == 1 else None
        if kept is not None:
            held.append((kept, kept.clone()))
        x = scheduler.step(m, t, x, generator=generator).prev_sample
        seen.add(x.data_ptr())
        if i % 4 == 0:
            held.append((x.permute(0, 2, 3, 1), x.permute(0, 2, 3, 1).clone()))
    assert all(torch.equal(now, then) for now, then in held)
    assert 3 < len(seen) < 12
    assert all(pointer % buffers.ALIGNMENT == 0 for pointer in seen)


def test_gradients_are_refused() -> None:
    scheduler = fuse(diffusers.DDIMScheduler())
    scheduler.set_timesteps(4)
    x = torch.zeros(SHAPE, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^model_output: got a tensor that requires grad, but step has no gradient"):
        scheduler.step(x, 500, x)
    with torch.no_grad():
        assert not scheduler.step(x, 500, x).prev_sample.requires_grad


# ------------------------------------------------------------------------------------------------- refusals


FLOW_V = {"use_flow_sigmas": True, "prediction_type": "v_prediction"}
ON_FLOW = [
    f"{name}Scheduler" for name in ("DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "DEISMultistep")
]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "LCMScheduler",
            {"thresholding": True, "dynamic_thresholding_ratio": 0, "sample_max_value": 2},
            "_ratio=0, ",
        ),
        ("DDIMScheduler", {"prediction_type": "flow"}, "scheduler: got prediction_type='flow', expected one of"),
        ("KDPM2DiscreteScheduler", {"prediction_type": "flow"}, "prediction_type='flow'"),
        ("PNDMScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
        ("EDMEulerScheduler", {"prediction_type": "sample"}, "prediction_type='sample'"),
        (
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction"},
            "it with use_flow_sigmas=True",
        ),
        *(
            (name, FLOW_V, "prediction_type='v_prediction', expected flow.* with use_flow_sigmas=True")
            for name in ON_FLOW
        ),
        ("UniPCMultistepScheduler", {"solver_p": diffusers.DDIMScheduler()}, "solver_p='DDIMScheduler'"),
        ("UniPCMultistepScheduler", {"solver_order": 5}, "solver_order=5, expected at most 4"),
    ],
)
def test_unsupported_options_are_named(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fuse(make(name, **config))


def test_other_arguments_are_refused() -> None:
    class OwnStep(diffusers.DDIMScheduler):
        def step(self, *args: Any, **kwargs: Any) -> Any: ...

    with pytest.raises(TypeError, match="scheduler: got OwnStep with a step of its own, expected"):
        fuse(OwnStep())
    with pytest.raises(TypeError, match=r"scheduler: got Unknown, expected one of diffusers' classes that"):
        fuse(type("Unknown", (diffusers.SchedulerMixin,), {})())
    with pytest.raises(TypeError, match="scheduler: got DDIM, expected a scheduler of diffusers"):
        fuse(DDIM(10))
    with pytest.raises(ValueError, match="noise: got 'gpu', expected one of torch, noise-v1"):
        fuse(diffusers.DDIMScheduler(), noise="gpu")
    with pytest.raises(ValueError, match="timesteps: got none, expected a call of set_timesteps first"):
        fuse(diffusers.DDIMScheduler()).step(torch.zeros(SHAPE), 5, torch.zeros(SHAPE))


def test_a_class_that_leaves_step_as_it_is_can_be_fused() -> None:
    class Named(diffusers.DDIMScheduler):
        pass

    assert isinstance(fuse(Named()), Named)
    assert_same_loops(loop(fuse(Named()), 10), loop(diffusers.DDIMScheduler(), 10))


def test_learned_variance_needs_twice_the_channels() -> None:
    scheduler = fuse(diffusers.DDPMScheduler(variance_type="learned_range"))
    x = torch.zeros(SHAPE)
    with pytest.raises(ValueError, match="model_output: got 3 channels, expected 6"):
        scheduler.step(x, 500, x)


def test_nan_variances_of_diffusers_are_right_here() -> None:
    """fixed_large_log is beta's standard deviation; diffusers takes the root of its logarithm."""
    x = torch.ones(SHAPE)
    samples = []
    for variance in ("fixed_large", "fixed_large_log"):
        scheduler = fuse(diffusers.DDPMScheduler(variance_type=variance))
        samples.append(scheduler.step(x, 500, x, generator=torch.Generator().manual_seed(0)).prev_sample)
    assert torch.equal(*samples)


def test_ulam_imports_without_diffusers() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None; import ulam, ulam.integrations.diffusers as bridge\n"
        "try: bridge.fuse\nexcept ImportError as error: assert \"pip install 'ulam[diffusers]'\" in str(error)\n"
        "else: raise SystemExit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
