"""`ulam.Policy`, and `ulam.sample` on whole chains: the bits of an engine's chains, in memory that is used again."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import ulam
from mlp_cases import CASES
from ulam.samplers import DDIM, DDPM, DPMSolverPP, Heun

SCHEDULE = ulam.schedules.vp_linear()
EDM = ulam.schedules.edm()


def denoiser(name: str = "chunk policy", schedule: Any = SCHEDULE) -> ulam.Denoiser:
    torch.manual_seed(1)
    return ulam.Denoiser(CASES[name].make(), schedule)


def observed(calls: int, chains: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(2)
    return [{"state": torch.randn(chains, 2, 5)} for _ in range(calls)]


def walked(net: ulam.Denoiser, sampler: Any, shape: tuple[int, ...], chains: range, **given: Any) -> torch.Tensor:
    return ulam.sample(net, sampler, shape, chains, 3, progress=False, chain_kernel="on", **given)


@pytest.mark.parametrize("name", ["tutorial", "scalar time", "chunk policy", "prompted", "adaptive norm"])
@pytest.mark.parametrize("sampler", [DDIM(5, eta=1.0), DPMSolverPP(6), Heun(4)], ids=str)
def test_sample_has_the_bits_of_an_engine_in_slots(name: str, sampler: Any) -> None:
    schedule = EDM if name == "scalar time" else SCHEDULE
    case, net = CASES[name], denoiser(name, schedule)
    given: dict[str, Any] = {}
    if case.cond:
        shared = {key: ulam.shared(torch.randn(shape)) for key, shape in case.shared.items()}
        given |= {"cond": case.conditioning(7) | shared, "uncond": case.conditioning(7) | shared, "guidance": 1.5}
    engine = ulam.Engine(net, case.shape, 3, chain_kernel="on")
    job = engine.submit(sampler, 7, 3, **given)
    assert torch.equal(walked(net, sampler, case.shape, range(7), **given), engine.run()[job])


@pytest.mark.parametrize("chains", [1, 5])
@pytest.mark.parametrize("guidance", [None, 2.0])
def test_a_call_has_the_bits_of_a_sample(chains: int, guidance: float | None) -> None:
    net, seen = denoiser(), observed(3, chains)
    other = {"state": torch.zeros(chains, 2, 5)} if guidance else None
    policy = ulam.Policy(net, DDPM(6), (4, 3), chains, 3, cond=seen[0], guidance=guidance, uncond=other)
    for call, cond in enumerate(seen):
        ids = range(call * chains, (call + 1) * chains)
        expected = walked(net, DDPM(6), (4, 3), ids, cond=cond, guidance=guidance, uncond=other)
        assert torch.equal(policy(cond), expected)
    policy.calls = 2
    assert torch.equal(policy(), expected)  # of the last observations


def test_memory_is_used_again() -> None:
    policy, seen = ulam.Policy(denoiser(), DDIM(4), (4, 3), cond=observed(1, 1)[0]), observed(2, 1)
    first = policy(seen[0])
    kept = first.clone()
    second = policy(seen[1])
    assert first.data_ptr() == second.data_ptr() and not torch.equal(kept, second)


def test_first_states_may_be_given() -> None:
    net = denoiser("tutorial")
    program = net.program(DDIM(6))
    whole = walked(net, program, (2,), range(4))
    half = walked(net, program[:3], (2,), range(4))
    policy = ulam.Policy(net, program[3:], (2,), 4)
    assert torch.equal(policy(x_init=half), whole)  # DDIM makes no noise
    for wrong in (half[:2], half.tolist(), half[0]):
        with pytest.raises(ValueError, match=r"^x_init: got .*, expected a float tensor \[4, 2\]"):
            policy(x_init=wrong)


@pytest.mark.parametrize("how", ["in place", "by data", "a new layer", "loaded"])
def test_changed_weights_are_seen_and_the_observations_kept(how: str) -> None:
    net, seen = denoiser(), observed(1, 2)[0]
    policy = ulam.Policy(net, DDIM(4), (4, 3), 2, 3, cond=seen)
    before = policy().clone()
    first = net.net.first
    if how == "in place":
        with torch.no_grad():
            first.weight += 0.1
    elif how == "by data":
        first.bias.data.numpy()[0] += 1
    elif how == "a new layer":
        net.net.first = nn.Linear(first.in_features, first.out_features)
    else:
        net.net.load_state_dict({key: value * 1.1 for key, value in net.net.state_dict().items()})
    policy.calls = 0
    now = policy()
    assert not torch.equal(now, before)
    fresh = walked(ulam.Denoiser(net.net, SCHEDULE), DDIM(4), (4, 3), range(2), cond=seen)
    assert torch.equal(now, fresh)
    assert torch.equal(walked(net, DDIM(4), (4, 3), range(2), cond=seen), fresh)


def test_weights_that_a_sample_has_seen_first_are_the_policys_too() -> None:
    net, seen = denoiser(), observed(1, 2)[0]
    policy = ulam.Policy(net, DDIM(4), (4, 3), 2, 3, cond=seen)
    with torch.no_grad():
        net.net.first.weight += 0.1
    expected = walked(net, DDIM(4), (4, 3), range(2), cond=seen)
    assert torch.equal(policy(), expected)


def test_modes_do_not_matter() -> None:
    net = denoiser("implicit policy")
    cond = CASES["implicit policy"].conditioning(1)
    policy = ulam.Policy(net, DDIM(4), CASES["implicit policy"].shape, cond=cond)
    expected = policy().clone()
    net.net.train()
    policy.calls = 0
    assert torch.equal(policy(), expected) and net.net.training


def test_what_is_not_finite_is_an_error() -> None:
    seen = observed(1, 2)[0]
    policy = ulam.Policy(denoiser(), DDIM(4), (4, 3), 2, cond=seen)
    expected = policy(seen).clone()
    broken = {"state": seen["state"].clone()}
    broken["state"][1] = torch.nan
    with pytest.raises(RuntimeError, match=r"^actions: got NaN or Inf in chain 1 at row 0, expected finite numbers"):
        policy(broken)
    policy.calls = 0
    assert torch.equal(policy(seen), expected)
    with pytest.warns(RuntimeWarning, match=r"1 of 2 chains turned NaN or Inf \(chain 1 at row 0, ...\)"):
        out = walked(denoiser(), DDIM(4), (4, 3), range(2), cond=broken)
    assert out[1].isnan().all() and out[0].isfinite().all()


def test_what_does_not_fit_is_named() -> None:
    seen = observed(1, 2)[0]

    def make(net: Any = None, sampler: Any = None, **given: Any) -> ulam.Policy:
        return ulam.Policy(net or denoiser(), sampler or DDIM(4), (4, 3), 2, **{"cond": seen} | given)

    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x.sort(-1).values

    with pytest.raises(TypeError, match=r"^net: got .*sort.* at .*test_policy.py:\d+"):
        make(ulam.Denoiser(Sorted(), SCHEDULE), cond=None)
    with pytest.raises(ValueError, match=r"^sampler: got .*[(]reduces[)], expected rows of an evaluation"):
        make(sampler=DDIM(4, clip=ulam.samplers.DynamicThreshold(0.9)))
    with pytest.raises(ValueError, match=r"^uncond: got one in a policy without guidance, expected None"):
        make()(uncond=seen)
    with pytest.raises(ValueError, match=r"^cond\['state'\]: got"):
        make()({"state": seen["state"][:1]})
    with pytest.raises(ValueError, match=r"^cond: got \['what'\], expected \['state'\]"):
        make()({"what": seen["state"]})
    with pytest.raises(ValueError, match=r"^chains: got 0, expected"):
        ulam.Policy(denoiser("tutorial"), DDIM(4), (2,), 0)


def test_sample_takes_the_engine_where_slots_are_needed() -> None:
    net = denoiser("tutorial")
    given: dict[str, Any] = {"progress": False, "noise": lambda row, chains: torch.zeros(len(chains), 2)}
    quiet = ulam.sample(net, DDPM(6), (2,), 3, 0, chain_kernel="on", **given)
    engine = ulam.Engine(net, (2,), 3, chain_kernel="on")
    job = engine.submit(DDPM(6), 3, 0, noise=given["noise"])
    assert torch.equal(quiet, engine.run()[job])


def test_many_threads_sample_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    net = denoiser("tutorial")
    expected = walked(net, DDPM(6), (2,), range(40))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda i: walked(net, DDPM(6), (2,), range(i, i + 5)), range(0, 40, 5)))
    assert torch.equal(torch.cat(parts), expected)


@pytest.mark.parametrize("precision", ["bf16", "bf16_dot"])
def test_precisions_are_the_same_in_every_way_to_ask(precision: str) -> None:
    net, cond = denoiser(), observed(1, 3)[0]
    given: dict[str, Any] = {"cond": cond, "progress": False}
    policy = ulam.Policy(net, DDIM(5), (4, 3), 3, 3, cond=cond, precision=precision)
    sampled = ulam.sample(net, DDIM(5), (4, 3), 3, 3, chain_kernel=precision, **given)
    engine = ulam.Engine(net, (4, 3), 2, chain_kernel=precision)
    job = engine.submit(DDIM(5), 3, 3, cond=cond)
    assert torch.equal(policy(), sampled) and torch.equal(engine.run()[job], sampled)
    assert engine.report.chain_kernel == precision
    whole = walked(net, DDIM(5), (4, 3), range(3), cond=cond)
    error = ((sampled - whole).pow(2).mean() / whole.pow(2).mean()).sqrt()
    assert 1e-5 < error < 0.02
    with torch.no_grad():
        net.net.first.weight *= 1.5
    policy.calls = 0
    now = policy()
    assert not torch.equal(now, sampled)
    assert torch.equal(now, ulam.sample(net, DDIM(5), (4, 3), 3, 3, chain_kernel=precision, **given))


@pytest.mark.parametrize("each", [False, True])
def test_known_elements_are_kept_as_a_planner_writes_them(each: bool) -> None:
    """Beside the loop of planners: after every step the known elements are written back."""
    net = denoiser("tutorial")
    mask = torch.tensor([[True, False], [True, False]]) if each else torch.tensor([True, False])
    known = torch.tensor([[0.5, 9.0], [-0.25, 9.0]])
    program = net.program(DDIM(6))
    policy = ulam.Policy(net, DDIM(6), (2,), 2, 3, mask=mask)
    x = ulam.noise.normal((2,), chains=2, seed=3, tag=1)
    states = torch.where(mask, known, x)
    for row in range(len(program)):
        states = ulam.Policy(net, program[row : row + 1], (2,), 2, 3)(x_init=states)
        states = torch.where(mask, known, states)
    planned = policy(known=known)
    assert torch.equal(planned, states) and torch.equal(planned[:, 0], known[:, 0])
    policy.calls = 0
    assert torch.equal(policy(), states)
    fresh = ulam.Policy(net, DDIM(6), (2,), 2, 3, mask=mask)
    with pytest.raises(ValueError, match=r"^known: got None in the first call .*, expected a float tensor \[2, 2\]"):
        fresh()
    assert torch.equal(fresh(known=known), states)
    with pytest.raises(ValueError, match=r"^known: got a tensor in a policy without a mask"):
        ulam.Policy(net, DDIM(6), (2,))(known=known[:1])
    with pytest.raises(ValueError, match=r"^known: got .*, expected a float tensor \[2, 2\]"):
        policy(known=known[:1])
    with pytest.raises(ValueError, match=r"^mask: got .*, expected a bool tensor \[2\] or \[2, 2\]"):
        ulam.Policy(net, DDIM(6), (2,), 2, mask=torch.ones(2))


def test_observations_that_are_no_dict_are_refused_with_their_names() -> None:
    policy = ulam.Policy(denoiser("chunk policy"), DDIM(4), (4, 3), cond={"state": torch.zeros(1, 2, 5)})
    with pytest.raises(TypeError, match=r"^cond: got .*, expected tensors by name, such as \{'state': \.\.\.\}"):
        policy(torch.zeros(1, 2, 5))  # type: ignore[arg-type]


def test_what_requires_grad_is_refused_and_spoils_no_later_call() -> None:
    policy = ulam.Policy(denoiser("tutorial"), DDIM(4), (2,), 3)
    before = policy().clone()
    with pytest.raises(RuntimeError, match="x_init: got a tensor that requires grad"):
        policy(x_init=torch.zeros(3, 2, requires_grad=True))
    policy.calls = 0
    assert torch.equal(policy(), before)


def test_a_network_that_was_sampled_is_freed_with_its_denoiser() -> None:
    sampled = denoiser("tutorial")
    walked(sampled, DDIM(4), (2,), range(3))
    net = weakref.ref(sampled.net)
    del sampled
    gc.collect()
    assert net() is None
