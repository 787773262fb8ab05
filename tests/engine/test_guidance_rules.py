"""Guidance beyond a weighted difference: by the papers' formulas, per chain, in any company, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import guidance_cases
import triton_interpreter
import ulam
from oracles import execute
from ulam import Denoiser, Engine, schedules
from ulam.guidance import APG, CFGZero
from ulam.programs.builder import ProgramBuilder
from ulam.samplers import DDIM, DPMSolverPP, Euler
from ulam_kernels import cpu, reference

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SHAPES = [(2,), (3, 4, 5), (1500,)]
FLOW, VP = schedules.flow(), schedules.vp_linear(1000)
SHAPE, COUNT = (2, 3), 4
WEIGHT = torch.linspace(-1, 1, 36).view(6, 6)


def net(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Not linear in x, and with another answer for each y."""
    flat = torch.tanh(x.flatten(1) @ WEIGHT.to(x.dtype) + y[:, None].to(x.dtype) / 2)
    return (flat + x.flatten(1) / 4 * torch.cos(t.to(x.dtype) / 700)[:, None]).view_as(x)


LABELS, NULLS, OTHERS = torch.arange(float(COUNT)), torch.full((COUNT,), -2.0), torch.full((COUNT,), 1.5)


def cfg_plus_plus(schedule: Any, predicts: str, steps: int = 5) -> ulam.Program:
    """DDIM with the noise of the unguided branch [Chung 2024]: x' = alpha' D + sigma' eps_u."""
    grid = DDIM(steps=steps).grid(schedule)
    builder = ProgramBuilder(schedule, predicts, unguided=True)
    here = grid.alphas[:-1], grid.sigmas[:-1]
    builder.rows(grid.times, levels=here, x={"D": grid.alphas[1:], "eps_u": grid.sigmas[1:]})
    return builder.program("CFG++")


def by_hand(denoiser: Denoiser, program: ulam.Program, chain: int, combine: Any, guide: Any = None) -> np.ndarray:
    """A chain in float64: combine(row, x, m, u) is the guided output."""
    x = ulam.noise.normal(SHAPE, seed=3, chains=[chain], row=0, tag=1)[0].double().numpy() * program.init_scale

    def branch(row: int, net_in: np.ndarray, label: torch.Tensor, network: Any = denoiser.net) -> np.ndarray:
        t = torch.tensor([program.time[row]], dtype=torch.float32)
        return network(torch.from_numpy(net_in)[None], t, label[chain : chain + 1])[0].numpy()

    def unguided(row: int, net_in: np.ndarray) -> np.ndarray:
        return branch(row, net_in, NULLS) if guide is None else branch(row, net_in, LABELS, guide)

    def output(row: int, net_in: np.ndarray) -> np.ndarray:
        return combine(row, net_in / program.c_in[row], branch(row, net_in, LABELS), unguided(row, net_in))

    def noise(row: int) -> np.ndarray:
        return ulam.noise.normal(SHAPE, seed=3, chains=[chain], row=row)[0].double().numpy()

    return execute(program, x, output, noise, unguided)[-1]


def ours(denoiser: Denoiser, program: Any, company: bool = False, **options: Any) -> torch.Tensor:
    """Four chains, perhaps among others of other rules in the same batch."""
    engine = Engine(denoiser, SHAPE, 8, branches=2)
    uncond = None if denoiser.guide is not None else {"y": NULLS}
    job = engine.submit(program, COUNT, 3, {"y": LABELS}, uncond=uncond, **options)
    if company:
        other = {"cond": {"y": LABELS}, "uncond": {"y": NULLS}}
        engine.submit(DDIM(steps=3), [40], 0, {"y": LABELS[:1]})
        engine.submit(DDIM(steps=7), 4, 1, guidance=3.0, guidance_rule=APG(0.2, 4.0, -0.3), **other)
        engine.submit(DDIM(steps=4), 4, 2, guidance=2.0, guidance_rule=CFGZero(), **other)
        engine.submit(DDIM(steps=6), 4, 2, guidance=2.0, blend=[({"y": OTHERS}, 0.5)], **other)
        engine.submit(cfg_plus_plus(denoiser.schedule, denoiser.predicts, 3), 4, 2, guidance=1.5, **other)
        engine.submit(DDIM(steps=5), 4, 2, guidance=2.0, guidance_rescale=0.5, guidance_interval=(0.0, 0.5), **other)
        engine.submit(DPMSolverPP(steps=5), 4, 2, guidance=2.0, guidance_schedule=lambda t: 1 - t / 2000, **other)
    return engine.run()[job]


DOUBLE_OPTIONS: dict[str, dict[str, Any]] = {  # of numbers that float32 has, as the slots keep them
    "APG": {"guidance_rule": APG(eta=0.25, norm=1.5, momentum=-0.5)}, "CFGZero": {"guidance_rule": CFGZero()},
    "rescale": {"guidance_rescale": 0.5}, "blend": {"blend": [({"y": OTHERS}, 0.25)]}, "schedule": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", DOUBLE_OPTIONS)
@pytest.mark.parametrize("sampler", [DDIM(steps=5), Euler(steps=4, cfg_pp=True)], ids=["DDIM", "CFG++"])
def test_guidance_of_states_in_float64_is_its_formula(kind: str, sampler: Any) -> None:
    options = {"guidance": 2.5, **DOUBLE_OPTIONS[kind]}
    denoiser, program = Denoiser(net, VP), sampler.program(VP)
    if kind == "schedule":
        options["guidance_schedule"] = [0.5**row for row in range(len(program))]
    memory = {"past": np.zeros(SHAPE)}

    def combine(row: int, x: np.ndarray, m: np.ndarray, u: np.ndarray) -> np.ndarray:
        if kind == "APG":
            kx, km, rule = program.kx[row], program.km[row], options["guidance_rule"]
            guided, memory["past"] = guidance_cases.apg(m, u, x, kx, km, 2.5, rule, memory["past"])
            return guided
        if kind == "CFGZero":
            return guidance_cases.cfg_zero(m, u, 2.5)
        if kind == "rescale":
            return guidance_cases.rescale(m, u, 2.5, 0.5)
        if kind == "blend":
            t = torch.tensor([program.time[row]], dtype=torch.float32)
            third = net(torch.from_numpy(program.c_in[row] * x)[None], t, OTHERS[:1])[0].numpy()
            m = m + 0.25 * (third - m)
        return guidance_cases.cfg(m, u, 2.5 * (0.5**row if kind == "schedule" else 1.0))

    found = ulam.sample(denoiser, sampler, SHAPE, COUNT, 3, cond={"y": LABELS}, uncond={"y": NULLS},
                        dtype=torch.float64, progress=False, **options)  # fmt: skip
    assert found.dtype == torch.float64
    for chain in range(COUNT):
        memory["past"] = np.zeros(SHAPE)
        wanted = by_hand(denoiser, program, chain, combine)
        np.testing.assert_allclose(found[chain].numpy(), wanted, rtol=0, atol=1e-10 * abs(wanted).max())


def close(found: torch.Tensor, wanted: np.ndarray) -> bool:
    return np.allclose(found.numpy(), wanted, rtol=0, atol=3e-5 * max(1.0, float(abs(wanted).max())))


# ----------------------------------------------------------------------------------------- the functions, by backend


@pytest.mark.parametrize("shape", SHAPES)
def test_the_rules_on_the_reference_and_the_cpu(shape: tuple[int, ...]) -> None:
    found = []
    for module in (reference, cpu):
        with guidance_cases.backend_of(module):
            found.append(guidance_cases.check(shape))
    assert torch.equal(*found)


@pytest.mark.long
def test_the_rules_on_interpreted_triton() -> None:
    triton_interpreter.run("check_guidance")


def test_a_chain_whose_guided_output_is_constant_keeps_it_under_rescaling() -> None:
    m = torch.full((1, 6), 0.3)
    engine = ulam.sample(
        Denoiser(lambda x, t, y: torch.full_like(x, 0.3) * y[:, None], VP), DDIM(steps=3), (6,), 1,
        cond={"y": torch.ones(1)}, uncond={"y": torch.zeros(1)}, guidance=2.0, guidance_rescale=0.7, progress=False,
    )  # fmt: skip
    plain = ulam.sample(
        Denoiser(lambda x, t: 2 * m.expand_as(x), VP), DDIM(steps=3), (6,), 1, progress=False
    )  # fmt: skip
    torch.testing.assert_close(engine, plain)


# -------------------------------------------------------------------------------------------------- whole chains


def formula(rule: Any, program: ulam.Program, w: float) -> Any:
    memory = {"past": np.zeros(SHAPE)}

    def combine(row: int, x: np.ndarray, m: np.ndarray, u: np.ndarray) -> np.ndarray:
        if isinstance(rule, CFGZero):
            return np.zeros(SHAPE) if row < rule.zero_steps else guidance_cases.cfg_zero(m, u, w)
        if rule is None:
            return guidance_cases.cfg(m, u, w)
        kx, km = program.kx[row], program.km[row]
        guided, memory["past"] = guidance_cases.apg(m, u, x, kx, km, w, rule, memory["past"])
        return guided

    return combine


CASES = [
    ("flow", APG()), ("eps", APG(eta=0.3, norm=1.5, momentum=-0.5)), ("v", APG(norm=2.0)), ("flow", CFGZero(2)),
    ("eps", CFGZero()),
]  # fmt: skip


@pytest.mark.parametrize(("predicts", "rule"), CASES, ids=[f"{predicts}-{type(r).__name__}{i}" for i, (predicts, r) in enumerate(CASES)])  # fmt: skip # noqa: E501
@pytest.mark.parametrize("sampler", [DDIM(steps=5), DPMSolverPP(steps=5), Euler(steps=4)], ids=["DDIM", "2M", "Euler"])
def test_a_rule_is_its_formula_and_has_the_same_bits_in_company(predicts: str, rule: Any, sampler: Any) -> None:
    schedule = FLOW if predicts == "flow" else VP
    denoiser = Denoiser(net, schedule, predicts)
    program = sampler.program(schedule, predicts)
    alone = ours(denoiser, sampler, guidance=3.0, guidance_rule=rule)
    for chain in range(COUNT):
        assert close(alone[chain], by_hand(denoiser, program, chain, formula(rule, program, 3.0)))
    assert torch.equal(alone, ours(denoiser, sampler, company=True, guidance=3.0, guidance_rule=rule))


@pytest.mark.parametrize("predicts", ["eps", "flow"])
@pytest.mark.parametrize("w", [0.6, 1.0, 4.0])
def test_cfg_plus_plus_steps_along_the_unguided_noise(predicts: str, w: float) -> None:
    schedule = FLOW if predicts == "flow" else VP
    denoiser, program = Denoiser(net, schedule, predicts), cfg_plus_plus(schedule, predicts)
    alone = ours(denoiser, program, guidance=w)
    for chain in range(COUNT):
        assert close(alone[chain], by_hand(denoiser, program, chain, formula(None, program, w)))
    assert torch.equal(alone, ours(denoiser, program, company=True, guidance=w))


CFG_PP = sorted(name for name in ulam.samplers.names.COMFYUI if "cfg_pp" in name or "cfgpp" in name)


@pytest.mark.parametrize("name", CFG_PP)
def test_every_name_with_cfg_plus_plus_reads_both_branches(name: str) -> None:
    denoiser, sampler = Denoiser(net, VP), ulam.samplers.named(name, steps=4)
    program = sampler.program(VP, "eps")
    assert program.reads_unguided
    alone = ours(denoiser, sampler, guidance=1.7)
    for chain in range(COUNT):
        assert close(alone[chain], by_hand(denoiser, program, chain, formula(None, program, 1.7)))
    assert torch.equal(alone, ours(denoiser, sampler, company=True, guidance=1.7))


def test_cfg_plus_plus_without_guidance_is_ddim() -> None:
    denoiser = Denoiser(net, VP)
    engine = Engine(denoiser, SHAPE, 4)
    jobs = [engine.submit(s, COUNT, 3, {"y": LABELS}) for s in (cfg_plus_plus(VP, "eps"), DDIM(steps=5))]
    results = engine.run()
    torch.testing.assert_close(results[jobs[0]], results[jobs[1]], rtol=0, atol=1e-5)


def test_a_guide_takes_the_place_of_the_unguided_branch() -> None:
    def weak(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return net(x, t, y) * 0.7 + 0.1

    denoiser, program = Denoiser(net, VP, guide=weak), DDIM(steps=5).program(VP)
    alone = ours(denoiser, DDIM(steps=5), guidance=2.5)
    for chain in range(COUNT):
        assert close(alone[chain], by_hand(denoiser, program, chain, formula(None, program, 2.5), weak))
    assert torch.equal(alone, ours(denoiser, DDIM(steps=5), company=True, guidance=2.5))
    with pytest.raises(ValueError, match=r"guide: got a network of torch\.float64, expected torch.float32"):
        Engine(Denoiser(torch.nn.Linear(3, 3), VP, guide=torch.nn.Linear(3, 3).double()), (3,), 2)


def test_schedules_of_the_weight() -> None:
    denoiser, program, steps = Denoiser(net, VP), DDIM(steps=5).program(VP), 5
    factors = [1.0, 0.5, 0.0, 2.0, 1 / 3]
    alone = ours(denoiser, DDIM(steps=steps), guidance=3.0, guidance_schedule=factors)

    def combine(row: int, x: np.ndarray, m: np.ndarray, u: np.ndarray) -> np.ndarray:
        return guidance_cases.cfg(m, u, 3.0 * factors[row])

    for chain in range(COUNT):
        assert close(alone[chain], by_hand(denoiser, program, chain, combine))
    assert torch.equal(alone, ours(denoiser, DDIM(steps=5), company=True, guidance=3.0, guidance_schedule=factors))
    by_time = dict(zip(program.time.tolist(), factors, strict=True))
    assert torch.equal(alone, ours(denoiser, DDIM(steps=5), guidance=3.0, guidance_schedule=by_time.__getitem__))
    assert torch.equal(ours(denoiser, DDIM(steps=5), guidance=3.0, guidance_schedule=[1.0] * 5),
                       ours(denoiser, DDIM(steps=5), guidance=3.0))  # fmt: skip


def test_several_conditionings_are_blended_by_weights() -> None:
    denoiser, program = Denoiser(net, VP), DDIM(steps=5).program(VP)
    blend = [({"y": OTHERS}, 0.25), ({"y": NULLS}, [0.5, -0.5, 0.0, 1.0])]
    alone = ours(denoiser, DDIM(steps=5), guidance=2.0, blend=blend)
    for chain in range(COUNT):

        def combine(row: int, x: np.ndarray, m: np.ndarray, u: np.ndarray, chain: int = chain) -> np.ndarray:
            t = torch.tensor([program.time[row]], dtype=torch.float32)
            third = net(torch.from_numpy(x)[None], t, OTHERS[:1])[0].numpy()
            m = m + 0.25 * (third - m) + blend[1][1][chain] * (u - m)
            return guidance_cases.cfg(m, u, 2.0)

        assert close(alone[chain], by_hand(denoiser, program, chain, combine))
    assert torch.equal(alone, ours(denoiser, DDIM(steps=5), company=True, guidance=2.0, blend=blend))
    sampled = ulam.sample(denoiser, DDIM(steps=5), SHAPE, COUNT, 3, cond={"y": LABELS}, uncond={"y": NULLS},
                          guidance=2.0, blend=blend, slots=8, progress=False)  # fmt: skip
    assert torch.equal(sampled, alone)


UNGUIDED_READ = {
    "APG": (DDIM(steps=4), {"guidance": 2.0, "guidance_rule": APG(0.5, 2.0, -0.5)}),
    "CFGZero": (DDIM(steps=4), {"guidance": 2.0, "guidance_rule": CFGZero()}),
    "CFG++": (cfg_plus_plus(VP, "eps", 4), {"guidance": 1.0}),
}


@pytest.mark.parametrize("name", UNGUIDED_READ)
def test_an_unguided_output_that_is_not_finite_stops_its_chain_alone(name: str) -> None:
    def broken(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where(y[:, None, None] == 77, float("nan"), net(x, t, y))

    sampler, options = UNGUIDED_READ[name]
    engine, nulls = Engine(Denoiser(broken, VP), SHAPE, 4), torch.tensor([-2.0, 77.0, -2.0, -2.0])
    engine.submit(sampler, COUNT, 3, {"y": LABELS}, uncond={"y": nulls}, **options)
    failed = {result.chain: result.failed for result in engine.stream()}
    assert {chain: at is not None for chain, at in failed.items()} == {0: False, 1: True, 2: False, 3: False}


def test_learned_variances_are_those_of_the_conditional_branch() -> None:
    def two(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat([net(x, t, y), torch.tanh(net(x, t, y))], 1)

    sampler = ulam.samplers.DDPM(steps=4, variance="learned_range")
    denoiser = Denoiser(two, VP)
    alone = ours(denoiser, sampler, guidance=2.0, guidance_rule=APG(eta=1.0))
    torch.testing.assert_close(alone, ours(denoiser, sampler, guidance=2.0), rtol=1e-4, atol=1e-4)
    assert torch.equal(alone, ours(denoiser, sampler, company=True, guidance=2.0, guidance_rule=APG(eta=1.0)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"guidance_rule": "apg"}, TypeError, r"guidance_rule: got 'apg', expected one of ulam.guidance"),
        ({"guidance_rule": APG(), "guidance": None}, ValueError, "guidance: got None beside guidance_rule"),
        ({"guidance_rule": APG(), "guidance_rescale": 0.5}, ValueError, "guidance_rescale: got 0.5 beside guidance_ru"),
        ({"guidance_rule": CFGZero(1)}, ValueError, "zero_steps: got 1 under predicts='eps', expected 0"),
        ({"guidance_schedule": [1.0]}, ValueError, r"guidance_schedule: got shape \[1\], expected a factor for each"),
        ({"guidance_schedule": [float("inf")] * 5}, ValueError, "guidance_schedule: got a factor that is not finite"),
        ({"guidance_schedule": [1.0] * 5, "guidance": None}, ValueError, "guidance: got None beside guidance_schedule"),
        (
            {"guidance_rule": APG(momentum=0.5), "first_row": 2},
            ValueError,
            "momentum: got 0.5 in a run that goes on at",
        ),
        ({"blend": 3}, TypeError, r"blend: got 3, expected pairs"),
        ({"blend": [({"y": LABELS}, 1.0)] * 3}, ValueError, "blend: got 3 further conditionings, expected at most 2"),
        ({"blend": [({"z": LABELS}, 1.0)]}, ValueError, r"blend\[0\]: got \['z'\], expected keys of cond only"),
        ({"blend": [({"y": LABELS}, float("nan"))]}, ValueError, r"blend\[0\]: got a weight that is not finite"),
        ({"blend": [({"y": LABELS[:2]}, 1.0)]}, ValueError, r"blend\[0\]\['y'\]: got shape \[2\]"),
    ],
)
def test_invalid_guidance_is_refused_by_name(options: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"guidance": 2.0, "uncond": {"y": NULLS}} | options
    if given["guidance"] is None:
        del given["uncond"]
    with pytest.raises(error, match=message):
        Engine(Denoiser(net, VP), SHAPE, 4, branches=2).submit(DDIM(steps=5), COUNT, 0, {"y": LABELS}, **given)


def test_zero_steps_are_of_whole_runs_and_gradients_have_no_way_in() -> None:
    denoiser = Denoiser(net, FLOW, "flow")
    with pytest.raises(ValueError, match="zero_steps: got 1 in a run that goes on at row 2, expected 0"):
        Engine(denoiser, SHAPE, 4).submit(DDIM(steps=5), COUNT, 0, {"y": LABELS}, 2.0, {"y": NULLS}, first_row=2,
                                          guidance_rule=CFGZero(1))  # fmt: skip
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"blend\[0\]\['y'\]: got a tensor that requires grad"):
        Engine(denoiser, SHAPE, 4, branches=1).submit(
            DDIM(steps=5), COUNT, 0, {"y": LABELS}, blend=[({"y": LABELS.clone().requires_grad_()}, 0.5)]
        )


def test_a_second_time_between_training_steps_is_not_told_to_a_network_of_whole_ones() -> None:
    builder = ProgramBuilder(VP, "eps")
    builder.rows(500.0, x={"D": 1.0}, second=250.5)
    with pytest.raises(ValueError, match=r"second: got 250\.5 under time='index', expected whole training steps"):
        Denoiser(net, VP, time="index", second_time="r").program(builder.program("half"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: APG(eta=float("nan")), ValueError, "eta: got nan"),
        (lambda: APG(norm=0.0), ValueError, "norm: got 0.0, expected a number above 0"),
        (lambda: APG(momentum=1.0), ValueError, r"momentum: got 1.0, expected a number in \(-1, 1\)"),
        (lambda: CFGZero(-1), ValueError, "zero_steps: got -1"),
        (lambda: Denoiser(net, VP, guide=3), TypeError, "guide: got 3"),  # type: ignore[arg-type]
        (lambda: Denoiser(net, VP, second_time="t"), ValueError, "second_time: got 't'"),
        (lambda: Engine(Denoiser(net, VP), SHAPE, 4, branches=-1), ValueError, "branches: got -1"),
    ],
)
def test_invalid_rules_are_refused_by_name(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# -------------------------------------------------------------------------------------------------- second times


def test_a_second_time_reaches_the_network_as_rows_say() -> None:
    told: list[tuple[float, float]] = []

    def flow_map(x: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        told.append((float(t[0]), float(r[0])))
        return x * 0.5

    builder = ProgramBuilder(FLOW, "flow")
    builder.rows([1.0, 0.5], levels=(np.array([0.0, 0.5]), np.array([1.0, 0.5])), x={"x": 1.0, "eps": -0.5},
                 second=np.array([0.5, np.nan]))  # fmt: skip
    program = builder.program("two times")
    denoiser = Denoiser(flow_map, FLOW, "flow", second_time="r")
    ulam.sample(denoiser, program, (3,), 2, progress=False)
    assert told == [(1.0, 0.5), (0.5, 0.5)]
    told.clear()
    ulam.sample(denoiser, Euler(steps=2), (3,), 2, progress=False)
    assert [t == r for t, r in told] == [True, True], "the velocity, where a sampler has one time"
    with pytest.raises(ValueError, match=r"sampler: got two times, which tells the network a second time, expected"):
        ulam.sample(Denoiser(net, FLOW, "flow"), program, (3,), 2, progress=False)
