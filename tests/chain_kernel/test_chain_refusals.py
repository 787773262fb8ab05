"""What the chain kernel cannot hold is refused by name and line; weights are read anew; no chain knows its company."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import ulam
from mlp_cases import CASES, Tutorial
from ulam import chain_kernel


def compiled(net: Any, shape: tuple[int, ...] = (2,), cond: dict[str, Any] | None = None) -> chain_kernel.CompiledChain:
    return chain_kernel.compile(ulam.Denoiser(net, ulam.schedules.vp_linear()), shape, cond)


class Sine(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)  # refused


class AcrossChains(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)  # refused


class Turned(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.flip(0) + x  # refused


class TimesOfOthers(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t[0]  # refused


class Attention(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x @ (x.T @ x)  # refused


class Branching(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x  # refused


class LookedUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.clock = nn.Embedding(1000, 2)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + self.clock(t)  # refused


class Gradient(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad((x**2).sum(), x)[0]


class WideNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 600), nn.LayerNorm(600), nn.Linear(600, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # refused


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.Tanh()) for _ in range(65)])

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # refused


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(x.shape[0])[:, None]  # refused


class FarClamp(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.clamp(0, 6)  # refused


class Chosen(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.where(t[:, None] > 500, x, -x)  # refused


class Padded(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + nn.functional.pad(x, (0, 0, 1, -1))  # refused


class Counted(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x + torch.full_like(x, x.shape[0])  # refused


class Level(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(x, beta=0)  # refused


class NormOfAll(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return nn.functional.rms_norm(x[:, None], (1, 2))[:, 0]  # refused


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (FarClamp, "a clamp at 6), expected numbers from -2.0 to 2.0"),
        (Chosen, "a mask that is no constant), expected a constant one"),
        (Padded, "expected one by constants, of dimensions behind the chains'"),
        (Counted, "a constant that the number of chains gives"),
        (Level, "Softplus of beta 0"),
        (NormOfAll, "RMSNorm over 2 dimensions"),
        (Sine, "sin"),
        (AcrossChains, "mean"),
        (Turned, "flip"),
        (TimesOfOthers, "select"),
        (Attention, ""),
        (Branching, "depends on a tensor's values), expected torch.where, or tensors"),
        (LookedUp, "but got torch.float32 instead), expected time='index' (--time index), whole training steps"),
        (WideNorm, "600"),
        (Deep, "at most 128"),
        (Fixed, "differs between chains"),
    ],
)
def test_a_refusal_names_what_it_is_and_where(net: type[nn.Module], says: str, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(TypeError) as error:
        compiled(net())
    assert capfd.readouterr() == ("", "")
    line = str(error.value).split("\n")[0]
    lines, begin = inspect.getsourcelines(net.forward)
    at = begin + next(number for number, text in enumerate(lines) if "return" in text)
    assert line.startswith("net: got ") and "expected" in line
    assert f"{__file__}:{at}" in line
    assert says in line


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (lambda: nn.Conv2d(1, 1, 3), (1, 8, 8)),
        (lambda: Tutorial().double(), (2,)),
        (lambda: Tutorial().to(torch.bfloat16), (2,)),
        (lambda: Tutorial(257), (257,)),
        (Gradient, (2,)),
    ],
)
def test_other_networks_are_refused_in_one_line(net: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match=r"^net: got .*, expected "):
        compiled(net(), shape)


def test_weights_that_do_not_fit_are_named_with_their_layer() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Conv1d(2, 2, 3)))
    for given in (net, lambda x, t: net(x)):
        with pytest.raises(TypeError, match=r"^net: got weights \[2, 2, 3\] .*, 1\.0\.weight of a Conv1d, expected "):
            compiled(given)


def test_what_fails_once_it_is_computed_is_refused_with_the_way_out() -> None:
    table = torch.zeros(1000, 2)
    with pytest.raises(TypeError, match=r"^net: got .*index_select.*, expected time='index' \(--time index\), whole"):
        compiled(lambda x, t: x + table.index_select(0, t))


def test_what_is_too_wide_is_refused_before_it_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ulam.chain_kernel.compiled.trace", lambda *_: pytest.fail("traced"))
    with pytest.raises(TypeError, match=r"^net: got x of 12288 elements, expected at most 256$"):
        compiled(lambda x, t: x, (3, 64, 64))


def test_weights_that_are_not_numbers_are_refused() -> None:
    net = Tutorial()
    with torch.no_grad():
        net.layers[2].weight[0, 0] = float("nan")
    with pytest.raises(TypeError, match=r"net: got .*finite"):
        compiled(net)


@pytest.mark.parametrize("how", ["in place", "behind autograd's back", "loaded", "by an optimizer"])
def test_weights_that_have_changed_are_read_again(how: str) -> None:
    net, other = Tutorial(), Tutorial()
    chain = compiled(net)
    before = chain.network.data.clone(), chain.row_vectors(torch.tensor([3.0]))
    assert not chain.refresh()
    if how == "in place":
        with torch.no_grad():
            net.layers[0].weight.mul_(2)
    elif how == "behind autograd's back":
        net.layers[0].weight.data.mul_(2)
    elif how == "loaded":
        net.load_state_dict(other.state_dict())
    else:
        net(torch.ones(1, 2), torch.ones(1)).sum().backward()
        torch.optim.SGD(net.parameters(), 1.0).step()
    assert chain.refresh()
    fresh = compiled(net)
    assert not torch.equal(chain.network.data, before[0])
    assert torch.equal(chain.network.data, fresh.network.data)
    times = torch.tensor([3.0])
    assert not torch.equal(chain.row_vectors(times), before[1])
    assert torch.equal(chain.row_vectors(times), fresh.row_vectors(times))


def test_a_network_in_training_stays_so_and_dropout_is_off() -> None:
    net = CASES["implicit policy, unconditional"].make()
    net.train()
    chain = compiled(net, (6,))
    assert net.training and all(module.training for module in net.modules())
    assert torch.equal(chain.network.data, compiled(net.eval(), (6,)).network.data)
    assert not chain.row_vectors(torch.ones(2)).requires_grad


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.cond and not case.shared])
def test_a_chains_vectors_have_the_same_bits_in_any_company(name: str) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    cond = case.conditioning(37)
    chain = compiled(case.make(), case.shape, cond)
    together = chain.chain_vectors(cond)
    assert together.shape == (37, chain.network.chain_width) and chain.network.chain_width > 0
    order = torch.randperm(37)
    assert torch.equal(chain.chain_vectors({k: v[order] for k, v in cond.items()}), together[order])
    for at in (0, 11, 36):
        assert torch.equal(chain.chain_vectors({k: v[at : at + 1] for k, v in cond.items()})[0], together[at])


def test_a_rows_vectors_are_the_same_in_any_list_of_times() -> None:
    chain = compiled(Tutorial())
    times = torch.tensor([999.0, 3.5, 0.0, 3.5])
    together = chain.row_vectors(times)
    for at in range(4):
        assert torch.equal(chain.row_vectors(times[at : at + 1])[0], together[at])


def test_conditioning_of_other_names_is_refused() -> None:
    cond = {"condition": torch.ones(1, 16)}
    chain = compiled(CASES["implicit policy"].make(), (6,), cond)
    with pytest.raises(ValueError, match=r"^cond: got \['label'\], expected \['condition'\]"):
        chain.chain_vectors({"label": torch.ones(1)})
    with pytest.raises(ValueError, match="uncond: got"):
        net = ulam.Denoiser(CASES["implicit policy"].make(), ulam.schedules.vp_linear())
        chain_kernel.compile(net, (6,), cond, {"condition": torch.ones(1, 15)})


def test_a_time_index_is_told_as_whole_numbers() -> None:
    table = nn.Embedding(1000, 16)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * table(t)[:, :2]

    chain = chain_kernel.compile(ulam.Denoiser(net, ulam.schedules.vp_linear(), time="index"), (2,))
    got = chain.row_vectors(torch.tensor([7, 999]))
    assert torch.equal(got, table.weight[[7, 999], :2].detach())
    assert re.search("row", str(chain.network.instructions))


class Scripted(nn.Module):
    def __init__(self, read: nn.Module, beside: nn.Module) -> None:
        super().__init__()
        self.read, self.beside = read, beside

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.read(x)
        return out


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("what", ["layer", "layer beside", "network", "network in a function"])
def test_a_scripted_network_is_called_as_ever(what: str, double: bool) -> None:
    """Also one whose class has no forward to look at, and no get_submodule."""
    layer = nn.Linear(2, 2).to(torch.float64 if double else torch.float32)
    if "layer" in what:
        read = torch.jit.script(layer) if what == "layer" else layer
        net: Any = Scripted(read, torch.jit.script(nn.Linear(2, 2)))
    else:
        net = torch.jit.script(Scripted(layer, nn.Identity()))
    call = (lambda x, t: net(x, t)) if "function" in what else net
    if double:
        with pytest.raises(
            TypeError, match=r"^net: got weights \[2, 2\] of torch.float64 on cpu, \S*weight of a Linear,"
        ):
            chain_kernel.compile(ulam.Denoiser(call, ulam.schedules.vp_linear()), (2,))
        return
    denoiser = ulam.Denoiser(call, ulam.schedules.vp_linear())
    given: dict[str, Any] = {"shape": (2,), "chains": 3, "seed": 1}
    plain = ulam.sample(denoiser, ulam.samplers.DDIM(4), **given)
    assert torch.equal(ulam.sample(denoiser, ulam.samplers.DDIM(4), **given, chain_kernel="auto"), plain)
    engine = ulam.Engine(denoiser, (2,), slots=3, chain_kernel="auto")
    handle = engine.submit(ulam.samplers.DDIM(4), chains=3, seed=1)
    assert torch.equal(engine.run()[handle], plain) and "of torch.jit" in engine.report.chain_kernel
    name = "Linear" if "layer" in what else "Scripted"
    with pytest.raises(TypeError, match=f"^net: got a {name} of torch.jit, expected its module in Python$"):
        ulam.sample(denoiser, ulam.samplers.DDIM(4), **given, chain_kernel="on")
