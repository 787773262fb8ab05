"""Whole chains in one kernel: like the engine tick by tick, and a chain's bits know nothing of its company."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ulam
from mlp_cases import CASES, Tutorial
from ulam.samplers import DDIM, DDPM, DPMSolverPP, Heun

SCHEDULE = ulam.schedules.vp_linear()
SAMPLERS = (DDPM(6), DDIM(5), DPMSolverPP(6), Heun(4))
TOLERANCE = 2e-5  # of float32 after a few steps, relative to the largest element


def denoiser(name: str = "tutorial") -> ulam.Denoiser:
    torch.manual_seed(1)
    return ulam.Denoiser(CASES[name].make(), SCHEDULE)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


@pytest.mark.parametrize("name", ["tutorial", "chunk policy", "prompted", "adaptive norm", "per action"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_samples_are_those_of_single_ticks(name: str, sampler: Any) -> None:
    case, net = CASES[name], denoiser(name)
    given: dict[str, Any] = {"progress": False}
    if case.cond:
        shared = {key: ulam.shared(torch.randn(shape)) for key, shape in case.shared.items()}
        given |= {"cond": case.conditioning(7) | shared, "uncond": case.conditioning(7) | shared, "guidance": 1.5}
    walked = ulam.sample(net, sampler, case.shape, 7, 3, chain_kernel="on", **given)
    assert close(walked, ulam.sample(net, sampler, case.shape, 7, 3, **given))


def ran(net: ulam.Denoiser, jobs: list[dict[str, Any]], slots: int) -> list[torch.Tensor]:
    """The results of these jobs in one engine, in order."""
    engine = ulam.Engine(net, (4, 3), slots, chain_kernel="on")
    submitted = [engine.submit(**job) for job in jobs]
    results = engine.run()
    return [results[job] for job in submitted]


def job(sampler: Any, chains: range, **more: Any) -> dict[str, Any]:
    torch.manual_seed(5)
    state = torch.randn(40, 2, 5)
    at = torch.tensor(chains)
    return {"sampler": sampler, "chains": chains, "seed": 2, "cond": {"state": state[at]}, **more}


def test_a_chain_has_the_same_bits_in_any_company() -> None:
    net = denoiser("chunk policy")
    mine = job(DPMSolverPP(6), range(9))
    alone = ran(net, [mine], 9)[0]
    seen: list[int] = []
    previewed = job(DDPM(7), range(20, 23), callback=lambda preview: seen.append(preview.row))
    noisy = job(DDPM(4), range(30, 32), noise=lambda row, chains: torch.ones(len(chains), 4, 3))
    guided = job(DDIM(5), range(12, 15), guidance=2.0, uncond={"state": torch.zeros(3, 2, 5)})
    for others, slots in (([previewed], 16), ([noisy, guided], 3), ([guided, previewed, noisy], 7)):
        together = ran(net, [*others, mine], slots)
        assert torch.equal(together[-1], alone)
    assert seen
    parts = ran(net, [job(DPMSolverPP(6), range(5, 9)), job(DPMSolverPP(6), range(5))], 4)
    assert torch.equal(torch.cat(parts[::-1]), alone)


def test_what_a_job_asks_for_on_the_way_changes_no_bit() -> None:
    net = denoiser("chunk policy")
    plain = ran(net, [job(DDPM(6), range(5))], 5)[0]
    watched = ran(net, [job(DDPM(6), range(5), callback=lambda preview: None, every=2)], 5)[0]
    assert torch.equal(plain, watched)
    guided = {"guidance": 3.0, "uncond": {"state": torch.zeros(5, 2, 5)}}
    always = ran(net, [job(DDPM(6), range(5), **guided)], 5)[0]
    interval = ran(net, [job(DDPM(6), range(5), **guided, guidance_interval=(0.0, 1e6))], 5)[0]
    assert torch.equal(always, interval)
    assert not torch.equal(always, plain)


def test_chains_keep_what_they_are_told_when_the_table_grows() -> None:
    """Programs of more rows than there is room for enter while a chain runs."""
    net = denoiser("chunk policy")
    mine = job(DDPM(1000), range(2))
    engine = ulam.Engine(net, (4, 3), 8, chain_kernel="on")
    running = engine.submit(**mine)
    engine.submit(**job(DDIM(4), range(9, 10)))
    found = {}
    for result in engine.stream():
        if result.chain == 9:
            for steps in range(980, 985):
                engine.submit(**job(DDPM(steps), range(20, 21)))
        if result.job is running:
            found[result.chain] = result.x
    assert torch.equal(torch.stack([found[0], found[1]]), ran(net, [mine], 8)[0])
    assert len(engine._runner.buffers.rows) > 4096


def test_a_chain_in_two_pieces_has_the_bits_of_one_run() -> None:
    net = denoiser("chunk policy")
    program = net.program(DDPM(6))
    whole = ran(net, [job(program, range(5))], 5)[0]
    half = ran(net, [job(program[:4], range(5))], 5)[0]
    assert torch.equal(ran(net, [job(program[4:], range(5), x_init=half, first_row=4)], 2)[0], whole)


@pytest.mark.parametrize("how", ["in place", "behind autograd's back", "another tensor", "another layer"])
def test_weights_are_those_of_now(how: str) -> None:
    net = denoiser()
    layers = net.net.layers  # type: ignore[attr-defined]
    engine = ulam.Engine(net, (2,), 4, chain_kernel="on")

    def samples() -> torch.Tensor:
        submitted = engine.submit(DDIM(4), 4, 0)
        return engine.run()[submitted]

    before = samples()
    assert torch.equal(samples(), before)
    if how == "in place":
        with torch.no_grad():
            layers[2].weight.mul_(1.5)
    elif how == "behind autograd's back":
        layers[0].weight.data.mul_(1.5)
    elif how == "another tensor":
        layers[2].bias = nn.Parameter(torch.ones(32))
    else:
        layers[4] = nn.Linear(32, 2)
    after = samples()
    assert not close(after, before)
    assert close(after, ulam.sample(net, DDIM(4), (2,), 4, 0, progress=False))
    assert torch.equal(after, ulam.sample(net, DDIM(4), (2,), 4, 0, chain_kernel="on", progress=False))


class Sine(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


def test_what_does_not_fit_is_called_as_ever_and_the_report_says_why() -> None:
    net = ulam.Denoiser(Sine(), SCHEDULE)
    engine = ulam.Engine(net, (2,), 3, chain_kernel="auto")
    submitted = engine.submit(DDIM(4), 3, 0)
    assert torch.equal(engine.run()[submitted], ulam.sample(net, DDIM(4), (2,), 3, 0, progress=False))
    assert "sin" in engine.report.chain_kernel and __file__ in engine.report.chain_kernel
    with pytest.raises(TypeError, match="net: got sin"):
        ulam.sample(net, DDIM(4), (2,), 3, 0, chain_kernel="on", progress=False)


def test_the_report_says_what_ran() -> None:
    for chosen, says in (("auto", "on"), ("on", "on"), ("off", "off")):
        engine = ulam.Engine(denoiser(), (2,), 3, chain_kernel=chosen)
        engine.submit(DDIM(4), 3, 0)
        engine.run()
        assert engine.report.chain_kernel == says
        assert engine.report.evaluations == 12 and engine.report.ticks == 4 and engine.report.chains == 3


@pytest.mark.parametrize(
    "more",
    [{"dtype": torch.float64}, {"options": ulam.NetworkOptions(doubled=True)}, {"check_finite": False},
     {"branches": 1}, {"trace": True}],
    ids=lambda more: next(iter(more)),
)  # fmt: skip
def test_engines_of_other_arguments_do_not_walk(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected .* or chain_kernel='auto'"):
        ulam.Engine(denoiser(), (2,), 3, chain_kernel="on", **more)
    with pytest.raises(ValueError, match="chain_kernel: got 'fast'"):
        ulam.Engine(denoiser(), (2,), 3, chain_kernel="fast")


def test_a_chain_that_fails_fails_alone() -> None:
    net = denoiser("chunk policy")
    clean = job(DDPM(6), range(5))
    alone = ran(net, [clean], 5)[0]
    broken = {**clean, "cond": {"state": clean["cond"]["state"].clone()}}
    broken["cond"]["state"][2, 0, 0] = float("nan")
    for more in ({}, {"callback": lambda preview: None}):
        engine = ulam.Engine(net, (4, 3), 5, chain_kernel="on")
        engine.submit(**broken, **more)
        found = {result.chain: result for result in engine.stream()}
        assert [chain for chain, result in found.items() if result.failed is not None] == [2]
        for chain in (0, 1, 3, 4):
            assert torch.equal(found[chain].x, alone[chain])


def test_a_network_in_training_mode_is_sampled_in_eval_mode() -> None:
    net = denoiser("implicit policy, unconditional")
    module = net.net
    assert isinstance(module, nn.Module)
    module.train()
    walked = ulam.sample(net, DDIM(4), (6,), 3, 0, chain_kernel="on", progress=False)
    assert module.training
    module.eval()
    assert torch.equal(walked, ulam.sample(net, DDIM(4), (6,), 3, 0, chain_kernel="on", progress=False))


def test_branches_of_other_shapes_are_refused_with_the_way_out() -> None:
    net = ulam.Denoiser(CASES["implicit policy"].make(), SCHEDULE)
    cond, uncond = {"condition": torch.randn(2, 16)}, {"condition": ulam.shared(torch.zeros(1, 16))}
    engine = ulam.Engine(net, (6,), 4, chain_kernel="on")
    engine.submit(DDIM(4), 2, 0, cond=cond)
    with pytest.raises(ValueError, match=r"^uncond\['condition'\]: got .*, or chain_kernel='off'"):
        engine.submit(DDIM(4), 2, 0, cond=cond, guidance=2.0, uncond=uncond)
    engine = ulam.Engine(net, (6,), 4, chain_kernel="auto")
    engine.submit(DDIM(4), 2, 0, cond=cond, guidance=2.0, uncond=uncond)
    engine.run()
    assert "uncond" in engine.report.chain_kernel


def test_a_denoiser_of_another_call_is_compiled_anew() -> None:
    net = Tutorial(3)
    for sample_shape in ((3,), (1, 3)):
        wrapped = ulam.Denoiser(lambda x, t: net(x.flatten(1), t).reshape(x.shape), SCHEDULE)
        walked = ulam.sample(wrapped, DDIM(4), sample_shape, 2, 0, chain_kernel="on", progress=False)
        assert walked.shape == (2, *sample_shape)
        assert close(walked, ulam.sample(wrapped, DDIM(4), sample_shape, 2, 0, progress=False))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale, self.activation = nn.Linear(4, 4), 1.0, nn.functional.silu

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(self.activation(x)) * self.scale


@pytest.mark.parametrize("how", ["number", "function", "hook", "layer"])
def test_attributes_and_hooks_are_those_of_now(how: str) -> None:
    torch.manual_seed(0)
    net = Scaled()
    known = ulam.Denoiser(net, SCHEDULE)
    before = ulam.sample(known, DDIM(5), (4,), 3, chain_kernel="on", progress=False)
    if how == "number":
        net.scale = 0.5
    elif how == "function":
        net.activation = nn.functional.relu
    elif how == "hook":
        net.layer.register_forward_hook(lambda module, given, output: output * 0.5)
    else:
        net.layer = nn.Linear(4, 4, bias=False)
    now = ulam.sample(known, DDIM(5), (4,), 3, chain_kernel="on", progress=False)
    assert close(now, ulam.sample(known, DDIM(5), (4,), 3, progress=False)) and not close(now, before)
