"""Which derivatives run, forward or reverse, what a network without them gives, and what a denoiser remembers."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch

import network_zoo
import ulam
from derivative_cases import SIGMA, VP, differences, state, users
from network_zoo import make
from ulam import Denoiser, sure, tweedie
from ulam.estimation import measure as check
from ulam.estimation.derivatives import Derivatives
from ulam.estimation.estimator import Estimator


@torch.library.custom_op("ulam_tests::opaque_sine", mutates_args=())
def opaque_sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


def test_a_network_without_derivatives_is_refused_in_one_line() -> None:
    y = torch.randn(3, 6)
    for mode in ("auto", "forward", "reverse"):
        denoiser = Denoiser(lambda x, t: opaque_sine(x), VP, derivatives=mode)
        for name, use in users(denoiser, y).items():
            with pytest.raises(TypeError, match=r"^net: got <lambda>.* derivative in x ") as told:
                use()
            assert "\n" not in str(told.value), name
            if name in ("third", "fourth") or mode != "forward":  # forward mode takes the operation's tangent for 0
                assert "without" in str(told.value) and "register_autograd" in str(told.value)


def test_forward_mode_alone_is_refused_with_the_way_out() -> None:
    net = make("attention", torch.float32)
    y, _ = state(net, torch.float32)
    with pytest.raises(TypeError, match=r"\(forward: .*\).* or derivatives='auto' in place of 'forward'"):
        sure.estimate(Denoiser(net, VP, derivatives="forward"), y, 0.5)
    assert sure.estimate(Denoiser(net, VP), y, 0.5).derivatives == "reverse"


def test_what_cannot_be_differentiated_twice_is_not_taken_for_0() -> None:
    net = network_zoo.MLP(network_zoo.OnceSine.apply).double()
    y, v = state(net)
    denoiser = Denoiser(net, VP)
    estimator = Estimator(denoiser, y, 0.5)
    along = (v * Derivatives(estimator, y).image(v)).flatten(1).sum(1)
    torch.testing.assert_close(along, (v * differences(estimator, y, v)[0]).flatten(1).sum(1))
    for use in (tweedie.covariance_product, tweedie.third_cumulant):
        with pytest.raises(TypeError, match="net: got MLP"):
            use(denoiser, y, 0.5, v)


def test_an_error_of_the_network_itself_is_raised_as_it_is() -> None:
    y = torch.randn(3, 6)
    broken = Denoiser(lambda x, t: x @ torch.ones(5, 6), VP)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sure.estimate(broken, y, 0.5)
    assert not broken.modes and not broken._found


@pytest.mark.parametrize("mode", ["auto", "reverse"])
def test_results_say_which_mode_ran_and_agree(mode) -> None:
    net = make("MLP silu")
    y, _ = state(net)
    denoiser = Denoiser(net, VP, derivatives=mode)
    ran = {"auto": "forward", "reverse": "reverse"}[mode]
    found = sure.estimate(denoiser, y, SIGMA)
    assert found.derivatives == tweedie.covariance_trace(denoiser, y, SIGMA).derivatives == ran
    assert ulam.bounds.likelihood(denoiser, y, steps=2).derivatives == "reverse"
    other = sure.estimate(Denoiser(net, VP, derivatives="forward"), y, SIGMA)
    torch.testing.assert_close(found.per_chain, other.per_chain, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.divergence, other.divergence, rtol=1e-12, atol=0)
    (level,) = check.measure(denoiser, y.repeat(2, 1), [0.5])
    assert level.derivatives == ran


def test_the_likelihood_is_one_in_both_modes() -> None:
    net = make("U-Net group norm")
    y, _ = state(net)
    found = [
        ulam.bounds.likelihood(Denoiser(net, VP, derivatives=mode), y, steps=3, samples=2)
        for mode in ("forward", "reverse")
    ]
    assert [each.derivatives for each in found] == ["forward", "reverse"]
    torch.testing.assert_close(found[0].log_prob, found[1].log_prob, rtol=1e-12, atol=0)


def test_a_network_is_looked_into_once() -> None:
    net, calls = make("MLP gelu", torch.float32), []

    def counting(x, t):
        calls.append(1)
        return net(x, t)

    y, _ = state(net, torch.float32)
    for mode, forward in (("auto", 2), ("reverse", 1)):  # evaluations for two probes
        denoiser = Denoiser(counting, VP, derivatives=mode)
        sure.estimate(denoiser, y, 0.5, samples=2)
        calls.clear()
        sure.estimate(denoiser, y, 0.7, samples=2)
        assert len(calls) == forward


@pytest.mark.parametrize("mode", ["auto", "reverse"])
def test_inference_mode_changes_nothing(mode) -> None:
    net = make("attention with weights")
    y, v = state(net)
    expected = tweedie.third_cumulant(Denoiser(net, VP, derivatives=mode), y, 0.5, v)
    risk = sure.estimate(Denoiser(net, VP, derivatives=mode), y, 0.5)
    with torch.inference_mode():
        made = (y * 1.0, v * 1.0)
        denoiser = Denoiser(net, VP, derivatives=mode)
        torch.testing.assert_close(tweedie.third_cumulant(denoiser, made[0], 0.5, made[1]), expected)
        assert torch.equal(sure.estimate(denoiser, made[0], 0.5).per_chain, risk.per_chain)
    assert torch.equal(sure.estimate(denoiser, made[0], 0.5).per_chain, risk.per_chain)


def test_parameters_that_require_grad_get_none() -> None:
    net = make("U-Net batch norm", torch.float32).requires_grad_(True)
    y, v = state(net, torch.float32)
    denoiser = Denoiser(net, VP, derivatives="reverse")
    for result in (tweedie.third_cumulant(denoiser, y, 0.5, v), sure.estimate(denoiser, y, 0.5).per_chain):
        assert not result.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_denoiser_names_its_modes() -> None:
    assert "derivatives='auto'" in repr(Denoiser(lambda x, t: x, VP))
    message = "derivatives: got 'backward', expected one of auto, forward, reverse"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Denoiser(lambda x, t: x, VP, derivatives="backward")


def test_a_denoiser_replaced_or_copied_keeps_to_its_own_mode() -> None:
    net = make("MLP silu")
    y, _ = state(net)
    denoiser = Denoiser(net, VP)
    assert sure.estimate(denoiser, y, 0.5).derivatives == "forward"
    other = dataclasses.replace(denoiser, derivatives="reverse")
    assert not other.modes and sure.estimate(other, y, 0.5).derivatives == "reverse"
    assert denoiser.modes == {"first": "forward"} and copy.deepcopy(denoiser).modes == denoiser.modes
