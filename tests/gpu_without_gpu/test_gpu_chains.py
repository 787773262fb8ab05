"""Whole chains on a GPU, as far as a stand-in with torch's own rules can tell (see gpu_stand_in): the CPU's bits by
engines, samples and policies; what they wait for; which weights they have; what fails, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ulam
from gpu_chain_cases import SAMPLERS, SCHEDULE, SEED, SHAPE, engine_of, moved, on_cpu, ran, told, walked
from gpu_stand_in_device import Gpu
from gpu_stand_in_tensors import quietly
from mlp_cases import CASES
from ulam.samplers import DDIM, DDPM, DynamicThreshold, RePaint

pytest.importorskip("triton", reason="triton is not installed")

pytest_plugins = "gpu_stand_in"
NAMES = ("tutorial", "chunk policy", "prompted", "per action", "posterior score", "learned variances")
EVENTS = ("event.synchronize",)


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_ask_has_the_bits_of_the_cpu(gpu: Any, name: str) -> None:
    shape, given, net = CASES[name].shape, told(name, 7), on_cpu(name)
    there = moved(net)
    samplers = (DDPM(6, variance="learned", clip=(-1, 1)),) if name == "learned variances" else SAMPLERS
    for sampler in samplers:
        expected = walked(net, sampler, shape, 7, **given)
        sampled = walked(there, sampler, shape, 7, device="cuda", **given)
        assert sampled.device == torch.device("cuda:0") and torch.equal(sampled.cpu(), expected)
        policy = ulam.Policy(there, sampler, shape, 7, SEED, device="cuda", **given)
        assert torch.equal(policy().cpu(), expected)
        for slots in (3, 8):
            engine = engine_of(there, shape, slots)
            assert torch.equal(ran(engine, [(sampler, 7, given)])[0], expected)
            assert engine.report.chain_kernel == "on" and not engine.report.fallbacks


def test_edm_scales_what_the_network_reads(gpu: Any) -> None:
    net = on_cpu("scalar time", ulam.schedules.edm())
    expected = walked(net, DDPM(5), (2,), 6)
    assert torch.equal(ran(engine_of(moved(net), (2,)), [(DDPM(5), 6, {})])[0], expected)
    assert torch.equal(walked(moved(net), DDPM(5), (2,), 6, device="cuda").cpu(), expected)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
@pytest.mark.parametrize("graphs", [True, False])
def test_a_chain_has_the_same_bits_in_any_company(gpu: Any, device: str, graphs: bool) -> None:
    """Beside jobs whose ticks need Python: previews, a caller's noise, reductions, intervals of guidance, known images.
    The device need not be the current one."""
    net = on_cpu()
    given, seen = told("chunk policy", 6, guided=False), []
    alone = walked(net, DDPM(6), SHAPE, 6, **given)
    guided = told("chunk policy", 5)
    image = {"known": torch.rand(*SHAPE), "mask": torch.eye(4, 3)}
    others: list[tuple[Any, Any, dict[str, Any]]] = [
        (DDIM(5), 5, guided | {"guidance_interval": (0.2, 0.7)}),
        (DDIM(4, clip=DynamicThreshold(0.9)), 5, guided),
        (RePaint(6, 2, 2), 5, told("chunk policy", 5, guided=False) | image),
        (DDPM(5), 5, guided | {"callback": lambda preview: seen.append(preview.x0.cpu())}),
        (DDPM(4), 5, guided | {"noise": lambda row, chains: torch.ones(len(chains), *SHAPE)}),
        (DDIM(5), 5, guided),
    ]
    for slots in (4, 9):
        engine = engine_of(moved(net, device), SHAPE, slots, device, graphs=graphs)
        plain = ulam.Engine(net, SHAPE, slots, chain_kernel="on")
        jobs = [*others, (DDPM(6), 6, given)]
        ours, expected = ran(engine, jobs), ran(plain, jobs)
        assert all(map(torch.equal, ours, expected)) and torch.equal(ours[-1], alone)
        assert not engine.report.fallbacks
    assert seen and bool(gpu.records) == graphs


def on_device(given: dict[str, Any]) -> dict[str, Any]:
    def there(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: there(one) for key, one in value.items()}
        return ulam.shared(value.tensor.to("cuda:0")) if hasattr(value, "tensor") else value.to("cuda:0")

    return {key: value if key == "guidance" else there(value) for key, value in given.items()}


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
@pytest.mark.parametrize("name", ["tutorial", "chunk policy", "prompted"])
@pytest.mark.parametrize("where", ["on the host", "on the device"])
def test_admission_and_walks_wait_for_nothing(gpu: Any, name: str, where: str) -> None:
    """But for one comparison of the weights when an engine that was at rest begins, and events: a staging buffer is
    free again, results are out. Conditioning on the device is read when it is submitted."""
    given, shape, net = told(name, 9), CASES[name].shape, on_cpu(name)
    engine = engine_of(moved(net), shape)
    ready = on_device(given) if where == "on the device" else given
    for seed in range(3):
        job = engine.submit(DDPM(6), 9, seed, **ready)
        other = engine.submit(DDIM(4 + seed), 9, seed, **ready)
        gpu.forget()
        results = engine.run()
        found = gpu.waited(but=EVENTS)
        assert [wait.kind for wait in found] == ["equal"], found
        for one, sampler in ((job, DDPM(6)), (other, DDIM(4 + seed))):
            expected = ulam.sample(net, sampler, shape, 9, seed, chain_kernel="on", progress=False, **given)
            assert torch.equal(results[one].cpu(), expected)
    names = [launch for launch, *_ in gpu.launches]
    assert names.count("triton::walk_tiles") <= engine.report.ticks and "ulam::step" not in names


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
@pytest.mark.parametrize("how", ["previews", "noise", "interval"])
def test_ticks_that_need_python_wait_for_nothing(gpu: Any, how: str) -> None:
    more: dict[str, Any] = {
        "previews": {"callback": lambda preview: None},
        "noise": {"noise": lambda row, chains: torch.ones(len(chains), *SHAPE, device="cuda:0")},
        "interval": {"guidance_interval": (0.2, 0.7)},
    }[how]
    engine = engine_of(moved(on_cpu()))
    for seed in range(2):
        engine.submit(DDPM(6), 9, seed, **told("chunk policy", 9), **more)
        gpu.forget()
        engine.run()
        found = gpu.waited(but=(*EVENTS, *(("synchronize",) if seed == 0 else ())))  # of captures
        assert [wait.kind for wait in found] == ["equal"], found
    assert any("call_tiles" in name for name, *_ in gpu.launches) or gpu.records


def in_place(net: Any) -> None:
    with torch.no_grad():
        net.first.weight.mul_(1.5)


def uncounted(net: Any) -> None:
    """As a kernel of one's own writes, or the replay of a graph."""
    weight = net.first.weight
    if weight.is_cuda:
        inner = weight.inner
        Gpu.current.launch("a kernel of one's own", 0, lambda _: quietly(inner.mul_, 1.5))
    else:
        weight.data.mul_(1.5)


def another_storage(net: Any) -> None:
    net.first.weight.data = net.first.weight.data * 1.5


def another_tensor(net: Any) -> None:
    net.first.weight = nn.Parameter(net.first.weight.detach() * 1.5)


def loaded(net: Any) -> None:
    net.load_state_dict({key: value * 1.5 for key, value in net.state_dict().items()})


def another_layer(net: Any) -> None:
    net.last = nn.Linear(48, 12, bias=False).to(net.first.weight.device)
    nn.init.constant_(net.last.weight, 0.02)


CHANGES = (in_place, uncounted, another_storage, another_tensor, loaded, another_layer)


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(gpu: Any, change: Any) -> None:
    """By an engine, also one whose ticks are captured, by samples and policies."""
    net = on_cpu()
    there, given = moved(net), told("chunk policy", 6)
    engine, interval = engine_of(there), {"guidance_interval": (0.2, 0.7)}
    policy = ulam.Policy(there, DDIM(4), SHAPE, 6, SEED, device="cuda", **given)
    for change_now in (None, change):
        if change_now is not None:
            change_now(net.net)
            change_now(there.net)
        expected = walked(net, DDIM(4), SHAPE, 6, **given)
        plain = ulam.Engine(net, SHAPE, 4, chain_kernel="on")
        jobs = [(DDIM(4), 6, given), (DDIM(5), 6, given | interval)]
        assert all(map(torch.equal, ran(engine, jobs), ran(plain, jobs)))
        assert torch.equal(walked(there, DDIM(4), SHAPE, 6, device="cuda", **given).cpu(), expected)
        policy.calls = 0
        assert torch.equal(policy().cpu(), expected)


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
@pytest.mark.parametrize("change", [in_place, another_storage, uncounted])
def test_while_chains_run_writes_are_seen_that_torch_counts(gpu: Any, change: Any) -> None:
    """Between two events of one run; one that it does not count when the engine next begins with empty slots."""
    there = moved(on_cpu())
    engine, given = engine_of(there, slots=2), told("chunk policy", 4, guided=False)
    before = walked(moved(there, "cpu"), DDIM(4), SHAPE, 4, **given)
    gpu.patience = 0  # results are there when they are first asked for
    engine.submit(DDIM(4), 4, SEED, **given)
    found = {}
    for result in engine.stream():
        if not found:
            change(there.net)
        found[result.chain] = result.x.cpu()
    after = walked(moved(there, "cpu"), DDIM(4), SHAPE, 4, **given)
    assert not torch.equal(before, after)
    assert all(torch.equal(found[chain], before[chain]) for chain in (0, 1))
    then = before if change is uncounted else after
    assert all(torch.equal(found[chain], then[chain]) for chain in (2, 3))
    assert torch.equal(ran(engine, [(DDIM(4), 4, given)])[0], after)


class Holding(nn.Module):
    """Weights in a parameter with two names, a buffer, an attribute, a list and a dict."""

    def __init__(self, device: str) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.into, self.out = nn.Linear(3, 16), nn.Linear(16, 3)
        self.again = self.into
        self.register_buffer("scale", torch.rand(16))
        self.to(device)
        self.shift = torch.rand(16).to(device)
        self.listed, self.named = [torch.rand(3).to(device)], {"bias": torch.rand(3).to(device)}

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.into(x) * self.scale + self.again(x) + self.shift + t[:, None] / 1000)
        return self.out(h) * self.listed[0] + self.named["bias"]


def test_tracing_leaves_a_network_as_it_was(gpu: Any) -> None:
    """Its tensors are those that it had, on their device, also where it is refused; of a closure too."""
    net, plain = Holding("cuda:0"), Holding("cpu")
    weight = torch.rand(3)

    def closed(net: Any, weight: torch.Tensor) -> ulam.Denoiser:
        return ulam.Denoiser(lambda x, t: net(x, t) * weight, SCHEDULE)

    own = weight.to("cuda:0")
    here, there = closed(plain, weight), closed(net, own)
    before = [net.shift, net.listed[0], net.named["bias"], *net.parameters(), *net.buffers()]
    expected = walked(here, DDIM(4), (3,), 5)
    assert torch.equal(walked(there, DDIM(4), (3,), 5, device="cuda").cpu(), expected)
    with pytest.raises(TypeError, match=r"^net: got .*sin"):
        walked(ulam.Denoiser(lambda x, t: torch.sin(net(x, t)), SCHEDULE), DDIM(4), (3,), 5, device="cuda")
    after = [net.shift, net.listed[0], net.named["bias"], *net.parameters(), *net.buffers()]
    assert all(a is b for a, b in zip(before, after, strict=True)) and net.again is net.into
    assert all(tensor.is_cuda for tensor in after)
    net.shift.mul_(2.0), own.mul_(2.0), plain.shift.mul_(2.0), weight.mul_(2.0)
    changed = walked(here, DDIM(4), (3,), 5)
    assert torch.equal(walked(there, DDIM(4), (3,), 5, device="cuda").cpu(), changed)
    assert not torch.equal(changed, expected)


def test_chains_that_fail_are_told_and_fail_alone(gpu: Any) -> None:
    net = on_cpu()
    there, given = moved(net), told("chunk policy", 5, guided=False)
    clean = walked(net, DDPM(6), SHAPE, 5, **given)
    given["cond"]["state"][2, 0, 0] = torch.nan
    for more in ({}, {"callback": lambda preview: None}):
        engine = engine_of(there)
        engine.submit(DDPM(6), 5, SEED, **given, **more)
        found = {result.chain: result for result in engine.stream()}
        assert {chain: result.failed for chain, result in found.items() if result.failed is not None} == {2: 0}
        assert all(torch.equal(found[chain].x.cpu(), clean[chain]) for chain in (0, 1, 3, 4))
    with pytest.warns(RuntimeWarning, match=r"1 of 5 chains turned NaN or Inf \(chain 2 at row 0"):
        out = walked(there, DDPM(6), SHAPE, 5, device="cuda", **given).cpu()
    assert out[2].isnan().all() and torch.equal(out[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])
    policy = ulam.Policy(there, DDPM(6), SHAPE, 5, SEED, device="cuda", **given)
    with pytest.raises(RuntimeError, match=r"^actions: got NaN or Inf in chain 2 at row 0"):
        policy()


def test_a_policy_takes_observations_from_anywhere(gpu: Any) -> None:
    net = on_cpu()
    seen = [told("chunk policy", 2, guided=False)["cond"]["state"] + call for call in range(3)]
    policy = ulam.Policy(moved(net), DDPM(6), SHAPE, 2, SEED, cond={"state": seen[0]}, device="cuda")
    plain = ulam.Policy(net, DDPM(6), SHAPE, 2, SEED, cond={"state": seen[0]})
    first = torch.ones(2, *SHAPE)
    for state in seen:
        expected = plain({"state": state}, x_init=first)
        assert torch.equal(policy({"state": state.to("cuda:0")}, x_init=first.to("cuda:0")).cpu(), expected)
    assert policy.calls == 3


@pytest.mark.parametrize("own", [False, True])
def test_a_policy_holds_what_is_known(gpu: Any, own: bool) -> None:
    """The elements of a mask, which may live anywhere, with the bits of the CPU."""
    net, given = on_cpu(), told("chunk policy", 2, guided=False)
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool) if own else torch.zeros(SHAPE, dtype=torch.bool)
    mask[..., 0] = True
    known = torch.arange(2.0 * SHAPE[0] * SHAPE[1]).view(2, *SHAPE)
    plain = ulam.Policy(net, DDPM(6), SHAPE, 2, SEED, mask=mask, **given)
    policy = ulam.Policy(moved(net), DDPM(6), SHAPE, 2, SEED, device="cuda", mask=mask.to("cuda:0"), **given)
    expected = plain(known=known)
    assert torch.equal(policy(known=known.to("cuda:0")).cpu(), expected)
    where = mask.expand(2, *SHAPE)
    assert torch.equal(expected[where], known[where])


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
def test_what_does_not_fit_is_named_with_the_way_out(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = on_cpu("tutorial")
    there = moved(net)
    with pytest.raises(ValueError, match=r"^device: .*got 'cuda', expected 'triton'.*, or chain_kernel='auto'"):
        engine_of(there, (2,), backend="cuda")
    with pytest.raises(ValueError, match=r"^device: got cuda:0, but the network's .* is on cpu"):
        ulam.Policy(net, DDIM(4), (2,), device="cuda")
    with pytest.raises(ValueError, match=r"^dtype: got torch.bfloat16, expected torch.float32"):
        engine_of(there, (2,), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"^device: got 'meta', expected cpu or cuda"):
        ulam.Policy(there, DDIM(4), (2,), device="meta")
    monkeypatch.setenv("ULAM_BACKEND", "cuda")
    engine = engine_of(there, (2,), kernel="auto")
    job = engine.submit(DDIM(4), 3, SEED)
    assert torch.isfinite(engine.run()[job].cpu()).all()
    assert "expected 'triton', which has this operation" in engine.report.chain_kernel


@pytest.mark.parametrize("kernel", ["bf16", "bf16_dot", "tf32x3"])
def test_precisions_are_asked_for_as_on_the_cpu(gpu: Any, kernel: str) -> None:
    """Here the CPU computes them: on a GPU "bf16_dot" is "bf16", and "tf32x3" is float32 by tensor cores."""
    net, given = on_cpu(), told("chunk policy", 4)
    expected = walked(net, DDIM(4), SHAPE, 4, kernel, **given)
    engine = engine_of(moved(net), kernel=kernel)
    assert torch.equal(ran(engine, [(DDIM(4), 4, given)])[0], expected) and engine.report.chain_kernel == kernel
    policy = ulam.Policy(moved(net), DDIM(4), SHAPE, 4, SEED, precision=kernel, device="cuda", **given)
    assert torch.equal(policy().cpu(), expected)
    assert torch.equal(expected, walked(net, DDIM(4), SHAPE, 4, **given)) == (kernel == "tf32x3")
