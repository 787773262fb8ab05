"""Derivatives of every kind of network against central differences; those that hide theirs are refused everywhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import network_zoo
import ulam
from derivative_cases import SIGMA, VE, VP, close, differences, state, users
from network_zoo import HIDING, Hidden, make, smooth
from ulam import Denoiser, schedules, sure, tweedie
from ulam.estimation.derivatives import Derivatives
from ulam.estimation.estimator import Estimator
from ulam.estimation.probes import probes

ZOO = network_zoo.zoo()
REVERSE = {name for name in ZOO if name.startswith(("attention", "fused", "transformer"))} - {"fused math"}
REVERSE |= {"MLP old function", "MLP function"}  # no formulas in forward mode, in float64 at least


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
    lower = differences(lambda at: tweedie.cumulant(denoiser, at, SIGMA, v, cond, order=3), y, v, h=2e-4)
    close(tweedie.cumulant(denoiser, y, SIGMA, v, cond, order=4), SIGMA**2 * lower[0], 1e-6)
    risk = sure.estimate(denoiser, y, SIGMA, cond)
    probe = next(probes(y, 1))
    along = (probe * differences(estimator, y, probe, h=2e-4)[0]).flatten(1).sum(1)
    torch.testing.assert_close(risk.divergence, along, rtol=1e-5, atol=1e-6)
    assert risk.derivatives == "reverse" and denoiser.modes["second"] == "reverse"
