"""Learned variances in engines that walk whole chains: the bits of `ulam.sample` and `ulam.Policy`, in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ulam
from mlp_cases import CASES, MLPCase, Sinusoidal, Variances
from ulam.samplers import DDIM, DDPM

SCHEDULE = ulam.schedules.vp_linear()
LEARNED = (DDPM(7, variance="learned_range", clip=(-2, 2)), DDPM(6, variance="learned", clip=(-1, 1)))


class OfPictures(torch.nn.Module):
    """m, then v, along the channels of [2, 3], by residual layers that are told the time and a label."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = torch.nn.Linear(6, 20), torch.nn.Linear(20, 12)
        self.time, self.label = torch.nn.Sequential(Sinusoidal(8), torch.nn.Linear(8, 20)), torch.nn.Linear(3, 20)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = torch.nn.functional.silu(self.into(x.flatten(1)) + self.time(t) + self.label(y))
        return self.out(h).view(-1, 4, 3)


NETWORKS = {"vectors": CASES["learned variances"], "pictures": MLPCase(OfPictures, (2, 3), {"y": (3,)})}


def denoiser(name: str) -> ulam.Denoiser:
    torch.manual_seed(1)
    return ulam.Denoiser(NETWORKS[name].make(), SCHEDULE)


def given(name: str, chains: range) -> dict[str, Any]:
    """Conditioning of these chains, each its own, and weights of guidance where there is any."""
    torch.manual_seed(2)
    cond = NETWORKS[name].conditioning(40)
    if not cond:
        return {}
    own = {key: value[torch.tensor(chains)] for key, value in cond.items()}
    weights = torch.tensor([0.0, 1.0, 2.0, -0.5]).repeat(10)[torch.tensor(chains)]
    return {"cond": own, "uncond": {key: torch.zeros_like(value) for key, value in own.items()}, "guidance": weights}


def walked(name: str, sampler: Any, chains: range, **more: Any) -> torch.Tensor:
    return ulam.sample(denoiser(name), sampler, NETWORKS[name].shape, chains, 3, chain_kernel="on", progress=False,
                       **given(name, chains), **more)  # fmt: skip


def submitted(engine: ulam.Engine, name: str, sampler: Any, chains: range, **more: Any) -> Any:
    return engine.submit(sampler, chains, 3, **given(name, chains), **more)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sampler", LEARNED, ids=lambda sampler: sampler.variance)
def test_an_engine_has_the_bits_of_sample_and_of_a_policy(name: str, sampler: Any) -> None:
    net, shape = denoiser(name), NETWORKS[name].shape
    alone = walked(name, sampler, range(9))
    policy = ulam.Policy(net, sampler, shape, 9, 3, **given(name, range(9)))
    assert torch.equal(policy(), alone)
    plain = walked(name, DDIM(5), range(20, 26))
    rows: list[int] = []
    more: tuple[dict[str, Any], ...] = (
        {},
        {"callback": lambda preview: rows.append(preview.row)},
        {"callback": lambda preview: None, "every": 2},
        {"noise": lambda row, chains: torch.zeros(len(chains), *shape)},
    )
    for slots, asked in zip((9, 3, 5, 16), more, strict=True):
        engine = ulam.Engine(net, shape, slots, chain_kernel="on")
        first = submitted(engine, name, DDIM(5), range(20, 26), **(asked if "noise" in asked else {}))
        job = submitted(engine, name, sampler, range(9), **({} if "noise" in asked else asked))
        results = engine.run()
        assert torch.equal(results[job], alone) and torch.equal(results[first], plain)
        assert engine.report.chain_kernel == "on"
    assert set(rows) == set(range(len(net.program(sampler))))


def test_previews_have_the_estimates_of_the_network() -> None:
    """x0 of the first half of the output, beside torch's."""
    seen: dict[str, list[Any]] = {}
    for kernel in ("on", "off"):
        engine = ulam.Engine(denoiser("pictures"), (2, 3), 4, chain_kernel=kernel)
        submitted(engine, "pictures", LEARNED[0], range(6), callback=seen.setdefault(kernel, []).append)
        engine.run()
    for ours, torchs in zip(seen["on"], seen["off"], strict=True):
        assert ours.row == torchs.row and ours.chains == torchs.chains and ours.x0.shape == ours.x.shape
        torch.testing.assert_close(ours.x0, torchs.x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("watched", [False, True])
def test_errors_against_float64_are_those_of_float32(name: str, watched: bool) -> None:
    """Of the kernel, walking or asked for the network alone, beside torch's float32."""
    net, shape = denoiser(name), NETWORKS[name].shape
    engine = ulam.Engine(net, shape, 5, chain_kernel="on")
    job = submitted(engine, name, LEARNED[0], range(8), callback=(lambda preview: None) if watched else None)
    ours = engine.run()[job]
    torchs = ulam.sample(net, LEARNED[0], shape, 8, 3, progress=False, **given(name, range(8)))
    module = net.net
    assert isinstance(module, torch.nn.Module)
    wide = given(name, range(8))
    wide = {key: {k: v.double() for k, v in value.items()} if isinstance(value, dict) else value
            for key, value in wide.items()}  # fmt: skip
    exact = ulam.sample(ulam.Denoiser(module.double(), SCHEDULE), LEARNED[0], shape, 8, 3, dtype=torch.float64,
                        progress=False, **wide)  # fmt: skip
    error = ((ours - exact).abs().max(), (torchs - exact).abs().max(), exact.abs().max())
    assert error[0] <= 4 * error[1] + 1e-6 * error[2] and error[0] <= 1e-4 * error[2]


@pytest.mark.parametrize("precision", ["bf16", "bf16_dot"])
def test_every_precision_gives_its_own_bits_in_any_company(precision: str) -> None:
    alone = ulam.sample(denoiser("vectors"), LEARNED[0], (4,), 6, 3, chain_kernel=precision, progress=False)
    engine = ulam.Engine(denoiser("vectors"), (4,), 4, chain_kernel=precision)
    job = engine.submit(LEARNED[0], 6, 3, callback=lambda preview: None)
    assert torch.equal(engine.run()[job], alone)
    assert not torch.equal(alone, walked("vectors", LEARNED[0], range(6)))


def test_variances_that_are_not_finite_stop_their_chain_alone() -> None:
    """v of one chain is infinite: walking, and where a neighbour has previews."""
    torch.manual_seed(1)
    net = Variances()
    inner = ulam.Denoiser(lambda x, t, y: torch.cat([net(x, t)[:, :4], net(x, t)[:, 4:] * y], 1), SCHEDULE)
    y = torch.ones(5, 1)
    y[3] = torch.inf
    clean: list[torch.Tensor] = []
    for callback in (None, lambda preview: None):
        engine = ulam.Engine(inner, (4,), 5, chain_kernel="on")
        engine.submit(LEARNED[0], 5, 3, cond={"y": y}, callback=callback)
        found = {result.chain: result for result in engine.stream()}
        assert [chain for chain, result in found.items() if result.failed is not None] == [3]
        clean.append(torch.stack([found[chain].x for chain in (0, 1, 2, 4)]))
    assert torch.equal(*clean)
