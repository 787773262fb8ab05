"""Networks as people have them run with two lines at most, the Denoiser and the call, or the error says which two."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import ulam
from ulam.models.conversion import convert
from ulam.models.weights import load_weights
from ulam.schedules import edm, flow, ve, vp_cosine

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit"),
    pytest.mark.filterwarnings("ignore:.*first noise level"),
]
CHAINS = 3
VP = vp_cosine(100)


class Net(nn.Module):
    """A small network for samples of any number of dimensions, told the time in [0, 1] and, if it has any, a class."""

    def __init__(self, channels: int = 2, dimensions: int = 2, classes: int = 0, out: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = {0: nn.Linear, 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
        options = {"kernel_size": 3, "padding": 1} if dimensions else {}
        self.first = layers[dimensions](channels, 8, **options)
        self.last = layers[dimensions](8, out or channels, **options)
        self.time, self.dropout = nn.Linear(1, 8), nn.Dropout(0.5)
        self.classes = nn.Embedding(classes, 8) if classes else None

    def forward(self, x, t, y=None):
        told = self.time(t.to(x.dtype)[:, None] / 100)
        if self.classes is not None:
            told = told + self.classes(y)
        return self.last(self.dropout(torch.tanh(self.first(x) + told.view(*told.shape, *[1] * (x.dim() - 2)))))


class Steps(nn.Module):
    """As networks that look up whole training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.steps = Net(), nn.Embedding(100, 2)

    def forward(self, x, timesteps):
        return self.net(x, timesteps) + self.steps(timesteps)[:, :, None, None]


class Packs(nn.Module):
    def __init__(self, pack: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.net, self.pack = Net(), pack

    def forward(self, x, t):
        return self.pack(self.net(x, t))


@dataclass
class Case:
    """A network as it is had, and what its two lines say; ``plain``: the same prediction by a function of our own."""

    net: Any
    plain: Callable[..., torch.Tensor]
    schedule: Any = VP
    shape: tuple[int, ...] = (2, 5, 4)
    predicts: str = "eps"
    denoiser: dict[str, Any] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)  # what the plain one is given in place of `sample`
    close: bool = False  # not the same bits


def traced() -> nn.Module:
    return torch.jit.trace(Net().eval(), (torch.zeros(CHAINS, 2, 5, 4), torch.zeros(CHAINS)))  # type: ignore[no-any-return]


def exported() -> nn.Module:
    return torch.export.export(Net().eval(), (torch.zeros(CHAINS, 2, 5, 4), torch.zeros(CHAINS))).module()


def guided() -> Callable[..., torch.Tensor]:
    """A network with a gradient inside, as classifier guidance has one."""
    net = Net().eval()

    def guided(x, t):
        x = x.requires_grad_()
        (push,) = torch.autograd.grad(x.square().sum(), x)
        return net(x, t) + 0.1 * push

    return guided


Y = torch.tensor([1, 0, 4])
LABELS = {"cond": {"y": Y}}
NULLS = {"guidance": 2.0, "uncond": {"y": torch.full_like(Y, 5)}}

CASES: dict[str, Callable[[], Case]] = {
    "module": lambda: Case(Net(), Net().eval()),
    "function": lambda: Case(lambda x, t: torch.tanh(x), lambda x, t: torch.tanh(x)),
    "method": lambda: Case(SimpleNamespace(f=Net().eval().forward).f, Net().eval()),
    "partial": lambda: Case(functools.partial(Net(classes=6).eval(), y=Y), lambda x, t: Net(classes=6).eval()(x, t, Y)),
    "training": lambda: Case(Net().train(), Net().eval()),
    "EMA": lambda: Case(AveragedModel(Net()), Net().eval()),
    "DataParallel": lambda: Case(nn.DataParallel(Net()), Net().eval()),
    "compiled": lambda: Case(torch.compile(Net()), Net().eval(), close=True),
    "scripted": lambda: Case(traced(), Net().eval(), close=True),
    "exported": lambda: Case(exported(), Net().eval(), sample={"slots": CHAINS}, close=True),
    "dict output": lambda: Case(Packs(lambda m: {"sample": m}), Net().eval()),
    "tuple output": lambda: Case(Packs(lambda m: (m, m.mean())), Net().eval()),
    "object output": lambda: Case(Packs(lambda m: SimpleNamespace(sample=m)), Net().eval()),
    "two heads": lambda: Case(Packs(lambda m: {"x0": m + 1, "eps": m}), Net().eval(), denoiser={"output": "eps"}),
    "nested output": lambda: Case(
        Packs(lambda m: {"out": (m, None)}), Net().eval(), denoiser={"output": lambda m: m["out"][0]}
    ),
    "long times": lambda: Case(
        Steps(), Steps().eval(), denoiser={"time": "index"}, told={}, predicts="v"
    ),
    "learned variance": lambda: Case(Net(out=4), lambda x, t: Net(out=4).eval()(x, t)[:, :2]),
    "labels in a list": lambda: Case(
        Net(classes=6), Net(classes=6).eval(), sample={"cond": {"y": Y.tolist()}}, told=LABELS
    ),
    "labels in an array, guided": lambda: Case(
        Net(classes=6), Net(classes=6).eval(), told={**LABELS, **NULLS},
        sample={"cond": {"y": Y.numpy()}, "guidance": 2.0, "uncond": {"y": np.full(CHAINS, 5)}},
    ),
    "1-D": lambda: Case(Net(1, 1), Net(1, 1).eval(), shape=(1, 16)),
    "3-D": lambda: Case(Net(2, 3), Net(2, 3).eval(), shape=(2, 3, 4, 5)),
    "tabular": lambda: Case(Net(7, 0), Net(7, 0).eval(), shape=(7,)),
    "score": lambda: Case(Net(), Net().eval(), ve(0.01, 10), predicts="score"),
    "flow": lambda: Case(Net(), Net().eval(), flow(), predicts="flow"),
    "EDM": lambda: Case(Net(), Net().eval(), edm(), predicts="raw"),
    "bfloat16": lambda: Case(
        Net().bfloat16(), lambda x, t: Net().bfloat16().eval()(x.bfloat16(), t).float(), close=True
    ),
    "gradients inside": lambda: Case(
        guided(), lambda x, t: Net().eval()(x, t) + 0.2 * x, close=True,
        sample={"options": ulam.NetworkOptions(gradients=True)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_runs_with_its_two_lines(name: str) -> None:
    case = CASES[name]()
    steps = case.net.steps if isinstance(case.net, Steps) else None
    if steps is not None:  # two of them have the same weights
        case.plain.steps = steps  # type: ignore[attr-defined]
    sampler = ulam.samplers.Euler(5)
    # what a user writes:
    denoiser = ulam.Denoiser(case.net, case.schedule, case.predicts, **case.denoiser)
    x = ulam.sample(denoiser, sampler, case.shape, CHAINS, seed=1, progress=False, **case.sample)

    plain = ulam.Denoiser(case.plain, case.schedule, case.predicts, case.denoiser.get("time", "auto"))
    expected = ulam.sample(plain, sampler, case.shape, CHAINS, seed=1, progress=False, **(case.told or {}))
    assert x.shape == (CHAINS, *case.shape) and x.isfinite().all() and x.std() > 0
    if case.close:
        near = 1e-2 if name == "bfloat16" else 1e-4
        torch.testing.assert_close(x, expected, rtol=near, atol=near)
    else:
        assert torch.equal(x, expected)


def test_a_lightning_checkpoint_loads_with_two_lines(tmp_path: Path) -> None:
    class Module(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model, self.ema = Net(), AveragedModel(model)

    wanted = Net()
    with torch.no_grad():
        wanted.last.bias += 1.0
    checkpoint = {"state_dict": Module(wanted).state_dict(), "pytorch-lightning_version": "2.5.0", "epoch": 1}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    net = Net()
    # what a user writes:
    convert(tmp_path / "last.ckpt", tmp_path / "net.safetensors", "ema")
    load_weights(net, tmp_path / "net.safetensors")

    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), wanted.parameters(), strict=True))


# A network brought with too few words, the words that its error says, and those words as arguments.
LINES: dict[str, tuple[Callable[[], Case], str]] = {
    "long times": (lambda: Case(Steps(), Steps()), r"'indices'.*, expected time='index' \(--time index\)"),
    "two heads": (
        lambda: Case(Packs(lambda m: {"x0": m, "eps": m}), Net()), "with 'x0' .*, 'eps' .* output='x0', output='eps'"),
    "nested output": (lambda: Case(Packs(lambda m: {"out": [m]}), Net()), "'out' list, .*a function as output="),
    "no labels": (
        lambda: Case(lambda x, t, y: x, Net()), r"missing 1 required .* 'y'\), expected cond=\{'y': ...\} \(chains"),
    "another label": (
        lambda: Case(Net(), Net(), sample={"cond": {"z": Y}}), r"'z'\), expected cond=\{'z': ...\} left out"),
    "labels of floats": (
        lambda: Case(Net(classes=6), Net(), sample={"cond": {"y": Y.float()}}), r"whole numbers as cond\['y'\]"),
    "wide conditioning": (
        lambda: Case(lambda x, t, c: torch.matmul(x, c), Net(), shape=(2, 4),
                     sample={"cond": {"c": torch.ones(CHAINS, 4, 4).double()}}),
        r"expected cond\['c'\] as torch.float32, not torch.float64"),
    "gradients inside": (lambda: Case(guided(), Net()), r"expected options=ulam.NetworkOptions\(gradients=True\)"),
    "a class": (lambda: Case(Net, Net()), r"^net: got the class Net itself, not Net\(\.\.\.\), expected a callable"),
    "epsilon": (lambda: Case(Net(), Net(), predicts="epsilon"), r"^predicts: got 'epsilon', .*did you mean eps\?"),
    "the wrong shape": (lambda: Case(Net(), Net(), shape=(3, 5, 4)), "expected input.* to have 2 channels, but got 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_what_its_two_lines_lack_is_said_in_one(name: str) -> None:
    make, said = LINES[name]
    case = make()
    with pytest.raises((TypeError, ValueError, RuntimeError), match=said) as caught:
        denoiser = ulam.Denoiser(case.net, case.schedule, case.predicts)
        ulam.sample(denoiser, ulam.samplers.Euler(5), case.shape, CHAINS, seed=1, progress=False, **case.sample)
    assert "\n" not in str(caught.value)


def test_there_are_twenty() -> None:
    assert len(CASES) >= 20
