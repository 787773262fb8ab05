"""Networks that return dicts, tuples and objects: read alike wherever denoisers run, or refused by key."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch

import ulam
from ulam.bulk.fingerprints.fingerprint import fingerprint
from ulam.estimation.x0_variances import x0_variances
from ulam.evaluation import check_halves, check_output
from ulam.outputs import OutputError

SHAPE = (2, 3, 3)
SCHEDULE = ulam.schedules.vp_linear(100)
Named = namedtuple("Named", ["loss", "eps"])


@dataclasses.dataclass
class Held:
    pred: torch.Tensor
    features: torch.Tensor | None = None


class Sample:
    """As the outputs of diffusers' models, without their dict."""

    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


class Net(torch.nn.Module):
    """A convolution whose output is packed by ``pack``."""

    def __init__(self, pack: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pack = torch.nn.Conv2d(2, 2, 3, padding=1), pack

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return self.pack(torch.tanh(self.conv(x)) + 1e-3 * t.to(x.dtype).view(-1, 1, 1, 1))


def plain(m):
    return m


# How a network packs its prediction m, and the outputs= that read it; None: there is only one reading.
PACKED: dict[str, tuple[Callable[[torch.Tensor], Any], Any]] = {
    "a dict of one": (lambda m: {"sample": m}, None),
    "a dict with a loss": (lambda m: OrderedDict(loss=m.mean(), eps=m), None),
    "a dict with codes": (lambda m: {"mask": m > 0, "eps": m}, None),
    "a tuple of one": (lambda m: (m,), None),
    "a tuple with features": (lambda m: (m, m.flatten(1)), None),
    "a list": (lambda m: [None, m], None),
    "a named tuple": (lambda m: Named(m.mean(), m), None),
    "a dataclass": (lambda m: Held(m), None),
    "an object with sample": (Sample, None),
    "a dict of two, by key": (lambda m: {"x0": -m, "eps": m}, "eps"),
    "a dict of two, by place": (lambda m: {"x0": -m, "eps": m}, 1),
    "a dict with numbers for keys": (lambda m: {7: m, 0: -m}, 7),
    "a tuple of two": (lambda m: (-m, m), -1),
    "a named tuple, by name": (lambda m: Named(-m, m), "eps"),
    "a dataclass, by name": (lambda m: Held(-m, m), "features"),
    "an attribute": (Sample, "sample"),
    "a function": (lambda m: {"out": {"mean": m}}, lambda found: found["out"]["mean"]),
    "a function of a tensor": (lambda m: torch.cat([m, -m], 1), lambda m: m[:, :2]),
}
EVALUATIONS: dict[str, Callable[[ulam.Denoiser, torch.Tensor], Any]] = {
    "engine": lambda denoiser, y: ulam.sample(denoiser, ulam.samplers.DDPM(4), SHAPE, 5, slots=3, progress=False),
    "engine with gradients": lambda denoiser, y: ulam.sample(
        denoiser, ulam.samplers.DDIM(4), SHAPE, 2, options=ulam.NetworkOptions(gradients=True), progress=False
    ),
    "posterior mean": lambda denoiser, y: ulam.tweedie.mean(denoiser, y, 0.5),
    "derivatives": lambda denoiser, y: ulam.tweedie.covariance_trace(denoiser, y, 0.5, samples=6).value,
    "sure": lambda denoiser, y: ulam.sure.estimate(denoiser, y, 0.5).per_chain,
    "bound": lambda denoiser, y: ulam.bounds.vlb(denoiser, y.tanh()).per_chain,
    "reverse variances": lambda denoiser, y: torch.tensor([*x0_variances(denoiser, y, timesteps=[3, 50]).values()]),
    "score": lambda denoiser, y: (
        ulam.mcmc.run(
            ulam.mcmc.DenoiserScore(denoiser, 0.5),
            ulam.samplers.ULA(0.01),
            chains=3,
            steps=4,
            shape=SHAPE,
            progress=False,
        ).draws
    ),
    "loss": lambda denoiser, y: ulam.objectives.denoising(denoiser, y, 7, step=0),
    "loss of observations": lambda denoiser, y: ulam.objectives.sure(denoiser, y, 0.5, step=0),
}


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_every_way_to_pack_a_prediction_gives_the_bits_of_the_tensor_alone(evaluation: str) -> None:
    evaluate, y = EVALUATIONS[evaluation], ulam.noise.normal(SHAPE, seed=3, chains=4)
    expected = evaluate(ulam.Denoiser(Net(plain), SCHEDULE), y)
    assert expected.isfinite().all()
    for name, (pack, output) in PACKED.items():
        found = evaluate(ulam.Denoiser(Net(pack), SCHEDULE, output=output), y)
        assert torch.equal(found, expected), name


@pytest.mark.parametrize("name", PACKED)
def test_weights_learn_through_every_packing(name: str) -> None:
    pack, output = PACKED[name]
    y = ulam.noise.normal(SHAPE, seed=3, chains=4)

    def gradient(net: Net, output: Any) -> torch.Tensor:
        ulam.objectives.denoising(ulam.Denoiser(net, SCHEDULE, output=output), y, 7, step=0).sum().backward()
        assert net.conv.weight.grad is not None
        return net.conv.weight.grad

    assert torch.equal(gradient(Net(pack), output), gradient(Net(plain), None))


@pytest.mark.parametrize("name", [name for name in PACKED if name not in ("an object with sample", "an attribute")])
def test_a_loss_compiles_whole_through_every_packing(name: str) -> None:
    torch._dynamo.reset()
    pack, output = PACKED[name]
    denoiser, y = ulam.Denoiser(Net(pack), SCHEDULE, output=output), ulam.noise.normal(SHAPE, seed=3, chains=4)

    def loss(y: torch.Tensor) -> torch.Tensor:
        return ulam.objectives.denoising(denoiser, y, 7, step=0)

    assert torch.equal(torch.compile(loss, backend="eager", fullgraph=True)(y), loss(y))


def test_a_packed_edm_network_has_the_loss_of_a_plain_one() -> None:
    y, schedule = ulam.noise.normal(SHAPE, seed=3, chains=4), ulam.schedules.edm()
    losses = [
        ulam.objectives.edm(ulam.Denoiser(Net(pack), schedule, "raw"), y, 0.5, step=0)
        for pack in (plain, lambda m: {"sample": m})
    ]
    assert torch.equal(*losses)


def test_a_compiled_network_is_read_too() -> None:
    for pack, output in (PACKED["a dict of two, by key"], PACKED["a dict with a loss"], PACKED["a function"]):
        denoiser = ulam.Denoiser(Net(pack), SCHEDULE, output=output)
        run = {
            compiled: ulam.sample(
                denoiser, ulam.samplers.DDIM(3), SHAPE, 2, options=ulam.NetworkOptions(compile=compiled), progress=False
            )
            for compiled in (False, True)
        }
        torch.testing.assert_close(run[True], run[False])


def test_a_tensor_alone_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hot path: no function of ulam.outputs runs for a network that returns its prediction."""
    monkeypatch.setattr("ulam.evaluation.only_reading", None)
    monkeypatch.setattr("ulam.outputs.read", None)
    net = Net(plain)
    denoiser = ulam.Denoiser(net, SCHEDULE)
    assert denoiser.network is net
    EVALUATIONS["engine"](denoiser, torch.zeros(1, *SHAPE))


@pytest.mark.parametrize(
    "pack, output, said",
    [
        (lambda m: {"eps": m, "x0": m}, None, "net: got dict with 'eps' [2, 2, 3, 3], 'x0' [2, 2, 3, 3], expected one "
         "tensor, or a Denoiser with one of output='eps', output='x0'"),
        (lambda m: (m, torch.cat([m, m], 1)), None, "with one of output=0, output=1"),
        (lambda m: {"a": {"b": m}}, None, "net: got dict with 'a' dict, expected one tensor, or a Denoiser with one "
         "of a function as output="),
        (lambda m: {}, None, "net: got dict, expected a tensor [2, 2, 3, 3] like its input"),
        (lambda m: None, None, "net: got NoneType, expected a tensor [2, 2, 3, 3] like its input"),
        (lambda m: "m", None, "net: got str, expected a tensor"),
        (lambda m: {f"part {i}": m for i in range(99)}, None, ", 91 more, expected one tensor"),
        (lambda m: {"sample": m[:, :1]}, None, "net: got shape [2, 1, 3, 3], expected [2, 2, 3, 3] like its input"),
        (lambda m: {"sample": m}, "smaple", "output: got 'smaple' for dict with 'sample' [2, 2, 3, 3], expected one"),
        (lambda m: (m,), 1, "output: got 1 for tuple with 0 [2, 2, 3, 3], expected one of its parts"),
        (lambda m: (m,), -2, "output: got -2 for tuple"),
        (lambda m: (m, None), 1, "output: got NoneType at 1, expected a tensor"),
        (lambda m: m, "sample", "output: got 'sample' for a network that returns a tensor, expected None"),
        (lambda m: m, 0, "output: got 0 for a network that returns a tensor, expected None"),
        (lambda m: object(), "mean", "output: got 'mean' for object with nothing in it"),
    ],
    ids=range(15),
)  # fmt: skip
@pytest.mark.parametrize("evaluation", ["engine", "posterior mean"])
def test_what_has_no_single_reading_is_refused_in_one_line(pack, output, said: str, evaluation: str) -> None:
    denoiser = ulam.Denoiser(Net(pack), SCHEDULE, output=output)
    evaluate = {
        "engine": lambda: ulam.sample(denoiser, ulam.samplers.DDIM(4), SHAPE, 2, progress=False),
        "posterior mean": lambda: ulam.tweedie.mean(denoiser, torch.zeros(2, *SHAPE), 0.5),
    }[evaluation]
    with pytest.raises((TypeError, ValueError), match=re.escape(said)) as caught:
        evaluate()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("output", [True, 1.5, b"sample", ["sample"], torch.nn.Identity(), dict], ids=range(6))
def test_an_output_that_says_nothing_is_refused(output: Any) -> None:
    with pytest.raises(TypeError, match=r"output: got .*, expected a key, a position, or a function"):
        ulam.Denoiser(Net(plain), SCHEDULE, output=output)


def test_the_two_shapes_of_a_prediction_are_told_apart_where_only_one_may_be_meant() -> None:
    m, both = torch.zeros(2, 3, 4), torch.zeros(2, 6, 4)
    assert check_output((m, torch.zeros(2, 7)), m.shape) is m
    assert check_halves((m, both), m.shape, "mean and variance") is both
    with pytest.raises(OutputError, match=r"one of output=0, output=1$"):
        check_output((m, both), m.shape)


def test_a_denoiser_goes_into_other_processes_and_hashes_with_its_output() -> None:
    def hashed(output: Any) -> str:
        denoiser = ulam.Denoiser(torch.nn.Identity(), SCHEDULE, output=output)
        assert denoiser.network is not None  # a cache, which does not count
        copy = pickle.loads(pickle.dumps(denoiser)) if not callable(output) else denoiser
        assert fingerprint(copy, "denoiser") == fingerprint(denoiser, "denoiser")
        return fingerprint(denoiser, "denoiser")

    outputs = [None, "eps", "x0", 0, 1, lambda m: m["eps"], lambda m: m["x0"]]
    assert len({hashed(output) for output in outputs}) == len(outputs)
