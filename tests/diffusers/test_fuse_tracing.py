"""fuse under torch.compile: the eager bits, from the first call to the last; under tracers: refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from fuse_cases import ALL, SHAPE, begin, make, network
from ulam.integrations.diffusers import fuse

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

RUNS = [4, 6]  # steps of the loops that follow one another
DYNAMIC = ["EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler", "DDIMScheduler"]


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def calls(scheduler: Any, x: torch.Tensor, generator: Any, step: Callable[..., Any]) -> list[torch.Tensor]:
    """The sample after every call of a loop."""
    named = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    samples = []
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = step(network(scaled, t), t, x, **named, return_dict=False)[0]
        samples.append(x)
    return samples


def assert_equal(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(ours) == len(expected) and all(torch.equal(*pair) for pair in zip(ours, expected, strict=True))


@pytest.mark.parametrize(("name", "dynamic"), [*((name, None) for name in ALL), *((name, True) for name in DYNAMIC)])
def test_the_compiled_step_gives_the_eager_bits(name: str, dynamic: bool | None) -> None:
    """Through several loops, also when one begins anew without set_timesteps."""
    eager, scheduler = fuse(make(name)), fuse(make(name))
    step = torch.compile(scheduler.step, backend="eager", dynamic=dynamic)
    for steps in RUNS:
        eager.set_timesteps(steps)
        expected = calls(eager, *begin(eager), eager.step)
        scheduler.set_timesteps(steps)
        for _ in range(2):
            assert_equal(calls(scheduler, *begin(scheduler), step), expected)


@pytest.mark.long
@pytest.mark.parametrize(("name", "dynamic"), [*((name, None) for name in ALL), *((name, True) for name in DYNAMIC)])
def test_a_compiled_loop_gives_the_eager_bits(name: str, dynamic: bool | None) -> None:
    """set_timesteps, scale_model_input and step inside of what is compiled."""
    eager, scheduler = fuse(make(name)), fuse(make(name))

    def loop(x: torch.Tensor, generator: Any, steps: int) -> list[torch.Tensor]:
        scheduler.set_timesteps(steps)
        return calls(scheduler, x, generator, scheduler.step)

    compiled = torch.compile(loop, backend="eager", dynamic=dynamic)
    for steps in RUNS:
        eager.set_timesteps(steps)
        expected = calls(eager, *begin(eager), eager.step)
        assert_equal(compiled(*begin(eager), steps), expected)


def test_inductor() -> None:
    eager, scheduler = (fuse(diffusers.EulerAncestralDiscreteScheduler()) for _ in range(2))
    for each in (eager, scheduler):
        each.set_timesteps(4)
    assert_equal(
        calls(scheduler, *begin(scheduler), torch.compile(scheduler.step)), calls(eager, *begin(eager), eager.step)
    )


def test_compiled_correctors_and_predictors() -> None:
    results = []
    for compiles in (False, True):
        scheduler = fuse(diffusers.ScoreSdeVeScheduler(), noise="noise-v1")
        scheduler.set_timesteps(6)
        scheduler.set_sigmas(6)
        methods = [scheduler.step_correct, scheduler.step_pred]
        correct, predict = (torch.compile(m, backend="eager") if compiles else m for m in methods)
        x, _ = begin(scheduler)
        for t in scheduler.timesteps:
            x = correct(-x, x).prev_sample
            x = predict(-x, t, x).prev_sample
        results.append(x)
    assert torch.equal(*results)


def test_compiled_plms() -> None:
    results = []
    for compiles in (False, True):
        scheduler = fuse(diffusers.PNDMScheduler())
        scheduler.set_timesteps(5)
        x, _ = begin(scheduler)
        prk, plms = (torch.compile(m) if compiles else m for m in (scheduler.step_prk, scheduler.step_plms))
        for i, t in enumerate(scheduler.timesteps):
            x = (prk if i < 12 else plms)(network(x, t), t, x).prev_sample
        results.append(x)
    assert torch.equal(*results)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "ScoreSdeVeScheduler"])
def test_a_full_graph_is_refused_with_the_way_out(name: str) -> None:
    scheduler = fuse(make(name))
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    step = scheduler.step if hasattr(scheduler, "step") else scheduler.step_pred
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True"):
        torch.compile(step, backend="eager", fullgraph=True)(x, scheduler.timesteps[0], x)


TRACERS: dict[str, Callable[[Callable[..., Any], torch.Tensor], Any]] = {
    "torch.jit.trace": lambda f, x: torch.jit.trace(f, x, check_trace=False),
    "make_fx": lambda f, x: make_fx(f)(x),
    "make_fx or torch.export": lambda f, x: make_fx(f, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x),
    "a transform of torch.func": lambda f, x: torch.vmap(f)(x[None]),
    "a transform": lambda f, x: torch.func.functionalize(f)(x),
}


@pytest.mark.parametrize("name", [*ALL, "ScoreSdeVeScheduler"])
@pytest.mark.parametrize("by", TRACERS)
def test_tracers_are_refused_and_leave_nothing_behind(name: str, by: str) -> None:
    """One that recorded a call would play back its coefficients, or memory that nothing was written to."""
    scheduler, fresh = fuse(make(name)), fuse(make(name))
    for each in (scheduler, fresh):
        each.set_timesteps(5)
    t, (x, _) = float(scheduler.timesteps[0]), begin(scheduler)
    methods = [m for m in ("scale_model_input", "step", "step_pred") if hasattr(type(scheduler), m)]

    def called(method: str, scheduler: Any = scheduler) -> Callable[[torch.Tensor], torch.Tensor]:
        if method == "scale_model_input":
            return lambda x: scheduler.scale_model_input(x, t)
        return lambda x: getattr(scheduler, method)(network(x, t), t, x, return_dict=False)[0]

    for method in methods:
        if "ulam" in getattr(type(scheduler), method).__module__:
            with pytest.raises(RuntimeError, match=rf"^{method}: got a call under {by}[^\n]*$"):
                TRACERS[by](called(method), x)
    results = []
    for each in (scheduler, fresh):
        torch.manual_seed(0)
        results.append(called(methods[-1], each)(x))
    assert torch.equal(*results)


def test_tensors_without_memory_are_refused() -> None:
    scheduler = fuse(diffusers.DDIMScheduler())
    scheduler.set_timesteps(4)
    x, _ = begin(scheduler)
    for name in ("FakeTensor", "Tensor"):
        empty = FakeTensorMode().from_tensor(x) if name == "FakeTensor" else x.to("meta")
        with pytest.raises(RuntimeError, match=f"sample: got a {name} without memory"):
            scheduler.step(empty, 500, empty)
        with pytest.raises(RuntimeError, match=f"model_output: got a {name} without memory"):
            scheduler.step(empty, 500, x)


def test_modes_that_only_look_on_change_nothing() -> None:
    scheduler = fuse(diffusers.EulerDiscreteScheduler())
    scheduler.set_timesteps(4)
    expected = calls(scheduler, *begin(scheduler), scheduler.step)
    with FlopCounterMode(display=False):
        scheduler.set_timesteps(4)
        ours = calls(scheduler, *begin(scheduler), scheduler.step)
    assert_equal(ours, expected)
    assert ours[0].shape == SHAPE
