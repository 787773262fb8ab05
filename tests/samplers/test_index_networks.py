"""Networks that are told whole training indices only, time="index": every default works, nothing is rounded unsaid."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import ulam
from gmm import Mixture
from ulam import Program, bounds, schedules, sure, tweedie
from ulam.cli import check as check_report
from ulam.denoiser import Denoiser
from ulam.programs.builder import ProgramBuilder
from ulam.samplers import DDIM, DPM2, LMS, PNDM, Euler, EulerAncestral, FlowMap, Grid, GridSampler, Heun, catalogue

pytestmark = pytest.mark.filterwarnings("ignore:x_init. got states without a seed")

SCHEDULE = schedules.vp_linear(1000)
FINE = schedules.vp_linear(100_000, 1e-6, 2e-4)  # where rounding to whole steps is small beside the steps
MIXTURE = Mixture(weights=(0.3, 0.5, 0.2), means=(-1.5, 0.4, 1.8), stds=(0.5, 0.6, 0.4))
FRACTIONAL = (Euler, EulerAncestral, Heun, LMS, DPM2)


def ideal(schedule: schedules.VariancePreserving, told: list[torch.Tensor] | None = None) -> Denoiser:
    """The ideal v network for MIXTURE, of whole training indices."""

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert t.dtype == torch.int64
        if told is not None:
            told.append(t.clone())
        alpha, sigma = schedule.levels(t.numpy()[:, None])
        return torch.from_numpy(MIXTURE.output("v", x.double().numpy(), alpha, sigma)).to(x)

    return Denoiser(net, schedule, "v", time="index")


# ----------------------------------------------------------------------------------------------- samplers


@pytest.mark.parametrize("steps", [1, 2, 20])
@pytest.mark.parametrize("name", [name for name, cls in catalogue().items() if cls is not FlowMap])  # told one time
def test_every_sampler_works_by_default(name: str, steps: int) -> None:
    sampler = catalogue()[name](steps)
    told: list[torch.Tensor] = []
    program = ideal(SCHEDULE, told).program(sampler)
    times = program.time[program.evaluates]
    assert (times % 1 == 0).all() and times[0] == sampler.grid(SCHEDULE).times[0]
    if len(program) < 200 and "known image" not in program.needs:
        ulam.sample(ideal(SCHEDULE, told), sampler, (2,), 2, progress=False, x_init=torch.zeros(2, 2))
        assert [int(t[0]) for t in told] == times.tolist()


@pytest.mark.parametrize("cls", FRACTIONAL)
def test_rounded_grids_have_the_levels_of_the_times_they_tell(cls: type[GridSampler]) -> None:
    """Each state is evaluated where the network is told it is: N(mu, 0) data come out exactly."""
    for options in ({"steps": 10}, {"steps": 7, "sigmas": "karras"}, {"steps": 7, "spacing": "log-snr"}):
        sampler = cls(**options)
        program = ideal(SCHEDULE).program(sampler)
        whole = sampler.program(SCHEDULE, "v").time.round() if cls is not DPM2 else None
        if whole is not None:
            assert program.time.tolist() == whole.tolist()
        told = program.time[program.evaluates]
        assert program.kx.shape == (len(told),)
        mu = 1.7
        x = 0.3 * float(SCHEDULE.sigma(told[0])) + mu * float(SCHEDULE.alpha(told[0]))
        registers = np.zeros(program.registers)
        registers[0] = x
        for row, t in enumerate(told):
            alpha, sigma = SCHEDULE.levels(t)
            eps = (registers[0] - alpha * mu) / sigma
            m = alpha * eps - sigma * mu
            D = program.kx[row] * registers[0] + program.km[row] * m
            new = program.A[row] @ [*registers, D, m, 0.0]
            registers = np.where(program.writes[row], new, registers)
        assert registers[0] == pytest.approx(mu, rel=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [Euler, Heun, DPM2, partial(LMS, order=2), partial(PNDM, final="zero"), partial(PNDM, skip_prk=True)],
    ids=["Euler", "Heun", "DPM2", "LMS", "PNDM", "PLMS"],
)
def test_whole_grids_keep_the_declared_order(sampler: Callable[..., GridSampler]) -> None:
    """On steps that are long beside a training step, from sigma / alpha 15 to 0.1, against the exact flow."""
    ends, errors, order = (15.0, 0.1), [], 0
    for steps in (16, 32):
        ratios = np.geomspace(*ends, steps + 1)
        times = np.rint(np.interp(np.log(ratios), np.log(FINE.ratios), np.arange(FINE.steps)))
        solver = sampler(steps, timesteps=tuple(times))
        denoiser = ideal(FINE)
        program = denoiser.program(solver)
        order = program.order
        first, last = (tuple(map(float, FINE.levels(t))) for t in times[[0, -1]])
        x = np.linspace(-2.2, 2.2, 12) * np.hypot(1.2 * first[0], first[1])
        end = ulam.sample(
            denoiser, solver, x.shape, 1, x_init=torch.from_numpy(x[None]), dtype=torch.float64, backend="reference",
            progress=False,
        )  # fmt: skip
        errors.append(float(np.sqrt(np.mean((end[0].numpy() - MIXTURE.transport(x, first, last)) ** 2))))
    assert np.log2(errors[0] / errors[1]) >= order - 0.4, errors


def test_dpm2_on_neighbouring_training_steps_evaluates_at_the_lower_one() -> None:
    sampler = DPM2(timesteps=(5, 4, 3), final=0.001)
    program = ideal(SCHEDULE).program(sampler)
    assert program.time.tolist() == [5, 4, 4, 3, 3, 0]
    assert ideal(SCHEDULE).program(DPM2(timesteps=(1, 0), final=0.001)).time.tolist() == [1, 0, 0]


def test_levels_within_rounding_of_a_training_step_are_that_step() -> None:
    sigmas = tuple(SCHEDULE.ratios[[900, 333, 7]])
    assert ideal(SCHEDULE).program(Euler(sigmas=sigmas)).time.tolist() == [900, 333, 7]
    ended = Heun(3, spacing="trailing", final="sigma_min")
    assert ideal(SCHEDULE).program(ended).time.tolist() == [999, 666, 666, 332, 332, 0]


def test_programs_for_other_networks_are_as_they_were() -> None:
    net = lambda x, t: x  # noqa: E731
    assert Denoiser(net, SCHEDULE, "v").program(Euler(7)) is Euler(7).program(SCHEDULE, "v")
    assert Denoiser(net, SCHEDULE, "v", time="index").program(DDIM(7)) is DDIM(7).index_program(SCHEDULE, "v")
    assert DDIM(7).index_program(SCHEDULE, "v") == DDIM(7).program(SCHEDULE, "v")


@dataclass(frozen=True)
class Between(GridSampler):
    """A sampler of somebody's own that evaluates half a step below its grid."""

    convention = "index"

    def on(self, grid: Grid, schedule: schedules.Schedule, predicts: str) -> Program:
        builder = ProgramBuilder(schedule, predicts)
        builder.rows(grid.times - 0.5, x={"D": 1.0})
        return builder.program(sampler=repr(self))


class Bare:
    """A sampler that is no GridSampler."""

    def program(self, schedule: schedules.Schedule, predicts: str = "eps") -> Program:
        return Euler(5).program(schedule, predicts)


BAD: dict[str, Any] = {
    "timesteps: got t = 700.5 under time='index', expected whole training steps: use 700$": DDIM(timesteps=(700.5, 3)),
    "sigmas: got t = 474.5.* under time='index', .*: use 3.007.*, the nearest level of one$": Euler(sigmas=(3.0, 1.0)),
    "churn: got 2 under time='index', expected 0": Heun(5, churn=2.0),
    "churn: got 0.5 under time='index', expected 0": Euler(5, churn=0.5),
    "final: got t = 144.* under time='index', expected whole .*use 'zero', 'sigma_min'":
        Heun(3, final=0.5, timesteps=(900, 500, 300)),
    "steps: got 200 under time='index', two of them at training step": Euler(200, spacing="log-snr"),
    "timesteps: got t = 499.5 .*use spacing='leading'": Between(timesteps=(500,)),
    "timesteps: got 749.25 under time='index', expected whole training steps$": Bare(),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_what_cannot_be_whole_is_refused_by_name(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ideal(SCHEDULE).program(BAD[message])


# ------------------------------------------------------------------------------- Tweedie, SURE and the likelihood

STD = 0.5
ALPHA, SIGMA = (torch.from_numpy(np.array(level)) for level in SCHEDULE.levels(np.arange(1000.0)))


def gaussian(time: str) -> Denoiser:
    """The ideal eps network of N(0, STD^2), of whole indices or of any time."""

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        below = t.long().clamp(max=998)
        part = (t - below)[:, None]
        ratio = (1 - part) * (SIGMA / ALPHA)[below][:, None] + part * (SIGMA / ALPHA)[below + 1][:, None]
        return ratio / torch.sqrt(1 + ratio**2) * x / ((STD**2 + ratio**2) / (1 + ratio**2))

    return Denoiser(net, SCHEDULE, "eps", time=time)


Y = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
CALLS: dict[str, Callable[[Any], Any]] = {
    "mean": lambda sigma: tweedie.mean(gaussian("index"), Y, sigma),
    "covariance": lambda sigma: tweedie.covariance_diagonal(gaussian("index"), Y, sigma),
    "third cumulant": lambda sigma: tweedie.third_cumulant(gaussian("index"), Y, sigma, Y),
    "sure": lambda sigma: sure.estimate(gaussian("index"), Y, sigma),
}


@pytest.mark.parametrize("call", CALLS)
def test_levels_between_training_steps_are_not_rounded_unsaid(call: str) -> None:
    message = (
        "sigma: got 1 under time='index', expected sigma / alpha of a training step: use 0.99951.*, that of step 258"
    )
    for sigma in (1.0, [SCHEDULE.ratios[3], 1.0, 1.0]):
        with pytest.raises(ValueError, match=message):
            CALLS[call](np.array(sigma))
    for sigma in (1e6, 1e-6):
        with pytest.raises(ValueError, match=r"sigma: got .* that of step (999|0) "):
            CALLS[call](sigma)


@pytest.mark.parametrize("step", [0, 1, 258, 500, 998, 999])
def test_levels_of_training_steps_are_exact_in_any_precision(step: int) -> None:
    level = SCHEDULE.ratios[step]
    for sigma in (level, np.float32(level), float(f"{level:.9g}"), torch.tensor(level, dtype=torch.float32)):
        exact = STD**2 * level**2 / (STD**2 + level**2)
        np.testing.assert_allclose(CALLS["covariance"](sigma), np.full((3, 4), exact), rtol=1e-6)
        np.testing.assert_allclose(CALLS["mean"](sigma), STD**2 / (STD**2 + level**2) * Y, rtol=1e-6)


def test_likelihood_takes_training_steps_and_converges() -> None:
    """Heun's method on the nearest training steps, of order 2, to the exact density at the smallest level."""
    with pytest.raises(ValueError, match="solver: got 'rk4' under time='index', expected 'heun'"):
        bounds.likelihood(gaussian("index"), Y)
    with pytest.raises(ValueError, match="solver: got 'adaptive' under time='index', expected 'heun'"):
        bounds.likelihood(gaussian("index"), Y, solver="adaptive")
    with pytest.raises(ValueError, match=r"sigma: got 0\.02 under time='index'"):
        bounds.likelihood(gaussian("index"), Y, solver="heun", sigma_min=0.02)
    std = float(np.hypot(STD, SCHEDULE.ratios[0]))
    exact = torch.distributions.Normal(0.0, std).log_prob(Y).sum(1)
    runs = [bounds.likelihood(gaussian("index"), Y, solver="heun", trace="exact", steps=n) for n in (50, 100, 200)]
    errors = [float((run.log_prob - exact).abs().max()) for run in runs]
    assert all(run.nfe <= 2 * n for run, n in zip(runs, (50, 100, 200), strict=True))
    assert errors[0] / errors[1] > 3 and errors[1] / errors[2] > 3 and errors[2] < 0.06
    loose = bounds.likelihood(gaussian("auto"), Y, trace="exact", steps=100)
    np.testing.assert_allclose(runs[2].log_prob, loose.log_prob, atol=0.06)


def test_check_measures_at_the_levels_of_training_steps() -> None:
    options = Namespace(noisy=None, sigmas=(0.05, 3.0), levels=5)
    found = check_report._sigmas(options, Namespace(denoiser=gaussian("index")))
    asked = check_report._sigmas(options, Namespace(denoiser=gaussian("auto")))
    assert len(found) == 5 and {*found} <= {*SCHEDULE.ratios.tolist()}
    np.testing.assert_allclose(found, asked, rtol=0.1)
    for sigma in found:
        CALLS["mean"](sigma)
