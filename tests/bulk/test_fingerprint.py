"""Fingerprints: another value has another one; the same value has the same one, wherever it is."""

from __future__ import annotations

import copy
import datetime
import enum
import functools
import itertools
import os
import re
import subprocess
import sys
import threading
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import ulam
from ulam.bulk.fingerprints.fingerprint import fingerprint
from ulam.models.digits import load_digits
from ulam.samplers import DDIM, DDPM
from ulam.schedules import vp_cosine, vp_linear

USER = """
import functools
import torch
from torch import nn
RATE = 0.5
SIZES = {"small": 1, "large": 2}

def helper(x):
    return far(x) * 3.0

def far(x):
    return x + 7.0

def closed(power):
    def inner(x, offset=1.5, *, scale=2.5):
        return x ** power + offset + scale
    return inner

def hook(module, args, output):
    return output * 0.75

class Base(nn.Module):
    gain = 4.0

    def head(self, x):
        return x - 5.0

class Net(Base):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = nn.Linear(2, 2)
        self.table = nn.Sequential(nn.Tanh(), nn.Sigmoid())
        self.register_buffer("shown", torch.arange(3.0))
        self.register_buffer("hidden", torch.arange(4.0), persistent=False)
        self.scale = 2.0
        self.inner = closed(2)
        self.given = functools.partial(torch.add, alpha=6.0)
        self.order = {"a": 1, "b": 2}
        self.itself = [self]
        for p in self.parameters():
            nn.init.constant_(p, 0.125)
        self.second.register_forward_hook(hook)

    def forward(self, x):
        # as it goes
        x = self.first(x) * RATE
        return self.head(helper(x)) + (1.0 if "k" in {"k", "l", "m"} else 0.0) + SIZES["small"]

value = Net()
"""
CHANGES = [
    ("far(x) * 3.0", "far(x) * 3.5"),
    ("x + 7.0", "x + 8.0"),
    ("x + 7.0", "x - 7.0"),
    ("RATE = 0.5", "RATE = 0.25"),
    ('"small": 1', '"small": 3'),
    ("offset=1.5", "offset=1.75"),
    ("scale=2.5", "scale=2.25"),
    ("closed(2)", "closed(3)"),
    ("x ** power", "x * power"),
    ("output * 0.75", "output * 0.5"),
    ("self.second.register_forward_hook(hook)", "pass"),
    ("self.second.register_forward_hook(hook)", "self.first.register_forward_hook(hook)"),
    ("self.second.register_forward_hook(hook)", "self.second.register_forward_hook(hook, always_call=True)"),
    ("gain = 4.0", "gain = 4.5"),
    ("x - 5.0", "x - 6.0"),
    ("self.scale = 2.0", "self.scale = 2.0000001"),
    ("self.scale = 2.0", "self.scale = 2"),
    ("self.scale = 2.0", "self.ratio = 2.0"),
    ("alpha=6.0", "alpha=6.5"),
    ("torch.add,", "torch.sub,"),
    ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}'),
    ("nn.Tanh(), nn.Sigmoid()", "nn.Sigmoid(), nn.Tanh()"),
    ("torch.arange(3.0)", "torch.arange(3.0).double()"),
    ("torch.arange(4.0)", "torch.arange(4.0) + 1"),
    ("0.125", "0.1250001"),
    ('{"k", "l", "m"}', '{"l", "m"}'),
    ("value = Net()", "value = Net().double()"),
    ("value = Net()", "value = Net()\nvalue.first, value.second = value.second, value.first"),
]
SAME = [
    ("# as it goes", "# another comment\n        # on more lines"),
    ("x = self.first(x) * RATE", "x = (\n            self.first(x)\n            * RATE\n        )"),
    ('{"k", "l", "m"}', '{"m", "k", "l"}'),
    ("value = Net()", "value = Net().eval()"),
    ("value = Net()", "value = Net().requires_grad_(False)"),
    ("value = Net()", "import copy\nvalue = copy.deepcopy(Net())"),
    ("value = Net()", "old = Net()\nvalue = Net()\nvalue.load_state_dict(old.state_dict())"),
    ("RATE = 0.5", "UNUSED, RATE = object(), 0.5"),
    ("value = Net()", "value = Net()\nvalue(torch.ones(1, 2))"),
    ("import torch\n", "import torch\nfar = None\n"),
]


def of(value: object) -> str:
    return fingerprint(value, "value")


def user(source: str) -> object:
    """The `value` of a user's module with this source."""
    module: dict[str, object] = {"__name__": "somebodys"}
    exec(source, module)
    return module["value"]


@pytest.mark.parametrize("old, new", CHANGES, ids=itertools.count())
def test_a_change_of_a_network_shows(old, new):
    assert old in USER
    assert of(user(USER)) != of(user(USER.replace(old, new)))


@pytest.mark.parametrize("old, new", SAME, ids=itertools.count())
def test_what_computes_the_same_is_the_same(old, new):
    assert old in USER
    assert of(user(USER)) == of(user(USER.replace(old, new)))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: int) -> None:
        self.a = a


def distinct() -> list[object]:
    """No two of them compute the same."""
    lists: list[object] = [
        [],
        (),
        {},
        set(),
        frozenset(),
        [[]],
        [1],
        (1,),
        {1},
        {10**5000: 1},
        [1, 2],
        [2, 1],
        [[1], 2],
        {"a": 1},
    ]
    numbers = [None, False, True, 0, 1, 1.0, 0.0, -0.0, float("nan"), float("inf"), 1j, 1 + 0j, 10**5000, ..., 1e-320]
    texts: list[object] = ["", b"", "a", b"a", "1", "True", "None", Path("a"), "\ud800", bytearray(b"a"), "a.b"]
    kinds = [Colour.RED, Colour.BLUE, Colour, int, float, Slotted(1), Slotted(2), slice(1), slice(1, 2), range(1)]
    tensors = [torch.zeros(2, dtype=t) for t in (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.cfloat)]
    tensors += [torch.zeros(()), torch.zeros(0), torch.zeros(1, 2), -torch.zeros(2), torch.tensor([0.0, 1e-45])]
    arrays = [np.zeros(2), np.zeros(2, ">f8"), np.zeros(2, "f4"), np.zeros((1, 2)), np.float64(0), np.float32(0)]
    arrays += [np.array([None, "a"]), np.array([(1, 2.0)], "i4,f8"), np.array(["2020-01-01"], "M8[D]")]
    torch_kinds = [torch.float32, torch.strided, torch.channels_last, torch.device("cpu"), torch.Size([1])]
    pickled = [Fraction(1, 3), re.compile("a"), re.compile("a", re.I), datetime.date(2020, 1, 1), [OrderedDict(a=1)]]
    functions = [torch.relu, torch.nn.functional.relu, np.exp, np.log, len, "a".upper, "b".upper, str.upper]
    partials = [functools.partial(max, 1), functools.partial(max, 2), functools.partial(min, 1), Slotted(1).__init__]
    lambdas = [lambda x: x + 1, lambda x: x + 2, lambda x: x + 1.0, lambda y, x: x + 1, functools.lru_cache(len)]
    nets = [nn.Linear(2, 2, bias=False), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.GroupNorm(1, 2), nn.GroupNorm(2, 2)]
    recipes = [DDIM(5), DDIM(6), DDPM(5), vp_linear(10), vp_linear(11), vp_cosine(10)]
    programs = [DDIM(5).program(vp_linear(1000)), DDIM(6).program(vp_linear(1000))]
    several = [lists, numbers, texts, kinds, tensors, arrays, torch_kinds, pickled, functions, partials, lambdas, nets]
    return [value for values in (*several, recipes, programs) for value in values]


def test_no_two_values_have_one_fingerprint():
    values = distinct()
    found: dict[str, object] = {}
    for value in values:
        assert found.setdefault(of(value), value) is value
    assert len(found) == len(values) > 100


def test_copies_have_the_fingerprint_of_what_they_copy():
    for value in distinct():
        assert of(value) == of(copy.deepcopy(value))


def test_every_bit_of_every_dtype_counts():
    """On a big strided tensor, which is read in parts, too."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.uint8, torch.complex64):
        x = torch.zeros(5, dtype=dtype)
        before = of(x)
        x.view(torch.uint8)[-1] ^= 1
        assert before != of(x)
    x = torch.zeros(3, 1 << 23)
    assert of(x.t()) == of(torch.zeros(1 << 23, 3))
    x[2, -1] = 1e-45
    assert of(x.t()) == of(x.t().contiguous()) != of(torch.zeros(1 << 23, 3))


def test_arguments_by_name_have_no_order():
    assert of({"b": 1, "a": 2}) == of({"a": 2, "b": 1}) != of({"a": 1, "b": 2})
    assert of([{"b": 1, "a": 2}]) != of([{"a": 2, "b": 1}])


def test_tied_weights_and_circles():
    """The same part at two places counts as two equal ones: they compute the same."""
    layer = nn.Linear(2, 2)
    assert of(nn.Sequential(layer, layer)) == of(nn.Sequential(layer, copy.deepcopy(layer)))
    first, second = [[], 1], [[], 1]
    first[0].append(first)
    second[0].append(second[0])
    assert len({of(first), of(second), of([[[[], 1]], 1])}) == 3
    assert of(first) == of(copy.deepcopy(first))


def test_digits_and_their_denoiser():
    """Neither what was found of a network nor what is cached counts."""
    denoiser = ulam.Denoiser(load_digits(), vp_linear(1000))
    before = of(denoiser)
    denoiser._found["a"], denoiser._modes["first"] = 1, "forward"
    program = denoiser.program(DDIM(5))
    compiled = of(program)
    assert program.evaluating and denoiser.told_steps == ""
    ulam.sample(denoiser, DDIM(2, spacing="trailing"), (1, 28, 28), chains=1, cond={"y": torch.tensor([3])})
    assert (of(denoiser), of(program)) == (before, compiled)
    assert before == of(ulam.Denoiser(load_digits(), vp_linear(1000)))
    assert before != of(ulam.Denoiser(load_digits(), vp_linear(1000), time="index"))
    with torch.no_grad():
        next(denoiser.net.parameters()).view(torch.int32).view(-1)[0] ^= 1
    assert before != of(denoiser)


def test_networks_of_diffusers_count_by_weights_and_configuration(tmp_path):
    """Not by the folder they were loaded from."""
    diffusers = pytest.importorskip("diffusers")
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    sizes = {"sample_size": 8, "block_out_channels": (32,), "layers_per_block": 1}
    net = diffusers.UNet2DModel(**sizes, **blocks)
    found = set()
    for folder in ("one", "other"):
        net.save_pretrained(tmp_path / folder)
        found.add(of(diffusers.UNet2DModel.from_pretrained(tmp_path / folder)))
    assert found == {of(net)}
    other = diffusers.UNet2DModel(**sizes, **blocks, freq_shift=1)
    other.load_state_dict(net.state_dict())
    assert of(other) != of(net)


@pytest.mark.parametrize(
    "wrap",
    [nn.utils.parametrizations.weight_norm, torch.fx.symbolic_trace, torch.compile, lambda net: nn.LSTM(2, 2)],
    ids=["weight_norm", "fx", "compile", "lstm"],
)
def test_wrapped_networks(wrap):
    """The wrapped network is another one; its weights count."""
    net = nn.Linear(2, 2)
    plain = of(net)
    wrapped = wrap(net)
    before = of(wrapped)
    assert plain != before == of(wrapped.train(not wrapped.training))
    if wrap is not torch.compile:
        assert before == of(copy.deepcopy(wrapped))
    with torch.no_grad():
        next(wrapped.parameters()).view(-1)[0] += 1
    assert before != of(wrapped)


def test_what_cannot_be_read_is_refused_by_its_place():
    net = nn.Module()
    net.part = SimpleNamespace(rng={"x": [torch.Generator()]})
    key = "(a unit's key is a hash of it)"
    with pytest.raises(TypeError) as error:
        fingerprint(net, "denoiser")
    expected = "what pickles, and is no state of this process"
    assert str(error.value) == f"denoiser: got a Generator at denoiser.part.rng['x'][0], expected {expected} {key}"


@pytest.mark.parametrize(
    "value",
    [
        threading.Lock(),
        (i for i in range(2)),
        sys.stdout,
        torch.zeros(2, device="meta"),
        torch.zeros(2, 2).to_sparse(),
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)),
        np.longdouble(1),
        functools.reduce(lambda inner, _: [inner], range(100_000), []),
    ],
    ids=["lock", "generator", "file", "meta", "sparse", "script", "longdouble", "deep"],
)
def test_what_cannot_be_read_is_refused_in_one_line(value):
    with pytest.raises(TypeError, match=r"\Afinish: got a [^\n]+, expected [^\n]+\Z"):
        fingerprint(value, "finish")


MAIN = """
import multiprocessing, sys
import helpers
from ulam.bulk.fingerprints.fingerprint import fingerprint
{user}
def finish(x):
    return helpers.twice(x) + helpers.OFFSET

def late(x):
    import helpers as imported
    return imported.OFFSET + x

everything = [value, finish, Net, lambda x: finish(x) + 1, late]

def own(i):
    return fingerprint(everything[i], "v")

if __name__ == "__main__":
    import cloudpickle
    cloudpickle.register_pickle_by_value(helpers)
    print(*map(own, range(5)))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.map(own, range(5)))
        print(*(pool.apply(fingerprint, (everything[i], "v")) for i in (1, 2, 4)))
    with open("pickled", "wb") as file:
        cloudpickle.dump(everything[:4], file)
"""
HELPERS = "OFFSET = 1.0\n\ndef twice(x):\n    return x * 2\n\nEVERYTHING_ELSE = open(__file__)\n"
LOAD = """
import cloudpickle
from ulam.bulk.fingerprints.fingerprint import fingerprint
with open("pickled", "rb") as file:
    print(*(fingerprint(v, "v") for v in cloudpickle.load(file)))
"""


def digests(folder: Path, code: list[str], seed: int) -> list[str]:
    """What a process in that folder prints."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, *code], cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_one_fingerprint_in_every_process(tmp_path):
    """A script, its spawned child, and a process that has it from cloudpickle alone, without its source."""
    pytest.importorskip("cloudpickle")
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "script.py").write_text(MAIN.format(user=USER))
    (folder / "helpers.py").write_text(HELPERS)
    found = digests(folder, ["script.py"], seed=1)
    parent, child, sent = found[:5], found[5:10], found[10:]
    assert child == parent and sent == [parent[i] for i in (1, 2, 4)] and len(set(parent)) == 5

    moved = tmp_path / "there"
    folder.rename(moved)
    (moved / "script.py").write_text("# moved down\n\n" + MAIN.format(user=USER))
    assert digests(moved, ["script.py"], seed=2) == found
    (moved / "helpers.py").write_text(HELPERS.replace("1.0", "1.5"))
    changed = digests(moved, ["script.py"], seed=2)
    assert [new == old for new, old in zip(changed[:5], parent, strict=True)] == [True, False, True, False, False]
    (moved / "script.py").unlink()
    (moved / "helpers.py").unlink()
    assert digests(moved, ["-c", LOAD], seed=3) == changed[:4]
