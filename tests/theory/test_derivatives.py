"""Derivatives of every kind of network against central differences; those that hide theirs are refused everywhere."""

from __future__ import annotations

import copy
import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import network_zoo
import ulam
from central_differences import close, differences
from network_zoo import HIDING, Hidden, make, smooth
from ulam import Denoiser, schedules, sure, tweedie
from ulam.estimation import measure as check
from ulam.estimation.derivatives import Derivatives
from ulam.estimation.estimator import Estimator
from ulam.estimation.probes import probes

VE, VP = schedules.ve(0.01, 50.0), schedules.vp_linear()
SIGMA = torch.tensor([0.3, 0.8, 2.0], dtype=torch.float64)
ZOO = network_zoo.zoo()
REVERSE = {name for name in ZOO if name.startswith(("attention", "fused", "transformer"))} - {"fused math"}
REVERSE |= {"MLP old function", "MLP function"}  # no formulas in forward mode, in float64 at least


def state(net, dtype=torch.float64, seed=1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(2, len(SIGMA), *net.shape, generator=generator, dtype=torch.float64)
    return draw[0].to(dtype), draw[1].to(dtype)


@pytest.mark.parametrize("name", ZOO)
def test_derivatives_of_every_network_are_those_of_central_differences(name) -> None:
    net = make(name)
    y, v = state(net)
    for mode in ("auto", "reverse"):
        denoiser = Denoiser(net, VP, derivatives=mode)
        estimator = Estimator(denoiser, y, SIGMA)
        first, second = differences(estimator, y, v, 1e-3 if smooth(name) else 1e-7)
        derivatives = Derivatives(estimator, y)
        ran = "reverse" if mode == "reverse" or name in REVERSE else "forward"
        close(derivatives.product(v), first, 1e-7)
        assert derivatives.mode == ran
        along = (v * derivatives.image(v)).flatten(1).sum(1)
        torch.testing.assert_close(along, (v * first).flatten(1).sum(1), rtol=1e-6, atol=1e-8)
        if smooth(name):
            close(derivatives.second(v), second, 1e-5)
        else:  # straight pieces: the network's second derivative is 0
            assert not derivatives.second(v).any() or name.startswith("transformer")
        assert denoiser.modes == {"first": ran, "second": "reverse"}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
def test_no_right_network_is_refused_at_any_precision(name, precision) -> None:
    for seed in range(2):
        net = make(name, torch.float32, seed)
        y, v = state(net, torch.float32, seed)
        function = net
        if precision == "bfloat16":
            if name == "MLP spectrum":
                pytest.skip("torch has no bfloat16 Fourier transforms")
            net.bfloat16()

            def function(x, t, net=net):
                return net(x.bfloat16(), t).float()

        for schedule, predicts in ((VP, "eps"), (VE, "x0")):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
                derivatives = Derivatives(Estimator(Denoiser(function, schedule, predicts), y, SIGMA), y)
                for derivative in (derivatives.image, derivatives.product, derivatives.second):
                    assert derivative(v).isfinite().all()


LARGE = ("transformer gelu", "MLP sine", "MLP softshrink", "MLP glu", "fused float", "einsum", "MLP tanh")


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("precision", ["float64", "float32", "autocast", "bfloat16"])
def test_no_right_network_is_refused_where_states_are_far_larger_than_what_it_changes_on(name, precision) -> None:
    """A step of the differences jumps over many waves of the network there, or from one flat end to the other."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    schedule = schedules.ve(0.001, 200)
    for seed in range(2):
        net = make(name, dtype, seed)
        y, v = state(net, dtype, seed)
        function = net
        if precision == "bfloat16":
            net.bfloat16()

            def function(x, t, net=net):
                return net(x.bfloat16(), t).float()

        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            for levels in ((50.0,), (150.0,), (0.5, 50.0)):
                denoiser = Denoiser(function, schedule, "x0")
                for sigma in levels:
                    derivatives = Derivatives(Estimator(denoiser, y * sigma, sigma), y * sigma)
                    for derivative in (derivatives.image, derivatives.product, derivatives.second):
                        assert derivative(v).isfinite().all()


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_half_precision_hides_nothing_at_further_noise_levels(precision) -> None:
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) / 4
    kept = weight.bfloat16() if precision == "bfloat16" else weight

    def net(x, t):
        hidden = torch.where(t[:, None] >= 1, x.detach(), x).to(kept.dtype)
        return torch.tanh(hidden @ kept).to(x.dtype)

    y = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        denoiser = Denoiser(net, VE, predicts="x0")
        sure.estimate(denoiser, y, 0.5)
        with pytest.raises(TypeError, match=r"^net: got net, whose derivative in x .* off finite differences"):
            sure.estimate(denoiser, y, 5.0)


def users(denoiser: Denoiser, y: torch.Tensor):
    """Everything that differentiates a denoiser, by name."""
    v = torch.ones_like(y)
    return {
        "sure": lambda: sure.estimate(denoiser, y, 0.5),
        "likelihood": lambda: ulam.bounds.likelihood(denoiser, y, steps=2),
        "exact likelihood": lambda: ulam.bounds.likelihood(denoiser, y, steps=2, trace="exact"),
        "product": lambda: tweedie.covariance_product(denoiser, y, 0.5, v),
        "diagonal": lambda: tweedie.covariance_diagonal(denoiser, y, 0.5),
        "trace": lambda: tweedie.covariance_trace(denoiser, y, 0.5),
        "eigenpairs": lambda: tweedie.eigenpairs(denoiser, y, 0.5, 1),
        "third": lambda: tweedie.third_cumulant(denoiser, y, 0.5, v),
        "check": lambda: list(check.measure(denoiser, y.repeat(2, 1), [0.5])),
    }


@pytest.mark.parametrize("how", HIDING)
@pytest.mark.parametrize("mode", ["auto", "reverse"])
def test_a_network_that_hides_its_derivative_is_refused_by_everything(how, mode) -> None:
    torch.manual_seed(0)
    if mode == "auto" and how == "no_grad":
        pytest.skip("forward mode sees through no_grad")
    for part, whole in ((1.0, True), (0.3, False)):
        for dtype in (torch.float64, torch.float32):
            net = Hidden(HIDING[how], part, whole).to(dtype)
            y = state(net, dtype)[0]
            for name in users(Denoiser(net, VP), y):
                denoiser = Denoiser(net, VP, derivatives=mode)
                with pytest.raises(TypeError, match=r"^net: got Hidden, whose .*derivative in x .* off finite") as told:
                    users(denoiser, y)[name]()
                assert "\n" not in str(told.value), name


@pytest.mark.parametrize("mode", ["auto", "reverse"])
def test_a_network_that_hides_its_derivative_at_some_noise_levels_is_refused_there(mode) -> None:
    """What was seen at one level is no proof for levels far away; in between it stays."""
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)) / 4

    def net(x, t):
        return torch.tanh(torch.where(t[:, None] >= 1, x.detach(), x) @ weight)

    y = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    for use in (
        lambda denoiser, sigma: sure.estimate(denoiser, y, sigma),
        lambda denoiser, sigma: tweedie.covariance_product(denoiser, y, sigma, y),
        lambda denoiser, sigma: tweedie.third_cumulant(denoiser, y, sigma, y),
        lambda denoiser, sigma: sure.estimate(denoiser, y, torch.tensor([0.5, 0.5, 0.5, sigma])),
        lambda denoiser, sigma: ulam.bounds.likelihood(denoiser, y, steps=20, sigma_max=sigma),
    ):
        denoiser = Denoiser(net, VE, predicts="x0", derivatives=mode)
        use(denoiser, 0.5)
        for _ in range(2):
            with pytest.raises(TypeError, match=r"^net: got net, whose derivative in x .* off finite differences"):
                use(denoiser, 5.0)
        use(denoiser, 0.5)


def test_a_network_is_looked_into_once_for_levels_that_are_near(monkeypatch) -> None:
    net, looks = make("MLP silu"), []
    held = ulam.estimation.derivatives.held
    monkeypatch.setattr(ulam.estimation.derivatives, "held", lambda *given: looks.append(given[2]) or held(*given))
    y, v = state(net)
    denoiser = Denoiser(net, VP)
    for sigma in (0.5, 0.6, 0.9, 0.3):
        sure.estimate(denoiser, y, sigma)
    assert looks == ["forward"]
    sure.estimate(denoiser, y, 5.0)
    tweedie.covariance_product(denoiser, y, 5.5, v)
    assert looks == ["forward", "forward"]


def test_forward_mode_sees_through_no_grad() -> None:
    torch.manual_seed(0)
    net = Hidden(HIDING["no_grad"]).double()
    y, v = state(net)
    found = tweedie.covariance_product(Denoiser(net, VP), y, 0.5, v)
    estimator = Estimator(Denoiser(net, VP), y, 0.5)
    close(found, 0.25 * differences(estimator, y, v)[0], 1e-8)


def test_networks_that_do_not_look_at_x_are_served() -> None:
    y = torch.randn(3, 6, dtype=torch.float64)
    constant = Denoiser(lambda x, t: torch.ones_like(x), VE, predicts="x0")
    assert not tweedie.covariance_diagonal(constant, y, 0.5).any()
    zero = nn.Linear(6, 6).double()
    nn.init.zeros_(zero.weight)
    denoiser = Denoiser(lambda x, t: zero(x), VE, predicts="x0")
    assert not sure.estimate(denoiser, y, 0.5).divergence.any()
    nn.init.eye_(zero.weight)
    zero.forward = lambda x: F.linear(x.detach(), zero.weight)  # what was seen at 0 proves nothing
    with pytest.raises(TypeError, match="off finite differences"):
        sure.estimate(denoiser, y, 0.5)


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
            if name == "third" or mode != "forward":  # forward mode takes the operation's tangent for 0
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


def diffusers_networks():
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

    def unet():
        return UNet2DModel(
            sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    def conditional():
        return UNet2DConditionModel(
            sample_size=8, in_channels=2, out_channels=2, layers_per_block=1, block_out_channels=(8, 16),
            norm_num_groups=4, attention_head_dim=4, cross_attention_dim=6,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    def dit():
        return DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=4, in_channels=2, out_channels=2, num_layers=2,
            sample_size=8, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=2,
        )  # fmt: skip

    return {"unet": unet, "conditional": conditional, "dit": dit}


@pytest.mark.parametrize("name", ["unet", "conditional", "dit"])
def test_networks_of_diffusers(name) -> None:
    from diffusers import DDPMScheduler

    torch.manual_seed(0)
    net = diffusers_networks()[name]().eval().double()
    for parameter in net.parameters():  # zero layers would leave nothing to differentiate
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    denoiser = Denoiser.from_diffusers(net, scheduler=DDPMScheduler())
    cond = {
        "unet": {},
        "conditional": {"encoder_hidden_states": torch.randn(3, 4, 6, dtype=torch.float64)},
        "dit": {"class_labels": torch.tensor([1, 2, 3])},
    }[name]
    y, v = torch.randn(2, 3, 2, 8, 8, dtype=torch.float64)
    estimator = Estimator(denoiser, y, SIGMA, cond)
    first, second = differences(estimator, y, v, h=2e-4)
    variance = estimator.per_chain(estimator.sigma**2)
    close(tweedie.covariance_product(denoiser, y, SIGMA, v, cond), variance * first, 1e-6)
    close(tweedie.third_cumulant(denoiser, y, SIGMA, v, cond), variance**2 * second, 1e-3)
    risk = sure.estimate(denoiser, y, SIGMA, cond)
    probe = next(probes(y, 1))
    along = (probe * differences(estimator, y, probe, h=2e-4)[0]).flatten(1).sum(1)
    torch.testing.assert_close(risk.divergence, along, rtol=1e-5, atol=1e-6)
    assert risk.derivatives == "reverse" and denoiser.modes["second"] == "reverse"


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
