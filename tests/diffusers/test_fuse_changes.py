"""Fused schedulers see what changes around them: timesteps, configuration, defaults of torch, inference mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from ulam.integrations.diffusers import buffers, fuse, threads
from ulam.integrations.diffusers import scheduler as fused_scheduler
from ulam_kernels.cpu import address

X, M = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def stepped(scheduler: Any, steps: int = 4) -> torch.Tensor:
    """The sample after all timesteps of a scheduler."""
    x = X
    for t in scheduler.timesteps[:steps]:
        x = scheduler.step(M, t, x).prev_sample
    return x


def last_sigma_again(scheduler: Any) -> None:
    """As the pipelines of Cosmos 2 have it."""
    scheduler.sigmas[-1] = scheduler.sigmas[-2]


def v_prediction(scheduler: Any) -> None:
    scheduler.register_to_config(prediction_type="v_prediction")


def earlier_after_a_step(scheduler: Any) -> None:
    scheduler.step(M, scheduler.timesteps[0], X)
    scheduler.timesteps -= 100
    scheduler.timesteps.clamp_(min=0)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("FlowMatchEulerDiscreteScheduler", last_sigma_again),
        ("DDIMScheduler", v_prediction),
        ("DDIMScheduler", earlier_after_a_step),
    ],
)
def test_changes_after_set_timesteps_count(name: str, change: Callable[[Any], None]) -> None:
    theirs = getattr(diffusers, name)(**({"clip_sample": False} if name == "DDIMScheduler" else {}))
    results = []
    for scheduler in (fuse(theirs), theirs):
        scheduler.set_timesteps(4)
        change(scheduler)
        results.append(stepped(scheduler, 3))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.fixture
def torch_defaults() -> Iterator[None]:
    dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)  # with any other every call of torch goes through Python


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.device("meta")])
@pytest.mark.usefixtures("torch_defaults")
def test_defaults_of_torch_do_not_matter(default: Any) -> None:
    scheduler = fuse(diffusers.DDPMScheduler())
    scheduler.set_timesteps(4)
    timestep = scheduler.timesteps[1]

    def step() -> torch.Tensor:
        return scheduler.step(M, timestep, X, generator=torch.Generator("cpu").manual_seed(1)).prev_sample

    expected = step()
    scheduler._call_tables.clear()
    scheduler._local.calls = None
    (torch.set_default_device if isinstance(default, torch.device) else torch.set_default_dtype)(default)
    assert torch.equal(step(), expected)


SOLVERS = ("DPMSolverMultistep", "DPMSolverSinglestep", "EDMDPMSolverMultistep", "UniPCMultistep", "DEISMultistep")


@pytest.mark.parametrize("name", ["DDIM", "LCM", "PNDM", *SOLVERS])
def test_a_step_before_set_timesteps_is_refused(name: str) -> None:
    scheduler = fuse(getattr(diffusers, f"{name}Scheduler")())
    with pytest.raises(ValueError, match="timesteps: got none, expected a call of set_timesteps first"):
        scheduler.step(M, 500, X)


def test_timesteps_may_be_numbers_of_any_kind() -> None:
    scheduler = fuse(diffusers.DDIMScheduler())
    scheduler.set_timesteps(4)
    own = scheduler.timesteps[1]
    kinds = (own, own.clone(), own.int(), own.float(), own.half(), own[None], 500, np.int64(500), np.array(500))
    results = [scheduler.step(M, timestep, X).prev_sample for timestep in kinds]
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_timestep_that_cannot_be_read_is_known_by_its_address() -> None:
    """As on another device: here int32, which the native code does not read."""
    times, values = torch.tensor([900, 500, 100], dtype=torch.int32), [900.0, 500.0, 100.0]
    known = threads.Times(times, values)
    values[1] = 501.0  # what is told of the address is this, not what lies there
    assert [known.value(t) for t in (times[0], times[1], times[1].clone())] == [900.0, 501.0, 500.0]
    times[2] = 300
    assert [known.value(t) for t in (times[1], times[2])] == [500.0, 300.0], "an address tells nothing any more"
    assert known.value(times[1:]) is None, "several"


def test_timesteps_outside_of_the_training_are_named_by_the_step_that_needs_them() -> None:
    scheduler = fuse(diffusers.DDIMScheduler(steps_offset=1, timestep_spacing="leading"))
    scheduler.set_timesteps(1000)
    with pytest.raises(ValueError, match="timesteps: got 1000, expected values below num_train_timesteps=1000"):
        scheduler.step(M, scheduler.timesteps[0], X)


def test_a_changed_sample_is_noticed_beside_outputs_of_inference_mode() -> None:
    scheduler = fuse(diffusers.DDPMScheduler())
    scheduler.set_timesteps(4)
    with torch.inference_mode():
        output = M * 1
    x = X.clone()
    result = scheduler.step(output, scheduler.timesteps[0], x)
    x.zero_()
    with pytest.raises(RuntimeError, match="pred_original_sample: got model_output or sample changed"):
        _ = result.pred_original_sample


def test_tensors_that_a_mode_of_torch_made_are_not_kept() -> None:
    mine, shape = buffers.Buffers(), torch.Size((buffers.LARGE,))
    addresses: list[int | None] = []

    def inside(y: torch.Tensor) -> torch.Tensor:
        addresses.append(address(mine.empty(shape)))
        return y * 2

    torch.func.functionalize(inside)(torch.ones(1))
    assert not addresses[0], "a functional tensor has no memory"
    assert all(address(mine.empty(shape)) for _ in range(3))


def test_float64_samples_need_no_named_backend() -> None:
    """They are for checking, and the reference backend's alone: also beside float32 outputs."""
    results = []
    for backend in (None, "cuda"):
        scheduler = fuse(diffusers.DDIMScheduler(), backend=backend)
        scheduler.set_timesteps(4)
        results.append(scheduler.step(M, scheduler.timesteps[0], X.double()).prev_sample)
    assert results[0].dtype == torch.float64 and torch.equal(*results)


def test_references_are_counted_as_this_python_counts_them() -> None:
    """An array that a tensor holds is not given out, one that none holds any more is."""
    mine = buffers.Buffers()
    first = mine.empty(torch.Size((buffers.LARGE,)))
    second = mine.empty(first.shape)
    assert first.data_ptr() != second.data_ptr()
    address = first.data_ptr()
    del first
    assert mine.empty(second.shape).data_ptr() == address


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep"])
def test_an_interrupted_step_does_not_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the call goes on after Ctrl-C, its step is taken anew."""
    made = fuse(getattr(diffusers, f"{name}Scheduler")())
    made.set_timesteps(6)
    expected = stepped(made, 6)
    made.set_timesteps(6)
    whole, call, x = fused_scheduler.fast_path, fused_scheduler.Call.previous, X

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    for number, t in enumerate(made.timesteps):
        if number in (0, 3):
            with monkeypatch.context() as patch:
                patch.setattr(fused_scheduler, "fast_path", interrupted)
                patch.setattr(fused_scheduler.Call, "previous", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    made.step(M, t, x)
        x = made.step(M, t, x).prev_sample
    assert fused_scheduler.fast_path is whole and fused_scheduler.Call.previous is call
    assert torch.equal(x, expected)
