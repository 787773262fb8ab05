"""Jobs that are asked for again and again: the same as those with all checks, and no argument's change is missed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import nn

import ulam
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
        engine.submit(**with_it)  # type: ignore[arg-type]
    assert len(checked) == 2
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
