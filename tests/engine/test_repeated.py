"""Jobs that are asked for again and again: the same as those with all checks, and no argument's change is missed."""

from __future__ import annotations

import gc
import inspect
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import ulam
from ulam.chain_kernel.compiled import CompiledChain
from ulam.engine import repeated
from ulam.samplers import DDIM, DDPM, PredictorCorrector

SCHEDULE = ulam.schedules.vp_linear()


class Net(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.1 * x


DENOISER = ulam.Denoiser(Net(), SCHEDULE)
PROGRAM = DENOISER.program(DDPM(3, spacing="trailing"))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The samplers of jobs that were made with all checks."""
    seen: list[Any] = []
    made = repeated.job_of

    def noted(denoiser: Any, shape: Any, sampler: Any, *given: Any, **named: Any) -> Any:
        seen.append(sampler)
        return made(denoiser, shape, sampler, *given, **named)

    monkeypatch.setattr(repeated, "job_of", noted)
    return seen


@pytest.mark.parametrize("chain_kernel", ["off", "on"])
def test_the_same_job_again(chain_kernel: str, checked: list[Any]) -> None:
    engine = ulam.Engine(DENOISER, (4,), 8, chain_kernel=chain_kernel)
    jobs = [engine.submit(PROGRAM, 5, 3) for _ in range(3)]
    assert len(set(jobs)) == 3 and len(checked) == 1
    results = list(engine.run().values())
    assert len(results) == 3
    for x in results:
        assert torch.equal(x, ulam.sample(DENOISER, PROGRAM, (4,), 5, 3, slots=8, chain_kernel=chain_kernel))
    assert len({job.chains.data_ptr() for job in jobs}) == 3
    jobs[0].ids.append(0)
    jobs[0].chains.zero_()
    again = engine.submit(PROGRAM, 5, 3)
    assert again.ids == [0, 1, 2, 3, 4] == jobs[1].ids and len(checked) == 1


CHANGES: dict[str, Any] = {
    "sampler": DENOISER.program(DDIM(4)),
    "chains": 6,
    "seed": 4,
    "guidance_rescale": 0.5,
    "first_row": 1,
    "x_init": torch.zeros(5, 4),
    "callback": lambda preview: None,
    "priority": 2,
    "deadline": 9.0,
    "every": 2,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_argument_is_another_job(name: str, checked: list[Any]) -> None:
    engine = ulam.Engine(DENOISER, (4,), 8)
    given = {"sampler": PROGRAM, "chains": 5, "seed": 3}
    first = engine.submit(**given)  # type: ignore[arg-type]
    with_it = {**given, name: CHANGES[name]}
    if name == "guidance_rescale":
        with pytest.raises(ValueError, match="guidance"):
            engine.submit(**with_it)  # type: ignore[arg-type]
    else:
        assert engine.submit(**with_it).seed == with_it["seed"]  # type: ignore[arg-type]
    assert len(checked) == (1 if name == "seed" else 2)
    assert engine.submit(**given).seed == first.seed == 3  # type: ignore[arg-type]
    engine.run()


def test_every_argument_is_looked_at() -> None:
    """What `submit` takes goes to the job, or is read each time."""
    taken = set(inspect.signature(ulam.Engine.submit).parameters) - {"self", "weight", "block"}
    assert taken <= set(inspect.signature(repeated.job_of).parameters)


def test_values_that_can_change_are_checked_each_time(checked: list[Any]) -> None:
    engine, chains = ulam.Engine(DENOISER, (4,), 8), [0, 1]
    engine.submit(PROGRAM, chains, 3)
    chains.append(1)
    with pytest.raises(ValueError, match="twice"):
        engine.submit(PROGRAM, chains, 3)
    sampler = DDPM(3, spacing="trailing")
    for _ in range(2):
        engine.submit(sampler, 1, 3)
    assert len(checked) == 4


def test_a_warning_comes_each_time() -> None:
    program = DENOISER.program(PredictorCorrector(2, norms="chain"))
    engine = ulam.Engine(DENOISER, (4,), 8)
    for _ in range(2):
        with pytest.warns(UserWarning, match="norms"):
            engine.submit(program, 1, 3)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(4, 4), 0.1

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x) * self.scale


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The samplers of calls of `ulam.sample` that went through all checks."""
    seen: list[Any] = []
    names = inspect.unwrap(ulam.sample).__globals__
    made = names["job_of"]

    def noted(denoiser: Any, shape: Any, sampler: Any, *given: Any, **named: Any) -> Any:
        seen.append(sampler)
        return made(denoiser, shape, sampler, *given, **named)

    monkeypatch.setitem(names, "job_of", noted)
    return seen


def alike(denoiser: ulam.Denoiser, shape: Any = (4,), chains: Any = 5, seed: Any = 3, **more: Any) -> torch.Tensor:
    """A sample in one kernel, after it has been held against an engine's of a copy of the network."""
    program = more.pop("program", PROGRAM)
    out = ulam.sample(denoiser, program, shape, chains, seed, chain_kernel="on", progress=False, **more)
    other = Linear()
    other.load_state_dict(denoiser.net.state_dict())  # type: ignore[attr-defined]
    other.scale = denoiser.net.scale  # type: ignore[attr-defined]
    engine = ulam.Engine(ulam.Denoiser(other, SCHEDULE), shape, 64, chain_kernel="on")
    job = engine.submit(program, chains, seed, **more)
    assert torch.equal(out, engine.run()[job])
    return out


def test_the_same_sample_again(sampled: list[Any]) -> None:
    denoiser = ulam.Denoiser(Linear(), SCHEDULE)
    outs = [alike(denoiser, seed=seed) for seed in (3, 3, 4, 1 << 62)]
    assert len(sampled) == 1
    assert torch.equal(outs[0], outs[1]) and len({out.data_ptr() for out in outs}) == 4
    assert len({float(out.sum()) for out in outs}) == 3
    assert torch.equal(alike(denoiser, seed=None), alike(denoiser, seed=0)) and len(sampled) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"chains": 6},
        {"chains": range(2, 7)},
        {"first_row": 1},
        {"program": PROGRAM[:2]},
        {"x_init": torch.ones(5, 4)},
        {"seed": (1 << 63) + 1},
        {"seed": -1},
    ],
)
def test_another_sample_is_checked(change: dict[str, Any], sampled: list[Any]) -> None:
    denoiser = ulam.Denoiser(Linear(), SCHEDULE)
    first = alike(denoiser)
    alike(denoiser, **change)
    assert len(sampled) == 2
    assert torch.equal(alike(denoiser), first)


@pytest.mark.parametrize("seed", [3.0, True, "3", 1 << 64])
def test_a_wrong_seed_is_refused_each_time(seed: Any) -> None:
    denoiser = ulam.Denoiser(Linear(), SCHEDULE)
    alike(denoiser)
    with pytest.raises((TypeError, ValueError), match="seed"):
        ulam.sample(denoiser, PROGRAM, (4,), 5, seed, chain_kernel="on")


@pytest.mark.parametrize("shape", [(4.0,), (True, 4), (5,), "4", None, [4.5], (2, 2)])
def test_another_shape_is_checked(shape: Any) -> None:
    denoiser = ulam.Denoiser(Linear(), SCHEDULE)
    alike(denoiser)
    with pytest.raises((TypeError, ValueError)):
        ulam.sample(denoiser, PROGRAM, shape, 5, 3, chain_kernel="on")


def test_a_network_that_changes_is_read_again(sampled: list[Any]) -> None:
    net = Linear()
    denoiser = ulam.Denoiser(net, SCHEDULE)
    seen = [alike(denoiser)]
    net.layer.weight.data[0, 0] += 1
    seen.append(alike(denoiser))
    net.scale = 0.3
    seen.append(alike(denoiser))
    net.layer = nn.Linear(4, 4)
    seen.append(alike(denoiser))
    assert len({float(x.sum()) for x in seen}) == 4
    before = len(sampled)
    alike(denoiser)
    assert len(sampled) == before == 4


def test_a_network_that_no_longer_fits(sampled: list[Any]) -> None:
    net = Linear()
    denoiser = ulam.Denoiser(net, SCHEDULE)
    for _ in range(2):
        ulam.sample(denoiser, PROGRAM, (4,), 5, 3, chain_kernel="auto", progress=False)
    net.layer.register_forward_hook(lambda module, given, out: out.sort().values)
    off = ulam.sample(denoiser, PROGRAM, (4,), 5, 3, progress=False)
    assert torch.equal(ulam.sample(denoiser, PROGRAM, (4,), 5, 3, chain_kernel="auto", progress=False), off)
    with pytest.raises(TypeError, match="net: got sort"):
        ulam.sample(denoiser, PROGRAM, (4,), 5, 3, chain_kernel="on", progress=False)


def test_what_is_around_a_sample_counts(sampled: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = ulam.Denoiser(Linear(), SCHEDULE)

    def run() -> torch.Tensor:
        return ulam.sample(denoiser, PROGRAM, (4,), 5, 3, chain_kernel="on", progress=False)

    x = run()
    with torch.autocast("cpu"), pytest.raises(ValueError, match="autocast"):
        run()
    monkeypatch.setenv("ULAM_BACKEND", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        run()
    monkeypatch.setenv("ULAM_BACKEND", "reference")
    assert torch.allclose(run(), x, atol=1e-5)
    assert len(sampled) == 2


def test_a_call_is_forgotten_with_its_network() -> None:
    net = Linear()
    kept = weakref.ref(net)
    alike(ulam.Denoiser(net, SCHEDULE))
    del net
    gc.collect()
    assert kept() is None


def test_refreshing_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call like the last compares the weights once."""
    denoiser, counts = ulam.Denoiser(Linear(), SCHEDULE), [0]
    refresh = CompiledChain.refresh
    alike(denoiser)

    def counted(self: CompiledChain, wait: bool = True) -> bool:
        counts[0] += 1
        return refresh(self, wait)

    monkeypatch.setattr(CompiledChain, "refresh", counted)
    ulam.sample(denoiser, PROGRAM, (4,), 5, 3, chain_kernel="on", progress=False)
    assert counts == [1]
