"""RePaint against diffusers by impulse response, and against exact unconditional and conditional Gaussian laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers.schedulers.scheduling_repaint as diffusers_repaint
import numpy as np
import pytest
import torch
from diffusers import RePaintScheduler

import ulam
from oracles import Array, affine_rows, in_float64
from ulam import Program, schedules
from ulam.samplers.ddim import DDIM
from ulam.samplers.repaint import RePaint
from ulam.schedules import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

MASK = np.array([0.0, 1.0])  # element 0 is painted, element 1 is known


def execute(program: Program, x: Array, outputs: Array, noises: Array, known_noises: Array, image: Array) -> Array:
    """The last state of x [..., 2] by the formulas of ulam.programs.program, one register, blending by MASK."""
    for row, A in enumerate(program.A[:, 0]):
        D = np.clip(program.kx[row] * x + program.km[row] * outputs[row], program.lo[row], program.hi[row])
        x = A[0] * x + A[1] * D + A[2] * outputs[row] + A[3] * noises[row]
        if program.blends[row]:
            known = program.known_a[row] * image + program.known_b[row] * known_noises[row]
            x = MASK * known + (1 - MASK) * x
    return x


def run_diffusers(
    scheduler: Any, x: Array, outputs: Array, noises: Array, image: Array, monkeypatch: pytest.MonkeyPatch
) -> Array:
    """The loop of diffusers' RePaintPipeline; row i uses outputs[i] or not, and noises[i]."""
    last = scheduler.timesteps[0] + 1
    state = torch.from_numpy(x)
    for row, t in enumerate(scheduler.timesteps):
        noise = torch.from_numpy(noises[row])
        monkeypatch.setattr(diffusers_repaint, "randn_tensor", lambda *_, z=noise, **__: z)
        if t < last:
            m, y, mask = torch.from_numpy(outputs[row]), torch.from_numpy(image), torch.from_numpy(MASK)
            state = scheduler.step(m, t, state, y, mask).prev_sample
        else:
            state = scheduler.undo_step(state, last)
        last = t
    return state.numpy()


def theirs(schedule: schedules.VariancePreserving, steps: int, jumps: tuple[int, int], **options: Any) -> Any:
    scheduler = RePaintScheduler(num_train_timesteps=schedule.steps, **options)
    scheduler.set_timesteps(steps, *jumps)
    scheduler.betas = torch.from_numpy(schedule.betas.copy())
    return in_float64(scheduler, schedule)


CASES = [
    (20, 20, 3, 3),
    (12, 12, 10, 10),
    (50, 50, 7, 2),
    (40, 40, 1, 2),
    (1000, 50, 10, 1),
    (1000, 7, 2, 1),
    (6, 6, 9, 5),
]


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("training", "steps", "length", "samples"), CASES)
def test_impulse_response_of_a_painted_and_a_known_element(
    training: int, steps: int, length: int, samples: int, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers draws one noise for eta and for the known part, so both get the same here."""
    schedule = schedules.vp_linear(training, beta_end=0.02 * 1000 / max(training, 100))
    scheduler = theirs(schedule, steps, (length, samples), eta=eta, clip_sample=False)
    program = RePaint(steps, length, samples, eta).program(schedule)
    rows = len(scheduler.timesteps)
    evaluated = np.diff(scheduler.timesteps.numpy(), prepend=training) < 0
    assert len(program) == rows and program.evaluates.tolist() == evaluated.tolist()
    assert program.time[evaluated].tolist() == scheduler.timesteps.numpy()[evaluated].tolist()
    assert program.nfe == steps + (samples - 1) * length * ((steps - 1) // length)

    unit = np.repeat(np.eye(2 + 2 * rows)[:, :, None], 2, axis=2)  # x_T, the image, outputs, noises
    x, image, outputs, noises = unit[0], unit[1], unit[2 : 2 + rows], unit[2 + rows :]
    mine = execute(program, x, outputs, noises, noises, image)
    expected = run_diffusers(scheduler, x, outputs, noises, image, monkeypatch)
    assert abs(mine - expected).max() <= 1e-9 * abs(expected).max()
    assert mine[:, 1].tolist() == image[:, 1].tolist()


def test_clipped_equals_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, draw = schedules.vp_cosine(20), np.random.default_rng(3)
    scheduler = theirs(schedule, 20, (4, 3), eta=0.4)
    program = RePaint(20, 4, 3, 0.4, clip=(-1, 1)).program(schedule)
    outputs, noises = draw.normal(size=(2, len(program), 5, 2))
    x, image = draw.normal(size=(2, 5, 2))
    expected = run_diffusers(scheduler, x, outputs, noises, image, monkeypatch)
    np.testing.assert_allclose(execute(program, x, outputs, noises, noises, image), expected, rtol=1e-9, atol=1e-9)


def test_the_papers_setting() -> None:
    """250 steps, jumps of 10 done 10 times: 4570 transitions [Lugmayr 2022, fig. 9]."""
    program = RePaint(250).program(schedules.vp_linear())
    assert len(program) == 4570 and program.nfe == 2410
    assert program.needs == ("noise", "known image") and not RePaint(5, 9).program(schedules.vp_linear()).needs_noise


def test_moves_back_keep_the_marginals_where_diffusers_adds_too_much_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lugmayr 2022, alg. 1, line 10 takes x_s to x_t, the level at which the network is then evaluated.

    On a grid of every k-th training step diffusers applies the betas of t to t + k - 1, not those of s + 1 to t: k - 1
    training steps too late. From the data to t = 0, with k = 4, it leaves 5 times the variance.
    """
    schedule = schedules.vp_linear()
    sampler = RePaint(250, 10, 2)
    program, grid = sampler.program(schedule), sampler.grid(schedule)
    level = np.cumsum(np.where(program.evaluates, 1, -1))  # of the state after every row
    moves = np.flatnonzero(~program.evaluates)
    before, after = level[moves - 1], level[moves]
    a, spread = program.A[moves, 0, 0], program.A[moves, 0, 3]
    np.testing.assert_allclose(a * grid.alphas[before], grid.alphas[after], rtol=1e-13)
    np.testing.assert_allclose((a * grid.sigmas[before]) ** 2 + spread**2, grid.sigmas[after] ** 2, rtol=1e-12)

    monkeypatch.setattr(diffusers_repaint, "randn_tensor", lambda *_, **__: torch.zeros(1))
    mean = theirs(schedule, 250, (10, 2)).undo_step(torch.ones(1, dtype=torch.float64), 0).item()
    assert 1 - mean**2 == pytest.approx(schedule.variances[3]) and schedule.variances[3] > 5 * schedule.variances[0]


# ------------------------------------------------------------------------------------------------ exact laws


def law_after(sampler: RePaint, schedule: Schedule, predicts: str, mean: float, std: float) -> tuple[Array, Array]:
    """(mean, variance) of the last state of an unmasked element and those of the data at the last level."""
    program, grid = sampler.program(schedule, predicts), sampler.grid(schedule)
    row = np.clip(np.searchsorted(-grid.times, -np.nan_to_num(program.time)), 0, len(grid) - 1)
    levels = tuple(np.where(program.evaluates, of[row], 1.0) for of in (grid.alphas, grid.sigmas))
    laws = np.stack([grid.alphas * mean, (grid.alphas * std) ** 2 + grid.sigmas**2], axis=1)
    law = laws[0]
    for gain, offset, noise in affine_rows(program, (levels[0], levels[1]), mean, std):
        law = np.array([gain * law[0] + offset, gain**2 * law[1] + noise**2])
    return law, laws[-1]


RATIOS = {"cosine": (60.0, 0.01), "ve": (20.0, 0.01), "flow": (50.0, 0.01)}
SCHEDULES = {"cosine": schedules.vp_cosine(1000), "ve": schedules.ve(0.01, 20), "flow": schedules.flow()}


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", SCHEDULES)
def test_unconditional_law_converges_at_order_1_whatever_the_jumps(name: str, eta: float) -> None:
    errors = []
    for steps in (40, 80, 160):
        levels = np.geomspace(*RATIOS[name], steps + 1)
        levels = levels / (1 + levels) if name == "flow" else levels
        sampler = RePaint(jump_length=5, jump_n_sample=3, eta=eta, sigmas=levels[:-1], final=float(levels[-1]))
        assert sampler.program(SCHEDULES[name]).order == 1
        law, exact = law_after(sampler, SCHEDULES[name], "eps", 0.8, 0.5)
        errors.append(abs(law - exact))
    means, variances = np.array(errors).T
    slopes = np.log2(variances[:-1] / variances[1:])
    assert (slopes > 0.7).all(), slopes
    assert (means < 1e-9).all()  # of a Gaussian, from its exact law on


def conditional_law(samples: int, correlation: float, known: float) -> tuple[float, float]:
    """Mean and variance of the painted element, data N(0, [[1, c], [c, 1]]), exactly by recursion."""
    schedule = schedules.vp_cosine(1000)
    sampler = RePaint(100, 5, samples, eta=1.0)
    program = sampler.program(schedule, "x0")
    data = np.array([[1, correlation], [correlation, 1]])
    mean, cov = np.zeros(2), np.eye(2)
    for row, (on_x, on_D, on_m, on_z) in enumerate(program.A[:, 0]):
        G = on_x * np.eye(2)
        if program.evaluates[row]:
            alpha, sigma = schedule.levels(program.time[row])
            D = alpha * data @ np.linalg.inv(alpha**2 * data + sigma**2 * np.eye(2))
            G += (on_m + on_D) * D
        mean, cov = G @ mean, G @ cov @ G.T + on_z**2 * np.eye(2)
        if program.blends[row]:
            mean[1], cov[1], cov[:, 1] = program.known_a[row] * known, 0, 0
            cov[1, 1] = program.known_b[row] ** 2
    return float(mean[0]), float(cov[0, 0])


def test_resampling_brings_the_painted_part_to_its_conditional_law() -> None:
    """Without it the painted part agrees badly with the known one [Lugmayr 2022, sec. 4.2]."""
    correlation, known = 0.8, 1.5
    laws = [conditional_law(samples, correlation, known) for samples in (1, 4, 16)]
    errors = [abs(mean - correlation * known) for mean, _ in laws]
    assert errors[0] > 0.3 and errors[1] < 0.4 * errors[0] and errors[2] < 0.3 * errors[1]
    assert abs(laws[2][1] - (1 - correlation**2)) < abs(laws[0][1] - (1 - correlation**2))


def test_the_engine_keeps_the_known_part_and_its_own_noise_for_it() -> None:
    """The painted part, where elements do not interact, is that of a run with nothing known."""
    schedule, shape = schedules.vp_linear(), (6,)
    denoiser = ulam.Denoiser(lambda x, t: torch.tanh(x), schedule)
    image, mask = torch.linspace(-1, 1, 6), torch.tensor([0.0, 1, 0, 1, 1, 0])
    runs = [
        ulam.sample(
            denoiser, RePaint(9, 3, 2, 1.0), shape, 4, known=ulam.shared(image), mask=ulam.shared(m), progress=False
        )
        for m in (mask, torch.zeros(6))
    ]
    known = mask == 1
    assert torch.equal(runs[0][:, known], image[known].expand(4, -1))
    assert torch.equal(runs[0][:, ~known], runs[1][:, ~known])


def test_without_a_known_part_or_jumps_it_is_ddim() -> None:
    for schedule in (schedules.vp_linear(), schedules.ve(0.01, 50)):
        mine, ddim = RePaint(12, 3, 1, 0.5).program(schedule), DDIM(12, eta=0.5).program(schedule)
        np.testing.assert_allclose(mine.A, ddim.A, rtol=1e-12)


@pytest.mark.parametrize("predicts", ["v", "x0", "flow"])
def test_zero_terminal_snr_and_cosine_at_few_steps(predicts: str) -> None:
    """A point keeps its marginals through every row, moves back included."""
    for schedule in (schedules.zero_terminal_snr(schedules.vp_linear()), schedules.vp_cosine(1000)):
        for steps in (2, 3, 5, 10):
            law, exact = law_after(RePaint(steps, 1, 3, 0.5, spacing="trailing"), schedule, predicts, 0.7, 0.0)
            np.testing.assert_allclose(law, exact, rtol=1e-9, atol=1e-9)


BAD: dict[str, Callable[[], object]] = {
    "jump_length: got 0, expected a whole number of at least 1": lambda: RePaint(10, 0),
    "jump_n_sample: got 1.5, expected a whole number of at least 1": lambda: RePaint(10, 2, 1.5),
    "eta: got 2, expected a number in .0, 1.": lambda: RePaint(10, eta=2),
    "clip: got 1, expected None": lambda: RePaint(10, clip=1),
    "steps: got 0, expected a whole number of at least 1": lambda: RePaint(0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_masks_and_images_broadcast_to_the_chains():
    """A mask of rows or columns alone, one for all or one a chain, is what it is when written out."""
    torch.manual_seed(0)
    image, row, column = torch.rand(3, 5, 7), torch.tensor([1.0, 0, 1, 0, 1, 0, 1]), torch.arange(5.0)[:, None] % 2
    per_chain = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    full = (2, 3, 5, 7)

    def draw(known, mask):
        sampler = RePaint(3, jump_length=1, jump_n_sample=2)
        denoiser = ulam.Denoiser(lambda x, t: torch.tanh(x), ulam.schedules.vp_linear(1000))
        return ulam.sample(denoiser, sampler, full[1:], 2, known=known, mask=mask, progress=False)

    for mask in (row, column, row.view(1, 1, 7), per_chain):
        written_out = draw(image.expand(full), mask.expand(full))
        assert torch.equal(draw(image, mask), written_out)
        if mask is not per_chain:
            assert torch.equal(draw(ulam.shared(image), ulam.shared(mask)), written_out)
    for name, known, mask in (
        ("known", image[:2], row),
        ("mask", image, row[:6]),
        ("mask", image, torch.ones(3, 1, 1, 1)),
    ):
        with pytest.raises(ValueError, match=rf"{name}: got shape .* or what broadcasts to it"):
            draw(known, mask)
