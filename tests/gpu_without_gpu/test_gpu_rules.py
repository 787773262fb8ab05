"""The engine on a GPU, as far as a stand-in with torch's own rules can tell (see gpu_stand_in): the CPU's
bits whatever the options, what runs eagerly, and weights that change under a captured graph."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, WHOLE, net
from gpu_cases import GUIDED, check, make, submission
from ulam.samplers import DDIM, DDPM

pytestmark = pytest.mark.filterwarnings("ignore:norms. got 'chain'")

pytest_plugins = "gpu_stand_in"


# ------------------------------------------------------------------------------------------------ captures


OPTIONS = {
    "plain": {},
    "doubled": {"doubled": True},
    "channels last": {"channels_last": True},
    "gradients": {"gradients": True},
}


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("graphs", [True, False])
def test_options_of_the_network_keep_the_bits(gpu, how, graphs):
    options = ulam.NetworkOptions(**OPTIONS[how])
    engine = make(gpu, options=options, graphs=graphs)
    check(engine, submission(DDIM(steps=6), **GUIDED), options=options)
    assert not engine.report.fallbacks and bool(gpu.records) == graphs


def test_previews_and_noise_of_the_caller_run_eagerly(gpu):
    seen = {}

    def noise(row, chains):
        return ulam.noise.normal(SHAPE, seed=5, chains=chains, row=row)

    def submit(engine):
        previews = seen.setdefault(engine.report.device, [])
        engine.submit(
            DDPM(steps=5), 6, 5, callback=lambda preview: previews.append((preview.x.cpu(), preview.x0.cpu()))
        )
        return engine.submit(DDPM(steps=5), 6, 5, noise=noise)

    check(make(gpu), submit)
    assert len(seen["cpu"]) == len(seen["cuda:0"]) > 5 and not gpu.records
    for there, here in zip(seen["cuda:0"], seen["cpu"], strict=True):
        assert all(map(torch.equal, there, here))


def test_chains_that_fail_are_told_and_stopped(gpu):
    time = float(DDPM(steps=11).program(SCHEDULE, "eps").time[6])

    def network(x, t, y):
        return net(x, t).masked_fill(((y == 1) & (t == time)).view(-1, 1, 1, 1), float("nan"))

    engine = make(gpu, network)
    engine.submit(DDPM(steps=11), 4, seed=5, cond={"y": torch.arange(4)})
    results = {result.chain: result for result in engine.stream()}
    assert [results[chain].failed for chain in range(4)] == [None, 6, None, None]
    assert all(torch.equal(results[chain].x.cpu(), WHOLE[chain]) for chain in (0, 2, 3))
    assert gpu.records[0].replays == 10


# ------------------------------------------------------------------------------------------------ networks


class Scaled(torch.nn.Module):
    """Rows are independent; a parameter and a buffer enter element by element."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.0, 7))
        self.register_buffer("shift", torch.linspace(-0.1, 0.1, 7))

    def forward(self, x, t):
        return net(x, t) * self.weight + self.shift


def by_data(module, name, new):
    getattr(module, name).data = new


def by_attribute(module, name, new):
    setattr(module, name, torch.nn.Parameter(new) if name == "weight" else new)


def by_load(module, name, new):
    module.load_state_dict({**module.state_dict(), name: new}, assign=True)


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
@pytest.mark.parametrize("name", ["weight", "shift"])
@pytest.mark.parametrize("replace", [by_data, by_attribute, by_load])
def test_weights_replaced_after_the_capture_are_those_used(gpu, replace, name):
    on_cpu, on_gpu = Scaled(), Scaled().to("cuda:0")
    engine = make(gpu, denoiser=ulam.Denoiser(on_gpu, SCHEDULE))
    run = partial(check, engine, submission(DDPM(steps=11), 4), denoiser=ulam.Denoiser(on_cpu, SCHEDULE))
    run()
    new = torch.linspace(-1.0, 1.0, 7)
    replace(on_cpu, name, new)
    replace(on_gpu, name, new.to("cuda:0"))
    run()
    run()
    assert not engine.report.fallbacks and gpu.records[-1].replays > 11


def test_weights_changed_in_place_need_no_other_capture(gpu):
    on_cpu, on_gpu = Scaled(), Scaled().to("cuda:0")
    engine = make(gpu, denoiser=ulam.Denoiser(on_gpu, SCHEDULE))
    for factor in (1.0, 0.5, 2.0):
        for module in (on_cpu, on_gpu):
            with torch.no_grad():
                module.weight.mul_(factor)
        check(engine, submission(DDPM(steps=11), 4), denoiser=ulam.Denoiser(on_cpu, SCHEDULE))
    assert len(gpu.records) == 1


def test_the_weight_cache_of_an_outer_autocast_is_not_captured(gpu):
    """What autocast made of the weights is gone when it ends, and made anew inside the next."""
    torch.manual_seed(0)
    linear, cached = torch.nn.Linear(7, 7).to("cuda:0"), []

    def network(x, t):
        if torch.cuda.is_current_stream_capturing():
            cached.append(torch.is_autocast_cache_enabled())
        return torch.tanh(linear(x)).float()

    captured, eager = make(gpu, network), make(gpu, network, graphs=False)
    for seed in range(3):
        results = []
        for engine in (captured, eager):
            job = engine.submit(DDPM(steps=11), 4, seed)
            with torch.autocast("cuda", torch.bfloat16):
                results.append(engine.run()[job].cpu())
        assert torch.equal(*results)
    assert not captured.report.fallbacks and gpu.records[-1].replays > 11
    assert cached and not any(cached)
