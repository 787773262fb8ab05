"""A network whose instructions would not give what it gives is refused; one that has changed is read again, or not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ulam
from ulam.chain_kernel.compiled import CompiledChain
from ulam.samplers import DDIM

SCHEDULE, SAMPLER = ulam.schedules.vp_cosine(100), DDIM(6, spacing="trailing")
torch.manual_seed(3)
LAYER, WIDE = nn.Linear(4, 4), nn.Linear(8, 4)
EMBEDDING = torch.randn(100, 4)


def sampled(net: Any, kernel: str, shape: tuple[int, ...] = (4,), **given: Any) -> torch.Tensor:
    denoiser = ulam.Denoiser(net, SCHEDULE)
    return ulam.sample(denoiser, SAMPLER, shape, 3, 0, chain_kernel=kernel, progress=False, **given)


def halved(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    x *= 0.5
    return LAYER(x)


def scaled_observation(x: torch.Tensor, t: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    o = o.flatten(1)
    o /= 255.0
    return WIDE(torch.cat([x, o], 1))


def divided_time(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    t.div_(100)
    return LAYER(x) * t[:, None]


def softmax_of_chains(x: torch.Tensor, t: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
    return LAYER(x) + o.softmax(0)


OBSERVED = {"o": torch.randn(3, 4)}
REFUSED: dict[str, tuple[Callable[..., torch.Tensor], tuple[int, ...], dict[str, Any], str]] = {
    "writes x": (halved, (4,), {}, "a write into its argument x"),
    "writes what it is told": (scaled_observation, (4,), OBSERVED, "a write into its argument"),
    "writes t": (divided_time, (4,), {}, "a write into its argument t"),
    "variances that lie elsewhere": (
        lambda x, t: torch.cat([x, x], -1), (3, 2), {}, r"an output \[chains, 3, 4\]\), expected \['chains', 3, 2\]"),
    "an output that is turned": (lambda x, t: x.transpose(1, 2), (3, 2), {}, r"an output \[chains, 2, 3\]"),
    "a dimension more": (lambda x, t: LAYER(x)[..., None], (4,), {}, r"an output \[chains, 4, 1\]"),
    "a softmax over chains": (softmax_of_chains, (4,), OBSERVED, "chain"),
    "a sum over chains so far": (lambda x, t, o: LAYER(x) + o.cumsum(0), (4,), OBSERVED, "chain"),
    "an order of chains": (lambda x, t, o: LAYER(x) + o.argsort(0), (4,), OBSERVED, "chain"),
    "chains turned about": (lambda x, t, o: LAYER(x) + o.flip(0), (4,), OBSERVED, "an operation over chains"),
    "chains by number": (lambda x, t: LAYER(x)[torch.arange(x.shape[0] - 1, -1, -1)], (4,), {}, "mixes chains"),
    "times of other chains": (lambda x, t: LAYER(x) + t.cumsum(0)[:, None], (4,), {}, "chain"),
    "the number of chains": (lambda x, t: LAYER(x) + t[:, None] / x.shape[0], (4,), {}, "chain"),
    "the place of a chain": (
        lambda x, t: LAYER(x) + (t + torch.arange(x.shape[0]))[:, None], (4,), {}, "chain"),
    "two batches as one": (
        lambda x, t: torch.cat([x, LAYER(x)]).chunk(2)[1], (4,), {}, r"at .*test_chain_agreement.py:\d+ \(.*chains"),
    "one number of chains": (lambda x, t: x.reshape(len(x), -1).reshape(len(x), 4, 2), (4, 2), {}, "chains"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernel_would_do_otherwise_is_refused_by_name(name: str) -> None:
    net, shape, cond, says = REFUSED[name]
    with pytest.raises(TypeError, match=rf"^net: got .*{says}"):
        sampled(net, "on", shape, **({"cond": cond} if cond else {}))
    if "write" not in says and "an output" not in says:  # which torch's own loop refuses too
        given: dict[str, Any] = {"cond": cond} if cond else {}
        assert torch.equal(sampled(net, "auto", shape, **given), sampled(net, "off", shape, **given))


def test_a_plain_function_is_named_with_its_line() -> None:
    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)  # here

    with pytest.raises(TypeError, match=rf"^net: got sin at .*:{net.__code__.co_firstlineno + 1} \("):
        sampled(net, "on")


class Encoded(nn.Module):
    """An observation through an encoder, beside x."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.layer = encoder, nn.Linear(8, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        seen = self.encoder(o)
        seen = seen[0][:, -1] if isinstance(seen, tuple) else seen.flatten(1)[:, :4]
        return self.layer(torch.cat([x, seen], 1))


@pytest.mark.parametrize(
    "encoder",
    [lambda: nn.GRU(4, 4, batch_first=True, num_layers=2, dropout=0.3),
     lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), lambda: nn.BatchNorm1d(2)],
    ids=["gru", "transformer", "batch norm"],
)  # fmt: skip
def test_encoders_of_observations_are_computed_once_a_chain(encoder: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net, told = Encoded(encoder()).eval(), {"o": torch.randn(3, 2, 4)}
    ours, theirs = sampled(net, "on", cond=told), sampled(net, "off", cond=told)
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


class Held(nn.Module):
    """A factor that is no weight, kept in one way or another."""

    class Slotted:
        __slots__ = ("factor",)

        def __init__(self) -> None:
            self.factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tensor, self.array = nn.Linear(4, 4), torch.tensor(1.0), np.ones(1)
        self.some, self.line, self.slotted = {1.0}, deque([1.0]), Held.Slotted()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        factor = self.tensor.item() * float(self.array[0]) * max(self.some) * self.line[0] * self.slotted.factor
        return self.layer(x) * factor


CHANGES: dict[str, Callable[[Any], object]] = {
    "a tensor that is read": lambda net: net.tensor.mul_(2),
    "an array": lambda net: net.array.__imul__(2),
    "a set": lambda net: net.some.add(2.0),
    "a deque": lambda net: net.line.appendleft(2.0),
    "an object with slots": lambda net: setattr(net.slotted, "factor", 2.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_numbers_that_are_no_weights_are_those_of_now(change: str) -> None:
    net = Held()
    policy = ulam.Policy(ulam.Denoiser(net, SCHEDULE), SAMPLER, (4,), 3)
    before = policy().clone()
    policy.calls = 0
    assert torch.equal(policy(), before)
    CHANGES[change](net)
    policy.calls = 0
    now = policy()
    assert not torch.equal(now, before)
    theirs = sampled(net, "off")
    assert torch.equal(now, sampled(net, "on")) and (now - theirs).abs().max() <= 2e-5 * theirs.abs().max()


class Watched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.act, self.gain = nn.Linear(8, 4), nn.Tanh(), 1.0

    def forward(self, x: torch.Tensor, t: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        return self.act(self.layer(torch.cat([x, o], 1))) * self.gain


class Stop(BaseException):
    """As KeyboardInterrupt."""


@pytest.mark.parametrize("where", ["of_rows", "of_chains"])
def test_a_policy_interrupted_while_it_reads_new_weights_is_not_left_with_half(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, told = Watched(), {"o": torch.randn(3, 4)}
    policy = ulam.Policy(ulam.Denoiser(net, SCHEDULE), SAMPLER, (4,), 3, cond=told)
    policy()
    net.layer.weight.data.mul_(2)

    def stop(*_: Any, **__: Any) -> Any:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(f"ulam.chain_kernel.network_read.NetworkRead.{where}", stop)
        policy(told)
    for o in (told["o"], -told["o"]):
        policy.calls = 0
        assert torch.equal(policy({"o": o}), sampled(net, "on", cond={"o": o}))


def test_a_trace_that_fails_or_is_interrupted_leaves_what_was(monkeypatch: pytest.MonkeyPatch) -> None:
    net, told = Watched(), {"o": torch.randn(3, 4)}
    policy = ulam.Policy(ulam.Denoiser(net, SCHEDULE), SAMPLER, (4,), 3, cond=told)

    def right() -> bool:
        policy.calls = 0
        return torch.equal(policy(), sampled(net, "on", cond=told))

    assert right()
    before, net.act = net.act, nn.Softmax(-1)  # type: ignore[assignment]
    with pytest.raises(TypeError, match="softmax"):
        policy()
    net.act = before
    net.layer.weight.data.mul_(2)
    assert right()
    net.gain = 2.0
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(CompiledChain, "_made", lambda *_: (_ for _ in ()).throw(Stop))
        policy()
    net.gain = 1.0
    net.layer.weight.data.mul_(2)
    assert right()


def test_observations_of_another_shape_are_refused_and_change_nothing() -> None:
    net, told = Watched(), {"o": torch.randn(3, 4)}
    policy = ulam.Policy(ulam.Denoiser(net, SCHEDULE), SAMPLER, (4,), 3, cond=told)
    expected = policy().clone()
    for wrong in (torch.randn(3, 9), torch.randn(3, 4, 3), torch.randn(3, 2), ulam.shared(torch.randn(4))):
        with pytest.raises(ValueError, match=r"^cond\['o'\]: got .*, expected floats \[chains, 4\] as the network"):
            policy({"o": wrong})
    policy.calls = 0
    assert torch.equal(policy(), expected)
    guided = ulam.Policy(
        ulam.Denoiser(net, SCHEDULE), SAMPLER, (4,), 3, cond=told, uncond={"o": torch.zeros(3, 4)}, guidance=2.0
    )
    expected = guided().clone()
    with pytest.raises(ValueError, match="expected floats"):
        guided({"o": -told["o"]}, uncond={"o": torch.zeros(3, 5)})
    guided.calls = 0
    assert torch.equal(guided(), expected)


def test_a_refusal_over_weights_that_are_not_numbers_ends_with_them() -> None:
    net = Watched()
    good = {name: value.clone() for name, value in net.state_dict().items()}
    denoiser, told = ulam.Denoiser(net, SCHEDULE), {"o": torch.randn(3, 4)}
    net.layer.weight.data.fill_(torch.nan)
    given: dict[str, Any] = {"cond": told, "progress": False, "chain_kernel": "on"}
    with pytest.raises(TypeError, match="finite"):
        ulam.sample(denoiser, SAMPLER, (4,), 3, 0, **given)
    net.load_state_dict(good)
    assert torch.isfinite(ulam.sample(denoiser, SAMPLER, (4,), 3, 0, **given)).all()
