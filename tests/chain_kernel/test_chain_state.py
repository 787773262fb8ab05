"""What a call leaves behind, what a network holds beside its weights, chance, and jumps of the time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ulam
from mlp_cases import Tutorial
from ulam import chain_kernel


class Wrapped(Tutorial):
    """A network with something around it: ``around(self, x, t, m)``."""

    def __init__(self, around: Callable[..., Any], **held: Any) -> None:
        super().__init__(2, 8, nn.Tanh)
        self.around = around
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.around(self, x, t, super().forward(x, t))


def denoiser_of(net: Any) -> ulam.Denoiser:
    return ulam.Denoiser(net, ulam.schedules.vp_linear())


def sampled(denoiser: ulam.Denoiser, chain_kernel: str) -> torch.Tensor:
    return ulam.sample(denoiser, ulam.samplers.DDIM(4), (2,), 3, 5, chain_kernel=chain_kernel, progress=False)


def counted(net: Any, x: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    net.calls += 1
    return m * (1.0 if net.calls % 2 else -1.0)


def momentum(net: Any, x: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    m = m if net.last is None else m + 0.5 * net.last
    net.last = m
    return m


def kept(net: Any, x: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    net.last = m
    net.seen.append(t)
    return m


def cached(net: Any, x: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    if 2 not in net.table:
        net.table[2] = torch.arange(2.0)
    return m + net.table[2]


NUMBER = r"for some numbers of chains alone at .*/test_chain_state.py:\d+, expected one for any number"
REFUSED: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "a counter": (counted, {"calls": 0}, "calls differ"),
    "the last output": (momentum, {"last": None}, "calls differ"),
    "noise": (lambda net, x, t, m: m + torch.randn(2), {}, "random numbers"),
    "noise on the time": (lambda net, x, t, m: m * torch.rand_like(t)[:, None], {}, "random numbers"),
    "dropout": (lambda net, x, t, m: nn.functional.dropout(m, 0.5), {}, "random numbers"),
    "a branch at 4 chains": (lambda net, x, t, m: m if len(x) > 4 else -m, {}, NUMBER),
    "a branch at 777 chains": (lambda net, x, t, m: m if x.shape[0] != 777 else -m, {}, NUMBER),
    "a branch at 1 chain": (lambda net, x, t, m: m if x.shape[0] > 1 else -m, {}, "1 chains, or reads their number"),
    "a branch at each seventh": (lambda net, x, t, m: m if x.shape[0] % 7 else -m, {}, NUMBER),
    "a branch by elements": (lambda net, x, t, m: m if x.numel() <= 99 else -m, {}, NUMBER),
    "a branch by times": (lambda net, x, t, m: m if t.shape[0] <= 99 else -m, {}, NUMBER),
    "the number of chains": (lambda net, x, t, m: m * x.shape[0], {}, "the number of chains"),
    "rounding": (lambda net, x, t, m: torch.div(m, 0.1, rounding_mode="floor"), {}, "rounding_mode"),
    "a scaled difference": (lambda net, x, t, m: torch.rsub(m, x, alpha=3), {}, "alpha"),
    "no layer": (lambda net, x, t, m: x, {}, "net: got x as its output"),
    "a number beyond float32": (lambda net, x, t, m: m * 1e-42 * 1e42, {}, "not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_function_of_each_chains_arguments_is_refused(name: str) -> None:
    around, held, says = REFUSED[name]
    denoiser = denoiser_of(Wrapped(around, **held))
    with pytest.raises(TypeError, match=says) as raised:
        chain_kernel.compile(denoiser, (2,))
    assert str(raised.value).startswith("net: ")


@pytest.mark.parametrize("around", [kept, cached])
def test_what_a_call_leaves_without_reading_it_does_not_matter(around: Callable[..., Any]) -> None:
    """The network is left as it was: with nothing in it that the tracing has put there."""
    net = Wrapped(around, last=None, seen=[], table={})
    denoiser = denoiser_of(net)
    walked = sampled(denoiser, "on")
    assert net.last is None and net.seen == [] and net.table == {}
    torch.testing.assert_close(walked, sampled(denoiser, "off"))


def scaled(net: Any, x: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return m * net.held[0].a["b"]


class Callable_:
    """A network that is no module."""

    def __init__(self) -> None:
        self.net, self.scale = Tutorial(2, 8, nn.Tanh), 1.0

    def __call__(self, x: torch.Tensor, t: torch.Tensor, more: float = 1.0) -> torch.Tensor:
        return self.net(x, t) * self.scale * more


def _closure() -> tuple[Callable[..., Any], Callable[[], None]]:
    net, scale = Tutorial(2, 8, nn.Tanh), 1.0

    def change() -> None:
        nonlocal scale
        scale = 0.5

    return lambda x, t: net(x, t) * scale, change


def _in_a_list() -> tuple[Callable[..., Any], Callable[[], None]]:
    held = [SimpleNamespace(a={"b": 1.0})]
    return Wrapped(scaled, held=held), lambda: held[0].a.update(b=0.5)


def _of_an_object() -> tuple[Callable[..., Any], Callable[[], None]]:
    net = Callable_()
    return net, lambda: setattr(net, "scale", 0.5)


def _of_a_partial() -> tuple[Callable[..., Any], Callable[[], None]]:
    net = partial(Callable_(), more=1.0)
    return net, lambda: net.keywords.update(more=0.5)


@pytest.mark.parametrize("made", [_closure, _in_a_list, _of_an_object, _of_a_partial])
def test_what_a_network_holds_beside_its_weights_is_that_of_now(made: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    net, change = made()
    denoiser = denoiser_of(net)
    before = sampled(denoiser, "on")
    change()
    after = sampled(denoiser, "on")
    assert not torch.allclose(before, after, rtol=1e-2)
    torch.testing.assert_close(after, sampled(denoiser, "off"))


def test_a_refusal_is_forgotten_when_the_network_has_changed() -> None:
    net = Wrapped(lambda net, x, t, m: m + torch.randn(2))
    denoiser = denoiser_of(net)
    for _ in range(2):
        with pytest.raises(TypeError, match="random numbers"):
            sampled(denoiser, "on")
    net.around = lambda net, x, t, m: m
    torch.testing.assert_close(sampled(denoiser, "on"), sampled(denoiser, "off"))


@pytest.mark.parametrize("change", [lambda net: net.half(), lambda net: net.layers[0].weight.data.fill_(torch.nan)])
def test_what_fits_no_more_is_refused_at_every_call(change: Callable[[nn.Module], object]) -> None:
    net = Wrapped(lambda net, x, t, m: m)
    denoiser = denoiser_of(net)
    sampled(denoiser, "on")
    change(net)
    for _ in range(2):
        with pytest.raises(TypeError, match="float32"):
            sampled(denoiser, "on")


def test_a_method_of_the_class_is_that_of_now_and_hooks_of_all_modules_are_refused() -> None:
    class Patched(Tutorial):
        pass

    denoiser = denoiser_of(Patched(2, 8))
    sampled(denoiser, "on")
    Patched.forward = lambda self, x, t: 0.5 * Tutorial.forward(self, x, t)  # type: ignore[method-assign]
    torch.testing.assert_close(sampled(denoiser, "on"), sampled(denoiser, "off"))
    hook = nn.modules.module.register_module_forward_hook(lambda module, given, out: None)
    try:
        with pytest.raises(TypeError, match="hooks of every module"):
            sampled(denoiser, "on")
    finally:
        hook.remove()
    sampled(denoiser, "on")


def test_networks_are_read_in_several_threads_at_once() -> None:
    denoisers = [denoiser_of(Tutorial(2, 8)) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda denoiser: sampled(denoiser, "on"), denoisers))
    for one, denoiser in zip(found, denoisers, strict=True):
        torch.testing.assert_close(one, sampled(denoiser, "off"))


def test_a_whole_number_of_the_time_is_the_one_that_float32_gives() -> None:
    """0.29 1000 is 290 in float32, and 289.99999 of float32's 0.29 in float64: another row of a table."""
    table = nn.Embedding(1001, 2)
    around = lambda net, x, t, m: m + table((t * 1000).long()) + torch.floor(t * 100)[:, None]  # noqa: E731
    net = Wrapped(around, table=table)
    denoiser = ulam.Denoiser(net, ulam.schedules.flow(), predicts="flow")
    sampler = ulam.samplers.Euler(100)
    times = torch.tensor(denoiser.program(sampler).time).float()
    assert bool(((times.double() * 1000).long() != (times * 1000).long()).any())
    one, two = (
        ulam.sample(denoiser, sampler, (2,), 3, chain_kernel=kernel, progress=False) for kernel in ("on", "off")
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
