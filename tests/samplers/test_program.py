"""Programs as data (validation, equality, JSON, printing, packing) and the compiler of rows."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from oracles import execute
from ulam import Denoiser, Program, schedules
from ulam.programs.builder import ProgramBuilder
from ulam.programs.clip import DynamicThreshold
from ulam.programs.predictions import PREDICTIONS, combine, eps_coefficients, x0_coefficients
from ulam.samplers import DDIM, DDPM

SCHEDULE = schedules.vp_linear(100)
PROGRAMS = {
    "ddpm": DDPM(10).program(SCHEDULE),
    "clip": DDPM(10, clip=(-1, 1)).program(SCHEDULE, "v"),
    "learned": DDPM(10, variance="learned_range").program(SCHEDULE),
    "ddim": DDIM(7, eta=0.3, clip=(-2, math.inf)).program(SCHEDULE, "x0"),
    "raw": DDIM(6).program(schedules.edm(), "raw"),
}


def with_move() -> Program:
    builder = ProgramBuilder(schedules.edm(), "raw", registers=2)
    builder.moves(x={"x": 1.0, "z": 0.25})
    builder.rows(3.0, x={"x": 0.5, "r1": -0.25, "D": 0.75}, r1={"D": 1.0})
    builder.moves(r1={"r1": 2.0})
    builder.rows([1.0, 0.5], x={"D": [0.5, 1.0], "r1": 0.125})
    return builder.program("test", order=2)


def with_everything() -> Program:
    """A row of every kind that has columns of its own, and all of a run's needs."""
    builder = ProgramBuilder(SCHEDULE, "v", registers=2, clip=DynamicThreshold(0.9, 2.0))
    builder.rows([80.0, 60.0], x={"D": [0.5, 0.75], "eps": 0.25}, r1={"D": 1.0}, known=([0.3, 0.6], 0.1))
    builder.rows(60.0, x={"x": 1.0, "D": 0.125, "z": 0.5}, normalise=True)
    builder.rows(40.0, x={"r1": 1.0, "z": 0.125}, log_scale=(0.5, -1.0))
    builder.moves(x={"x": 0.5, "z": 0.5}, known=(0.7, 0.2))
    builder.rows(20.0, x={"D": 1.0})
    return builder.program("test", order=1)


PROGRAMS["move"] = with_move()
PROGRAMS["everything"] = with_everything()


def changed(**fields: Any) -> Program:
    return dataclasses.replace(PROGRAMS["ddpm"], **fields)


@pytest.mark.parametrize("name", PROGRAMS)
def test_json_round_trip_is_exact(name: str) -> None:
    program = PROGRAMS[name]
    again = Program.from_json(program.to_json())
    assert again == program and hash(again) == hash(program) and again.to_json() == program.to_json()
    for field in dataclasses.fields(Program):
        value = getattr(again, field.name)
        np.testing.assert_array_equal(value, getattr(program, field.name))
        assert not isinstance(value, np.ndarray) or value.dtype == getattr(program, field.name).dtype
    json.loads(program.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_equality_sees_the_last_bit_and_every_field() -> None:
    program = PROGRAMS["ddpm"]
    A = program.A.copy()
    assert changed(A=A) == program
    A[4, 0, 0] = np.nextafter(A[4, 0, 0], 2)
    assert changed(A=A) != program
    assert changed(order=2) != program and changed(predicts="v") != program and program != "ddpm"
    assert changed(lv_m=-program.lv_m) == program  # -0.0 is 0.0
    assert len(set(PROGRAMS.values()) | {changed()}) == len(PROGRAMS)


def test_programs_are_immutable_and_do_not_alias_their_input() -> None:
    kx = PROGRAMS["ddpm"].kx.copy()
    program = changed(kx=kx)
    kx[0] = 7
    assert program == PROGRAMS["ddpm"]
    with pytest.raises(ValueError, match="read-only"):
        program.A[0, 0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        program.order = 3  # type: ignore[misc]


def test_counts() -> None:
    assert (len(PROGRAMS["move"]), PROGRAMS["move"].nfe, PROGRAMS["move"].needs_noise) == (5, 3, True)
    assert (len(PROGRAMS["raw"]), PROGRAMS["raw"].nfe, PROGRAMS["raw"].needs_noise) == (6, 6, False)


def test_needs_are_what_rows_use() -> None:
    needs = {name: program.needs for name, program in PROGRAMS.items()}
    assert needs == {
        "ddpm": ("noise",),
        "clip": ("noise",),
        "learned": ("noise",),
        "ddim": ("noise",),
        "raw": (),
        "move": ("noise", "registers"),
        "everything": ("noise", "registers", "reductions", "known image"),
    }
    everything = PROGRAMS["everything"]
    assert everything.threshold.tolist() == [True, True, False, False, False, True]  # row 3 has no D
    assert everything.normalise.tolist() == [False, False, True, False, False, False]
    assert everything.learned.tolist() == [False, False, False, True, False, False]
    assert everything.blends.tolist() == [True, True, False, False, True, False]
    assert everything.lo.tolist() == [0.9, 0.9, -math.inf, -math.inf, -math.inf, 0.9]
    assert everything.hi.tolist() == [2, 2, math.inf, math.inf, math.inf, 2]
    assert everything.known_a.tolist() == [0.3, 0.6, 0, 0, 0.7, 0]
    assert everything.evaluating == [0, 1, 2, 3, 5] and everything.needs_reductions and everything.needs_noise


def test_normalised_rows_hold_the_score() -> None:
    """D is s = -eps / sigma: x + a (|z| / |s|)^2 s + b (|z| / |s|) z [Song 2021b, alg. 4]."""
    for predicts in ("eps", "x0", "v", "score", "flow"):
        builder = ProgramBuilder(SCHEDULE, predicts)
        builder.rows(60.0, x={"x": 1.0, "D": 0.3, "z": 0.2}, normalise=True)
        program, draw = builder.program("test"), np.random.default_rng(4)
        alpha, sigma = SCHEDULE.levels(60.0)
        x0, eps, z = draw.normal(size=(3, 5))
        m = truth(predicts, alpha, sigma, x0, eps)
        got = execute(program, alpha * x0 + sigma * eps, lambda *_, m=m: m, lambda _, z=z: z)[0]
        score = -eps / sigma
        ratio = np.linalg.norm(z) / np.linalg.norm(score)
        expected = alpha * x0 + sigma * eps + 0.3 * ratio**2 * score + 0.2 * ratio * z
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("name", PROGRAMS)
def test_rescaled_runs_on_the_state_in_other_units(name: str) -> None:
    """Fed the same outputs, the program on y = x / scale passes through x / scale; the network reads what it read."""
    program, draw = PROGRAMS[name], np.random.default_rng(5)
    n, scale = len(program), draw.uniform(0.2, 5, len(program) + 1)
    scaled = program.rescaled(scale)
    channels = 6 if program.learned.any() else 3
    x, outputs, noise = draw.normal(size=(3, 2)), draw.normal(size=(n, channels, 2)), draw.normal(size=(n, 3, 2))
    reads: list[list[np.ndarray]] = [[], []]
    states = []
    for i, (one, start) in enumerate(((program, x), (scaled, x / scale[0]))):

        def output(row: int, net_in: np.ndarray, i: int = i) -> np.ndarray:
            reads[i].append(net_in)
            return outputs[row]

        states.append(execute(one, start, output, lambda row: noise[row]))
    np.testing.assert_allclose(states[1] * scale[1:, None, None], states[0], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(reads[1], reads[0], rtol=1e-11, atol=1e-12)
    assert scaled.init_scale * scale[0] == pytest.approx(program.init_scale, rel=1e-15)
    np.testing.assert_allclose(scaled.known_a * scale[1:], program.known_a, rtol=1e-15)
    np.testing.assert_allclose(scaled.known_b * scale[1:], program.known_b, rtol=1e-15)
    assert program.rescaled(np.ones(n + 1)) == program
    assert program.rescaled(np.full(n + 1, 2.0)).rescaled(np.full(n + 1, 0.5)) == program


@pytest.mark.parametrize("scale", [np.ones(10), np.r_[0.0, np.ones(10)], np.r_[np.ones(10), np.inf], np.ones((11, 1))])
def test_rescaled_refuses_scales_that_are_none(scale: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"scale: got shape .*, expected \[11\] numbers above 0"):
        PROGRAMS["ddpm"].rescaled(scale)


def test_printed_table_states_every_term() -> None:
    text = str(PROGRAMS["move"])
    assert "x <- +1 x +0.25 z" in text and "r1 <- +2 r1" in text
    assert "x <- +0.5 x -0.25 r1 +0.75 D; r1 <- +1 D" in text
    clip = str(PROGRAMS["clip"]).splitlines()
    assert len(clip) == 3 + 10 and "D = clip(" in clip[3] and clip[3].split()[:2] == ["0", "90"]
    assert clip[-1].endswith(", -1, 1); x <- +1 D")
    everything = str(PROGRAMS["everything"])
    assert "D = threshold(" in everything and ", 0.9, 2)" in everything and "g = (|z| / |D|)^2" in everything
    assert "x <- mask (+0.7 y +0.2 z') + (1 - mask) x" in everything and "exp(+0.5 v -1) z" in everything
    assert "exp(" in str(PROGRAMS["learned"]) and "rows 10, nfe 10" in repr(PROGRAMS["learned"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kx": np.full(10, np.nan)}, "kx: got nan at row 0, expected finite"),
        ({"c_in": np.r_[np.ones(9), np.inf]}, "c_in: got inf at row 9, expected finite"),
        ({"lo": np.full(10, np.nan)}, "lo: got nan at row 0, expected a number"),
        ({"lo": np.ones(10), "hi": np.zeros(10)}, "lo, hi: got 1.0 and 0.0 at row 0, expected lo <= hi"),
        ({"time": np.full(10, np.nan)}, "time: got nan at row 0, expected finite just where the row evaluates"),
        ({"evaluates": np.arange(10) != 3, "time": np.where(np.arange(10) == 3, np.nan, 1.0)},
         "A: got a D or m term at row 3, expected none where the network is not evaluated"),
        ({"km": np.ones(9)}, r"km: got shape \[9\], expected \[10\]"),
        ({"A": np.ones((10, 1, 3))}, r"A: got shape \[10, 1, 3\], expected \[10, 1, 4\]"),
        ({"known_b": np.full(10, np.nan)}, "known_b: got nan at row 0, expected finite"),
        ({"threshold": np.ones(9)}, r"threshold: got shape \[9\], expected \[10\]"),
        ({"threshold": np.arange(10) == 4},
         "lo, hi: got -inf and inf at row 4, expected a quantile in .* and at least 1 on threshold rows"),
        ({"threshold": np.ones(10), "lo": np.ones(10), "hi": np.full(10, 1.5), "normalise": np.arange(10) == 7},
         "threshold, normalise: got both at row 7"),
        ({"init_scale": math.nan}, "init_scale: got nan, expected a finite number above 0"),
        ({"init_scale": 0.0}, "init_scale: got 0.0, expected a finite number above 0"),
        ({"registers": 6}, "registers: got 6, expected 1 to 5"),
    ],
)  # fmt: skip
def test_bad_programs_name_field_and_row(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(**fields)


def test_bad_coefficient_names_register_term_and_row() -> None:
    A = PROGRAMS["move"].A.copy()
    A[3, 1, 2] = np.inf
    with pytest.raises(ValueError, match=r"A\[r1, D\]: got inf at row 3, expected finite numbers"):
        dataclasses.replace(PROGRAMS["move"], A=A)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text[:40], "expected JSON"),
        (lambda text: "[1, 2]", "format 'ulam-program-2'"),
        (lambda text: text.replace("ulam-program-2", "other"), "format 'ulam-program-2'"),
        (lambda text: text.replace('"order"', '"ordre"'), "other fields .*order"),
        (lambda text: text.replace('"registers": 1', '"registers": "1"'), "registers = '1', expected int"),
        (lambda text: text.replace('"registers": 1', '"registers": true'), "registers = True, expected int"),
        (lambda text: text.replace('"order": 1', '"order": 1.0'), "order = 1.0, expected int"),
        (lambda text: text.replace('"order": 1', '"order": 1, "order": 2'), "the key 'order' twice"),
        (
            lambda text: text.replace('"evaluates": [true', '"evaluates": ["False"'),
            "'False' in evaluates, expected true",
        ),
        (lambda text: text.replace('"evaluates": [true', '"evaluates": [1'), "1 in evaluates, expected true"),
        (lambda text: text.replace('"init_scale": 1.0', '"init_scale": true'), "True in init_scale, expected numbers"),
        (lambda text: text.replace('"init_scale": 1.0', '"init_scale": "1"'), "'1' in init_scale, expected numbers"),
        (lambda text: text.replace('"init_scale": 1.0', '"init_scale": NaN'), "the number NaN"),
        (lambda text: text.replace('"init_scale": 1.0', f'"init_scale": 1{"0" * 400}'), "a number of 401 digits"),
        (lambda text: text.replace('"init_scale": 1.0', f'"init_scale": {"[" * 10000}'), "nested too deep"),
        (lambda text: text.replace('"kx": [', '"kx": [[1], '), "lists of different lengths in kx"),
    ],
)
def test_from_json_refuses_what_to_json_never_wrote(edit: Any, message: str) -> None:
    text = PROGRAMS["ddpm"].to_json()
    assert edit(text) != text
    with pytest.raises(ValueError, match=f"text: got .*{message}") as caught:
        Program.from_json(edit(text))
    assert "\n" not in str(caught.value)


def test_from_json_refuses_an_order_below_zero() -> None:
    with pytest.raises(ValueError, match="order: got -5, expected at least 0"):
        Program.from_json(PROGRAMS["ddpm"].to_json().replace('"order": 1', '"order": -5'))


# --------------------------------------------------------------------------------------------- predictions


def truth(predicts: str, alpha: np.ndarray, sigma: np.ndarray, x0: np.ndarray, eps: np.ndarray) -> np.ndarray:
    """What a perfect network returns, by definition."""
    x = alpha * x0 + sigma * eps
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / np.sqrt(sigma**2 + 0.25)
    v = alpha * eps - sigma * x0
    return {
        "eps": eps,
        "x0": x0,
        "v": v,
        "score": -eps / sigma,
        "flow": eps - x0,
        "raw": (x0 - c_skip * x) / c_out,
    }[predicts]


@pytest.mark.parametrize("predicts", [name for name in PREDICTIONS if name != "mean"])  # see test_mean_networks
def test_predictions_recover_x0_and_eps(predicts: str) -> None:
    draw = np.random.default_rng(1)
    sigma = draw.uniform(0.01, 3, 50)
    alpha = np.ones(50) if predicts == "raw" else draw.uniform(0.05, 1, 50)
    x0, eps = draw.normal(size=(2, 50))
    x, m = alpha * x0 + sigma * eps, truth(predicts, alpha, sigma, x0, eps)
    schedule = schedules.edm() if predicts == "raw" else None
    kx, km, c_in = x0_coefficients(predicts, alpha, sigma, schedule)
    ex, em = eps_coefficients(predicts, alpha, sigma, schedule)
    np.testing.assert_allclose(kx * x + km * m, x0, atol=1e-12 * 60)
    np.testing.assert_allclose(ex * x + em * m, eps, atol=1e-12 * 60)
    np.testing.assert_allclose(c_in, 1 / np.sqrt(sigma**2 + 0.25) if predicts == "raw" else 1)
    on_x, on_m = combine(predicts, alpha, sigma, schedule, D=alpha, eps=sigma)
    np.testing.assert_allclose(on_x * x + on_m * m, x, atol=1e-11)


def test_undefined_predictions_raise() -> None:
    for predicts in ("eps", "score"):
        with pytest.raises(
            ValueError, match=f"predicts: got '{predicts}', which says nothing about x_0 where alpha is 0"
        ):
            x0_coefficients(predicts, np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="predicts: got 'x0', which says nothing about eps where sigma is 0"):
        eps_coefficients("x0", np.array([1.0]), np.array([0.0]))
    with pytest.raises(ValueError, match=r"predicts: got 'raw' .* where alpha is not 1"):
        x0_coefficients("raw", np.array([0.5]), np.array([0.5]), schedules.edm())
    with pytest.raises(ValueError, match="predicts: got 'noise', expected one of eps, x0, v, score, flow, raw, mean"):
        x0_coefficients("noise", np.array([0.5]), np.array([0.5]))


# ------------------------------------------------------------------------------------------------ compiler


@pytest.mark.parametrize("predicts", ["eps", "x0", "v", "score", "flow"])
@pytest.mark.parametrize("sampler", [DDPM(), DDIM(50), DDIM(50, eta=1.0)])
def test_folded_rows_equal_unfolded_ones(predicts: str, sampler: DDPM | DDIM) -> None:
    """An infinite clip keeps D in the row; the same sampler without a clip folds it into x and m."""
    folded = sampler.program(schedules.vp_cosine(200), predicts)
    unfolded = dataclasses.replace(sampler, clip=(-math.inf, math.inf)).program(schedules.vp_cosine(200), predicts)
    assert not folded.A[:, 0, 1].any() and unfolded.A[:, 0, 1].all()
    on_D = unfolded.A[:, 0, 1]
    x_terms = np.stack([unfolded.A[:, 0, 0], on_D * unfolded.kx])
    m_terms = np.stack([unfolded.A[:, 0, 2], on_D * unfolded.km])
    for column, terms in ((0, x_terms), (2, m_terms)):
        assert (abs(folded.A[:, 0, column] - terms.sum(0)) <= 1e-12 * abs(terms).sum(0)).all()
    np.testing.assert_array_equal(folded.A[:, 0, 3], unfolded.A[:, 0, 3])


def test_history_keeps_D_and_a_clip_keeps_the_networks_own_eps() -> None:
    program = with_move()
    assert program.A[1, :, 2].tolist() == [0.75, 1.0] and program.A[3:, 0, 2].tolist() == [0, 0]
    clipped = DDIM(4, clip=(-1, 1)).program(SCHEDULE)
    assert (clipped.A[:-1, 0, 2] > 0).all() and not clipped.A[:, 0, 0].any()


def test_builder_refuses_unknown_registers_and_terms() -> None:
    builder = ProgramBuilder(SCHEDULE, "eps")
    with pytest.raises(ValueError, match="updates: got unknown register 'r1', expected one of x"):
        builder.rows(3.0, r1={"D": 1.0})
    with pytest.raises(ValueError, match="x: got unknown term 'y', expected one of x, D, m, z, eps"):
        builder.rows(3.0, x={"y": 1.0})
    with pytest.raises(ValueError, match="x: got unknown term 'eps'"):
        builder.moves(x={"eps": 1.0})


@pytest.mark.parametrize("name", PROGRAMS)
def test_packed_table_executes_as_the_program(name: str) -> None:
    """The reference backend, in float64, on the packed table against the Program's own formula."""
    program, draw = PROGRAMS[name], np.random.default_rng(3)
    shape = (2, 3)
    x, noise = draw.normal(size=shape) * program.init_scale, draw.normal(size=(len(program), *shape))
    outputs = draw.normal(size=(len(program), 2 * shape[0] if program.learned.any() else shape[0], *shape[1:]))
    inputs: dict[int, np.ndarray] = {}

    def output(row: int, net_in: np.ndarray) -> np.ndarray:
        inputs[row] = net_in
        return outputs[row]

    expected = execute(program, x, output, lambda row: noise[row])
    table = program.table(dtype=torch.float64)
    state = torch.zeros(program.registers, 1, *shape, dtype=torch.float64)
    state[0, 0] = torch.from_numpy(x)
    for row in range(len(program)):
        net_in = torch.full((1, *shape), math.nan, dtype=torch.float32)
        given = {"model": torch.from_numpy(outputs[row])[None], "noise": torch.from_numpy(noise[row])[None]}
        scales = torch.empty(1, 4, dtype=torch.float64) if program.needs_reductions else None
        if scales is not None:
            ulam_kernels.reduce(state, table, torch.tensor([row]), **given, out=scales)
        ulam_kernels.step(state, table, torch.tensor([row]), **given, net_in=net_in, scales=scales)
        np.testing.assert_allclose(state[0, 0].numpy(), expected[row], rtol=1e-12, atol=1e-13)
        if row + 1 in inputs:
            np.testing.assert_allclose(net_in[0].numpy(), inputs[row + 1], rtol=1e-6)


# ------------------------------------------------------------------------------------------------ denoiser


def test_denoiser_leaves_the_module_alone_and_tells_time() -> None:
    net = torch.nn.Dropout().train()
    denoiser = Denoiser(net, SCHEDULE)
    assert net.training and denoiser.time_dtype == torch.float32
    assert denoiser.program(DDIM(5)) is DDIM(5).program(SCHEDULE)
    index = Denoiser(net, SCHEDULE, time="index")
    assert index.time_dtype == torch.int64 and index.program(DDIM(5)).time.tolist() == [80, 60, 40, 20, 0]
    with pytest.raises(ValueError, match=r"timesteps: got t = 1.5 under time='index', expected whole .*: use 2$"):
        index.program(DDIM(timesteps=(3.0, 1.5)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((None, SCHEDULE), TypeError, "net: got None, expected a callable"),
        ((abs, "linear"), TypeError, "schedule: got 'linear', expected a ulam schedule"),
        ((abs, SCHEDULE, "noise"), ValueError, "predicts: got 'noise', expected one of "),
        ((abs, SCHEDULE, "raw"), ValueError, "schedule: got .* under predicts='raw' .*, expected edm"),
        ((abs, SCHEDULE, "eps", "float"), ValueError, "time: got 'float', expected one of auto, index"),
        (
            (abs, schedules.flow(), "flow", "index"),
            ValueError,
            "time: got 'index' with .*, expected 'auto', or a vp schedule",
        ),
    ],
)
def test_bad_denoisers(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Denoiser(*arguments)
