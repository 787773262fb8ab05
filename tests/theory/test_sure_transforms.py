"""Losses with a derivative inside: the same gradients under torch.func, torch.compile and autocast."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

from network_zoo import Square
from ulam import Denoiser, objectives, schedules, sure

VP = schedules.vp_linear()
Y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGMA = torch.full((4,), 0.5, dtype=torch.float64)
MATRIX = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(1, 6), nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        q, k, v = self.into(x[:, :, None]).chunk(3, dim=2)
        return self.out(F.scaled_dot_product_attention(q, k, v))[:, :, 0] * (1 + t.to(x)[:, None])


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * (1 + t.to(x)[:, None])


Loss = Callable[[Callable[..., torch.Tensor], torch.Tensor], torch.Tensor]
LOSSES: dict[str, Loss] = {
    "denoising": lambda f, y: objectives.denoising_score_matching(f, y, SIGMA[: len(y)], step=1),
    "implicit": lambda f, y: objectives.implicit_score_matching(lambda x: f(x, SIGMA[: len(x)]), y),
    "sliced": lambda f, y: objectives.sliced_score_matching(lambda x: f(x, SIGMA[: len(x)]), y, step=1, samples=2),
    "sure": lambda f, y: objectives.sure(lambda x, s: f(x, s), y, 0.5, step=1, samples=2),
    "sure of a denoiser": lambda f, y: objectives.sure(Denoiser(f, VP), y, 0.5, step=1),
    "sure at levels": lambda f, y: objectives.sure(Denoiser(f, VP), y, SIGMA[: len(y)], step=1),
    "difference": lambda f, y: objectives.sure(lambda x, s: f(x, s), y, 0.5, step=1, divergence="difference"),
    "projected": lambda f, y: objectives.projected_sure(lambda x, s: f(x, s), y, 0.5, MATRIX, step=1),
    "poisson": lambda f, y: objectives.poisson_sure(lambda x: f(x, SIGMA[: len(x)]), (5 * y.abs()).round(), step=1),
}


ATTENTIVE = ("implicit", "sliced", "sure", "sure at levels")


@pytest.mark.parametrize(("name", "make"), [(n, MLP) for n in LOSSES] + [(n, Attention) for n in ATTENTIVE])
def test_gradients_are_the_same_however_they_are_taken(name: str, make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, loss = make().double(), LOSSES[name]
    parameters = dict(net.named_parameters())
    value = loss(net, Y)
    expected = dict(zip(parameters, torch.autograd.grad(value.mean(), list(parameters.values())), strict=True))

    def of(given: dict[str, torch.Tensor], y: torch.Tensor) -> torch.Tensor:
        return loss(lambda x, t: functional_call(net, given, (x, t)), y).mean()

    def close(found: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
        for key, gradient in right.items():
            torch.testing.assert_close(found[key], gradient, rtol=1e-6, atol=1e-9)

    close(grad(of)(parameters, Y), expected)
    two = {key: torch.stack([p.detach(), 2 * p.detach()]) for key, p in parameters.items()}
    close({key: g[0] for key, g in vmap(grad(of), (0, None))(two, Y).items()}, expected)
    each = vmap(lambda p, y: grad(of)(p, y[None]), (None, 0))(parameters, Y)
    close({key: g[2] for key, g in each.items()}, grad(of)(parameters, Y[2:3]))
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(net, Y)
    torch.testing.assert_close(compiled, value, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(compiled.mean(), list(parameters.values()))
    close(dict(zip(parameters, gradients, strict=True)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(net.float(), Y.float())
    assert half.dtype == torch.float32
    torch.testing.assert_close(
        half.detach().double(), value.detach(), rtol=0, atol=0.05 * float(value.detach().abs().max())
    )


def test_the_exact_trace_is_that_of_the_jacobian() -> None:
    """In more dimensions than go at once, in chunks, and one by one where torch.vmap has no rule."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, v):
            (x,) = ctx.saved_tensors
            if torch._C._functorch.maybe_current_level() is not None:
                raise RuntimeError("no rule for torch.vmap")
            return 3 * x**2 * v

    torch.manual_seed(0)
    W = torch.randn(70, 70, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 70, dtype=torch.float64)
    for cube in (lambda x: x**3, Cube.apply):
        found = objectives.implicit_score_matching(lambda x, cube=cube: cube(torch.tanh(x @ W)), x)
        exact = vmap(jacrev(lambda x: torch.tanh(x @ W) ** 3))(x).diagonal(dim1=1, dim2=2).sum(1)
        exact = exact + (torch.tanh(x @ W) ** 3).square().sum(1) / 2
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
        ours, theirs = (torch.autograd.grad(values.sum(), W)[0] for values in (found, exact))
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "loss", [objectives.implicit_score_matching, lambda f, x: LOSSES["sliced"](lambda x, _: f(x), x)]
)
def test_without_recording_the_value_is_the_same(loss) -> None:
    expected = loss(torch.tanh, Y)
    with torch.no_grad():
        found = loss(torch.tanh, Y)
    assert torch.equal(found, expected.detach()) and not found.requires_grad


def test_a_score_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"score: got shape \[4, 1\], expected \[4, 6\] like its input"):
        objectives.denoising_score_matching(lambda x, s: x[:, :1], Y, SIGMA, step=0)


@pytest.mark.parametrize("level", [-0.5, float("nan"), float("inf")])
def test_levels_that_are_none_are_refused(level: float) -> None:
    sigma = torch.tensor([0.5, 0.5, level, 0.5])
    with pytest.raises(ValueError, match=r"sigma: got .*, expected finite levels of at least 0"):
        objectives.denoising_score_matching(lambda x, s: x, Y, sigma, step=0)
    with pytest.raises(ValueError, match=r"sigma: got .*, expected finite levels of at least 0"):
        objectives.second_order_score_matching(lambda x, s: x, lambda x, s: x, Y, sigma, form="diagonal", step=0)


@pytest.mark.parametrize("estimate", [None, torch.tensor(1.0), torch.ones(4), torch.ones(3, 6), torch.ones(4, 6) > 0])
@pytest.mark.parametrize("divergence", ["exact", "difference"])
def test_estimates_that_are_no_batch_are_refused_behind_an_operator(estimate: object, divergence: str) -> None:
    for operator in (MATRIX, (lambda x: x, lambda v: v)):
        for function in (lambda **given: objectives.projected_sure(**given, step=0), sure.projected):
            with pytest.raises((TypeError, ValueError), match=r"^denoiser: got .*, expected "):
                function(denoiser=lambda y: estimate, y=Y, sigma=0.5, operator=operator, divergence=divergence)


@pytest.mark.parametrize("function", [lambda **given: objectives.projected_sure(**given, step=0), sure.projected])
def test_an_operator_that_is_not_finite_is_refused(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"^operator: got a matrix with infinite or NaN entries, expected finite ones"):
        function(denoiser=lambda y: y, y=Y, sigma=0.5, operator=MATRIX / 0)


def test_examples_without_elements_are_refused() -> None:
    for none in (torch.ones(4, 0), torch.ones(0, 6)):
        with pytest.raises(ValueError, match=r"x: got .*, expected a float tensor \[B, \*shape\], not empty"):
            objectives.sliced_score_matching(lambda x: x, none, step=0)
        with pytest.raises(ValueError, match=r"x_0: got .*, expected a float tensor \[B, \*shape\], not empty"):
            objectives.add_noise(none, 5, VP, step=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch.compile's own
@pytest.mark.parametrize("name", ["implicit", "sliced", "sure", "projected"])
def test_a_function_whose_second_derivative_a_graph_loses_is_refused(name: str) -> None:
    """Only where the loss contains its derivative, and is trained."""
    torch.manual_seed(0)
    net, loss = MLP().double(), LOSSES[name]
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager")
    with pytest.raises(RuntimeError, match=r"torch\.compile: got a network with a torch\.autograd\.Function in a loss"):
        compiled(lambda x, t: Square.apply(net(x, t)), Y)
    with torch.no_grad():
        value = compiled(lambda x, t: Square.apply(net(x, t)), Y)
    torch.testing.assert_close(value, loss(lambda x, t: net(x, t) ** 2, Y).detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch.compile's own
def test_a_function_outside_of_the_derivative_is_taken_in_a_graph() -> None:
    torch.manual_seed(0)
    net = MLP().double()
    torch._dynamo.reset()
    both = lambda f, y: Square.apply(f(y, SIGMA)).mean() + LOSSES["sliced"](f, y)  # noqa: E731
    ours, theirs = (
        torch.autograd.grad(function(net, Y).sum(), list(net.parameters()))
        for function in (torch.compile(both, backend="aot_eager", fullgraph=True), both)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", [-1, 2**60])
@pytest.mark.parametrize("loss", [
    lambda f, step: objectives.denoising(Denoiser(f, VP), Y.float(), 5, step=step),
    lambda f, step: objectives.sure(Denoiser(f, VP), Y.float(), 0.5, step=step),
])  # fmt: skip
def test_a_step_out_of_range_is_named_in_graphs_of_every_step_too(loss: Callable[..., object], step: int) -> None:
    torch._dynamo.reset()
    net, compiled = MLP(), torch.compile(loss, backend="eager", fullgraph=True)
    for right in (0, 1):
        compiled(net, right)
    with pytest.raises(RuntimeError, match=rf"step: got {step}, expected 0 to 2\^[46]0 - 1"):
        compiled(net, step)
