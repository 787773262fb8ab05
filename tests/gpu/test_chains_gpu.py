"""Samples, policies and engines that walk whole chains on a GPU, held against the CPU: its bits in float32.

On the CPU the same tests show that what they compare is there to be compared.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ulam
import ulam_kernels
from gpu_chain_cases import SAMPLERS, SEED, SHAPE, engine_of, moved, on_cpu, ran, told, walked
from mlp_cases import CASES
from ulam.samplers import DDIM, DDPM, DynamicThreshold, RePaint

REASON = ulam_kernels.backends()["triton"]
MISSING = pytest.mark.skipif(REASON != "usable", reason=f"no GPU for Triton: {REASON}")
DEVICES = ["cpu", pytest.param("cuda:0", marks=[pytest.mark.gpu, MISSING])]
ROUNDING = {"adaptive norm": 1e-4}  # of LayerNorm, whose sums have another order there
ERRORS = {"tf32x3": 1e-3, "bf16": 0.1}  # relative to the largest element, after a few steps

pytestmark = pytest.mark.parametrize("device", DEVICES)


def held(ours: torch.Tensor, expected: torch.Tensor, room: float = 0.0) -> None:
    assert ours.isfinite().all()
    assert (ours.cpu() - expected).abs().max() <= room * expected.abs().max()


@pytest.mark.parametrize("name", ["tutorial", "chunk policy", "prompted", "adaptive norm", "learned variances"])
def test_every_way_to_ask_has_the_bits_of_the_cpu(device: str, name: str) -> None:
    shape, given, net = CASES[name].shape, told(name, 40), on_cpu(name)
    there, room = moved(net, device), ROUNDING.get(name, 0.0)
    samplers = (DDPM(6, variance="learned", clip=(-1, 1)),) if name == "learned variances" else SAMPLERS
    for sampler in samplers:
        expected = walked(net, sampler, shape, 40, **given)
        sampled = walked(there, sampler, shape, 40, device=device, **given)
        held(sampled, expected, room)
        policy = ulam.Policy(there, sampler, shape, 40, SEED, device=device, **given)
        assert torch.equal(policy(), sampled)
        for slots in (7, 64):
            engine = engine_of(there, shape, slots, device)
            assert torch.equal(ran(engine, [(sampler, 40, given)])[0], sampled.cpu())
            assert engine.report.chain_kernel == "on" and not engine.report.fallbacks


def test_a_policy_holds_what_is_known(device: str) -> None:
    net, given = on_cpu(), told("chunk policy", 40, guided=False)
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[0] = True
    known = torch.linspace(-1, 1, 40 * mask.numel()).view(40, *SHAPE)
    policy = ulam.Policy(moved(net, device), DDPM(6), SHAPE, 40, SEED, device=device, mask=mask, **given)
    out = policy(known=known).cpu()
    held(out, ulam.Policy(net, DDPM(6), SHAPE, 40, SEED, mask=mask, **given)(known=known), 0.0)
    assert torch.equal(out[:, mask], known[:, mask])


@pytest.mark.parametrize("kernel", ["on", "tf32x3", "bf16"])
@pytest.mark.parametrize("graphs", [True, False])
def test_a_chain_has_the_same_bits_in_any_company(device: str, kernel: str, graphs: bool) -> None:
    """Beside jobs whose ticks need Python, eager or captured: previews, noise, reductions, intervals, known images."""
    net, given, guided = on_cpu(), told("chunk policy", 6, guided=False), told("chunk policy", 5)
    there = moved(net, device)
    alone = walked(there, DDPM(6), SHAPE, 6, kernel, device=device, **given).cpu()
    held(alone, walked(net, DDPM(6), SHAPE, 6, **given), ERRORS.get(kernel, 0.0))
    image = {"known": torch.rand(*SHAPE), "mask": torch.eye(4, 3)}
    ones = torch.ones(5, *SHAPE, device=device)
    others: list[tuple[Any, Any, dict[str, Any]]] = [
        (DDIM(5), 5, guided | {"guidance_interval": (0.2, 0.7)}),
        (DDIM(4, clip=DynamicThreshold(0.9)), 5, guided),
        (RePaint(6, 2, 2), 5, told("chunk policy", 5, guided=False) | image),
        (DDPM(5), 5, guided | {"callback": lambda preview: None}),
        (DDPM(4), 5, guided | {"noise": lambda row, chains: ones[: len(chains)]}),
    ]
    for slots in (4, 64):
        engine = engine_of(there, SHAPE, slots, device, kernel, graphs=graphs)
        for _ in range(2):
            assert torch.equal(ran(engine, [*others, (DDPM(6), 6, given)])[-1], alone)
        assert not engine.report.fallbacks
        assert bool(engine.report.captures) == (graphs and device != "cpu")


def test_nothing_waits_for_the_device_while_chains_run(device: str) -> None:
    """From the first walk to the last, admissions included; only the events of results are waited for."""
    engine, given = engine_of(moved(on_cpu(), device), SHAPE, 8, device), told("chunk policy", 40)
    ran(engine, [(DDPM(6), 40, given)])
    before = torch.cuda.get_sync_debug_mode() if device != "cpu" else None
    job = engine.submit(DDPM(7), 40, SEED, **given)
    found = torch.full((40, *SHAPE), torch.nan, device=device)
    try:
        for group in engine.finished(lambda _: None if before is None else torch.cuda.set_sync_debug_mode("error")):
            found[group.chains] = group.states
            assert group.job is job and not group.failed
    finally:
        if before is not None:
            torch.cuda.set_sync_debug_mode(before)
    held(found, walked(on_cpu(), DDPM(7), SHAPE, 40, **given))


@pytest.mark.parametrize("how", ["in place", "through .data", "another tensor"])
def test_changed_weights_are_seen(device: str, how: str) -> None:
    net, given = on_cpu(), told("chunk policy", 6)
    there = moved(net, device)
    engine, policy = engine_of(there, SHAPE, 4, device), None
    for round_ in range(2):
        for module in (net.net, there.net) if round_ else ():
            first: Any = module.first  # type: ignore[attr-defined]
            if how == "in place":
                with torch.no_grad():
                    first.weight.mul_(1.5)
            elif how == "through .data":
                first.weight.data.mul_(1.5)
            else:
                first.weight = torch.nn.Parameter(first.weight.detach() * 1.5)
        expected = walked(net, DDIM(4), SHAPE, 6, **given)
        policy = policy or ulam.Policy(there, DDIM(4), SHAPE, 6, SEED, device=device, **given)
        policy.calls = 0
        held(policy(), expected)
        held(ran(engine, [(DDIM(4), 6, given)])[0], expected)
        held(walked(there, DDIM(4), SHAPE, 6, device=device, **given), expected)


def test_chains_that_fail_are_told_and_fail_alone(device: str) -> None:
    there, given = moved(on_cpu(), device), told("chunk policy", 5, guided=False)
    clean = walked(on_cpu(), DDPM(6), SHAPE, 5, **given)
    given["cond"]["state"][2, 0, 0] = torch.nan
    for more in ({}, {"callback": lambda preview: None}):
        engine = engine_of(there, SHAPE, 4, device)
        engine.submit(DDPM(6), 5, SEED, **given, **more)
        found = {result.chain: result for result in engine.stream()}
        assert {chain: result.failed for chain, result in found.items() if result.failed is not None} == {2: 0}
        for chain in (0, 1, 3, 4):
            held(found[chain].x, clean[chain])
