"""The activations of small networks: errors in units of the last place, and the same bits on every instruction set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

import ulam_kernels
from bit_comparison import differences
from cpu_settings import instruction_set
from step_cases import one_row
from ulam_kernels import _cpu
from ulam_kernels.networks import DEFAULTS, FUNCTIONS, Network, Unary
from ulam_kernels.reference.activations import activated

Float32Array = npt.NDArray[np.float32]
# Units of the last place of the result, and what is added to them: where exp saturates, and where x is multiplied by 0.
BOUNDS = {
    "identity": (0, 0), "relu": (0, 0), "leaky_relu": (0.5, 0), "elu": (2, 0), "tanh": (3, 0), "sigmoid": (3, 1e-38),
    "silu": (3, 1e-36), "gelu": (8, 1e-37), "mish": (5, 1e-35), "softplus": (3, 1e-37),
    # the exponent 2 u is rounded, and with it the result by 2^-24 times the exponent
    "gelu_tanh": (3, 1e-36),
    # slopes: those of 1e-7 pass through 0, where the error is that of their parts
    "silu_slope": (4, 1e-7), "relu_slope": (0, 0), "gelu_slope": (4, 1e-7), "gelu_tanh_slope": (4, 1e-7),
    "tanh_slope": (4, 1e-36), "sigmoid_slope": (4, 1e-37), "mish_slope": (4, 1e-7), "leaky_relu_slope": (0, 0),
    "elu_slope": (2, 1e-37),
}  # fmt: skip


def numbers() -> Float32Array:
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(1e-30), np.log(1e4), 20000))
    near = np.linspace(-20, 20, 20001)
    edges = np.array([0.0, -0.0, 1e-45, 86, 88, 10, 13, 3e38, 1e-38])
    return np.concatenate([size, -size, near, edges, -edges]).astype(np.float32)


def exact(function: str, x: Float32Array) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if function == "relu":
            return np.maximum(wide, 0)
        if function == "sigmoid":
            return 1 / (1 + np.exp(-wide))
        return activated(function, float(np.float32(DEFAULTS[function])) if function in DEFAULTS else None, wide)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_error_is_bounded(function: str) -> None:
    x = numbers()
    expected = exact(function, x)
    ours = activated(function, DEFAULTS.get(function), x).astype(np.float64)
    with np.errstate(over="ignore"):
        unit = np.spacing(np.maximum(np.abs(expected), 2.0**-126).astype(np.float32)).astype(np.float64)
    most, least = BOUNDS[function]
    wide = x.astype(np.float64)
    exponent = 1.6 * np.abs(wide) * (1 + 0.0448 * wide**2) if function == "gelu_tanh" else 0.0
    error = np.abs(ours - expected) - least
    bad = np.flatnonzero(error > (most + 4 * exponent) * unit)
    assert not bad.size, (x[bad[:5]], ours[bad[:5]], expected[bad[:5]])
    if most > 0:  # and a bound of a quarter would not hold
        assert (error > (most + 4 * exponent) / 4 * unit).any()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_torchs_function(function: str) -> None:
    """The float64 formulas are those that torch has."""
    x = torch.from_numpy(numbers()).double().clamp(-700, 700)
    named = {"leaky_relu": lambda y: torch.nn.functional.leaky_relu(y, 0.01), "identity": lambda y: y,
             "gelu_tanh": lambda y: torch.nn.functional.gelu(y, approximate="tanh"), "tanh": torch.tanh}  # fmt: skip
    if function.endswith("_slope"):  # autograd's
        inner = function.removesuffix("_slope")
        x = x.clamp(-30, 30).requires_grad_()
        (theirs,) = torch.autograd.grad(named.get(inner, getattr(torch.nn.functional, inner, None))(x).sum(), x)
        x = x.detach()
    else:
        theirs = named.get(function, getattr(torch.nn.functional, function, None))(x)
    ours = torch.from_numpy(activated(function, DEFAULTS.get(function), x.numpy()))
    # torch's slopes are differences of numbers near 1 on the left
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-13 if function.endswith("_slope") else 1e-15)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_instruction_set_has_the_same_bits(function: str) -> None:
    """Every tiling too; infinities and NaN stop their chain, or are what the formula says."""
    x = np.concatenate([numbers(), np.array([np.inf, -np.inf, np.nan], dtype=np.float32)])
    n = 3
    x = torch.from_numpy(np.resize(x, (-(-len(x) // n), n)))
    network = Network(n, (n, n), (Unary(1, function, 0),))
    table = one_row(m=1.0)
    twice = ulam_kernels.Table.cat([table, table])
    expected = torch.from_numpy(activated(function, DEFAULTS.get(function), x.numpy()))
    well = expected.isfinite().all(1)
    for name in _cpu.instruction_sets():
        for share in (1, 3, 8, 16, len(x)):
            some = x[-41:] if share < len(x) else x
            ours = []
            for part in some.split(share):
                states, cursor = part[None].clone(), torch.zeros(6, len(part), dtype=torch.int64)
                cursor[0] = 1
                with instruction_set(name) as backend:
                    ours.append(states)
                    ulam_kernels.walk(states, twice, cursor, network, steps=1, backend=backend)
            got, last = torch.cat(ours, 1)[0], slice(-len(some), None)
            assert differences(got[well[last]], expected[last][well[last]]) == 0
            assert differences(got[~well[last]], some[~well[last]]) == 0
