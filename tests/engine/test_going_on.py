"""Sampling that goes on where an earlier run ended: the noise of every row is that of one run."""

from __future__ import annotations

import warnings

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, net
from ulam.samplers import DDIM, DDPM, LCM, TCD, AnnealedLangevin, DPMSolverPP, EulerAncestral, PredictorCorrector

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

CHAINS = 6


def draw(sampler, schedule=SCHEDULE, **options):
    denoiser = ulam.Denoiser(net, schedule)
    return ulam.sample(denoiser, sampler, SHAPE, CHAINS, slots=4, progress=False, **options)


STOCHASTIC = [
    DDPM(steps=8),
    DDPM(steps=8, clip=(-1, 1)),
    DDIM(steps=8, eta=0.7),
    EulerAncestral(steps=8, sigmas="karras"),
    DPMSolverPP(8, order=1, sde=True),
    LCM(4),
    TCD(4),
    AnnealedLangevin(4, 2),
    PredictorCorrector(4),
]


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=str)
@pytest.mark.parametrize("cut", [1, 3, -1])
def test_a_run_cut_in_two_has_the_bits_of_one(sampler, cut):
    program = sampler.program(SCHEDULE)
    rows = len(program[:cut])
    whole = draw(sampler, seed=3)
    first = draw(program[:cut], seed=3)
    assert torch.equal(draw(program[cut:], seed=3, x_init=first, first_row=rows), whole)
    assert torch.equal(draw(program, seed=3), whole)


def test_another_beginning_of_the_noise_gives_other_bits():
    program = DDPM(steps=8).program(SCHEDULE)
    first = draw(program[:3], seed=3)
    assert not torch.equal(draw(program[3:], seed=3, x_init=first), draw(program, seed=3))


def test_the_levels_that_are_left_go_on_from_a_preview():
    """The state after a row, as a callback sees it, and a sampler for the levels below."""
    sigmas, seen = (9.0, 6.0, 4.0, 2.5, 1.6, 1.0, 0.0), {}
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, CHAINS)
    job = engine.submit(
        EulerAncestral(sigmas=sigmas), CHAINS, 3, callback=lambda preview: seen.update({preview.row: preview.x})
    )
    whole = engine.run()[job]
    rest = EulerAncestral(sigmas=sigmas[3:])
    assert torch.equal(draw(rest, seed=3, x_init=seen[2], first_row=3), whole)


def test_a_program_that_remembers_more_than_the_state_is_cut_nowhere_but_at_its_ends():
    program = DPMSolverPP(6).program(SCHEDULE)
    assert program[:] == program and len(program[:4]) == 4
    with pytest.raises(ValueError, match=r"rows: got a beginning at row 2, but row 2 reads r1 from before it"):
        program[2:]
    for rows, error in ((3, TypeError), (slice(0, 6, 2), TypeError), (slice(4, 2), ValueError)):
        with pytest.raises(error, match="rows: got "):
            program[rows]
    other = ulam.schedules.vp_cosine()
    with pytest.raises(ValueError, match=r"sampler: got a program for .*vp_linear.* expected one for .*vp_cosine"):
        draw(program, schedule=other)


def test_states_that_come_without_a_seed_are_told_that_the_noise_begins_anew():
    x = torch.randn(CHAINS, *SHAPE, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        UserWarning, match="x_init: got states without a seed, .* expected first_row= .* or another seed="
    ):
        anew = draw(DDPM(steps=3), x_init=x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(draw(DDPM(steps=3), seed=0, x_init=x), anew), "0 is the default"
        draw(DDPM(steps=3), x_init=x, first_row=4)
        draw(DDIM(steps=3), x_init=x)  # adds no noise


def test_the_callers_noise_is_asked_for_the_rows_of_one_run():
    asked = []

    def noise(row, chains):
        asked.append(row)
        return ulam.noise.normal(SHAPE, seed=0, chains=chains, row=row)

    x = torch.zeros(CHAINS, *SHAPE)
    given = draw(DDPM(steps=3), seed=0, x_init=x, first_row=7, noise=noise)
    assert set(asked) == {7, 8}
    assert torch.equal(given, draw(DDPM(steps=3), seed=0, x_init=x, first_row=7))


def test_one_first_state_for_all_chains():
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    shared = draw(DDPM(steps=3), seed=1, x_init=ulam.shared(x))
    assert torch.equal(shared, draw(DDPM(steps=3), seed=1, x_init=x.expand(CHAINS, *SHAPE)))


@pytest.mark.parametrize(
    "given, message",
    [
        ({"first_row": -1}, r"first_row: got -1, expected 0 to 2\^59 - 1"),
        ({"first_row": 1 << 60}, "first_row: got "),
        ({"first_row": 1.5}, "first_row: got 1.5, expected an integer"),
        ({"first_row": True}, "first_row: got True"),
        ({"x_init": ulam.shared(torch.zeros(CHAINS, *SHAPE))}, "x_init: got shape"),
        (
            {"x_init": ulam.shared(torch.zeros(SHAPE, dtype=torch.int64))},
            "x_init: got a tensor of torch.int64 .*, expected a float",
        ),
    ],
)
def test_what_cannot_begin_a_run_is_refused(given, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        draw(DDPM(steps=3), seed=0, **given)
    assert "\n" not in str(caught.value)
