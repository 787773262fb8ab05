"""Third and fourth derivatives of every kind of network against central differences, at every precision."""

from __future__ import annotations

import pytest
import torch

import network_zoo
from derivative_cases import SIGMA, VE, VP, close, state
from network_zoo import make, smooth
from ulam import Denoiser, tweedie
from ulam.estimation.derivatives import Derivatives
from ulam.estimation.estimator import Estimator


@pytest.mark.parametrize("name", network_zoo.zoo())
def test_higher_derivatives_of_every_network_are_those_of_central_differences(name) -> None:
    net = make(name)
    y, v = state(net)
    u = v.flip(0) * 0.7
    estimator = Estimator(Denoiser(net, VP), y, SIGMA)
    derivatives = Derivatives(estimator, y)
    for order in (2, 3):

        def lower(at, order=order):
            return Derivatives(Estimator(estimator.denoiser, at, SIGMA), at).contracted(u, *[v] * order)

        h = 1e-3
        ahead, behind, far, back = (lower(y + k * h * v) for k in (1, -1, 2, -2))
        expected = (8 * (ahead - behind) - (far - back)) / (12 * h)
        found = derivatives.contracted(u, *[v] * (order + 1))
        if smooth(name):
            close(found, expected, 1e-6)
        elif not name.startswith("transformer"):
            assert not found.any()  # straight pieces
        assert estimator.denoiser.modes[("", "", "third", "fourth")[order]] == "reverse"


@pytest.mark.parametrize("name", ["transformer gelu", "attention", "fused bool", "U-Net instance norm", "layer norm"])
def test_cumulants_of_networks_with_attention_and_norms_in_single_precision(name) -> None:
    net = make(name, torch.float32)
    y, v = state(net, torch.float32)
    single = [tweedie.cumulant(Denoiser(net, VP), y, SIGMA, v, order=order) for order in (2, 3, 4)]
    net.double()
    for order, found in zip((2, 3, 4), single, strict=True):
        exact = tweedie.cumulant(Denoiser(net, VP), y.double(), SIGMA, v.double(), order=order)
        assert found.dtype == torch.float32
        assert float((found - exact).norm()) <= 1e-2 * float(exact.norm())


PRECISE = ("MLP gelu_tanh", "MLP mish", "U-Net instance norm", "transformer gelu", "fused causal", "GRU", "MLP relu")


@pytest.mark.parametrize("name", PRECISE)
@pytest.mark.parametrize("precision", ["float64", "float32", "autocast", "bfloat16"])
def test_no_right_network_is_refused_at_higher_orders(name, precision) -> None:
    dtype = torch.float64 if precision == "float64" else torch.float32
    net = make(name, dtype)
    y, v = state(net, dtype)
    function = net
    if precision == "bfloat16":
        net.bfloat16()

        def function(x, t):
            return net(x.bfloat16(), t).float()

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        for size in (1.0, 50.0):
            denoiser = Denoiser(function, VE, "x0")
            for order in (3, 4):
                assert tweedie.cumulant(denoiser, y * size, 0.5 * size, v, order=order).isfinite().all()
