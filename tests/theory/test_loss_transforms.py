"""Losses of denoisers compiled, transformed by torch.func and under autocast: what they are eagerly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jvp, vmap

from loss_cases import Case, by_hand, case, ours

FORMULA = {"rtol": 2e-5, "atol": 2e-6}
SAMPLE = {c.loss + str(number): (number, c) for number in range(40) for c in [case(number, (torch.float32,))]}
FEW = [f"{loss}{number}" for loss in ("denoising", "edm", "hybrid", "vlb_term")
       for number in [n for n, c in SAMPLE.values() if c.loss == loss][:2]]  # fmt: skip


def gradients(loss: torch.Tensor, net: torch.nn.Module) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss.sum(), list(net.parameters())))


def as_eager(compiled: Callable[..., torch.Tensor], c: Case) -> None:
    """Loss and gradients of a compiled loss at first, later and last steps are those of the eager one."""
    for step in (0, 3, 7, 2**60 - 1):
        loss, expected = compiled(c.x, step), ours(c, c.net, c.x, step)
        torch.testing.assert_close(loss, expected, **FORMULA)
        for found, right in zip(gradients(loss, c.net), gradients(expected, c.net), strict=True):
            torch.testing.assert_close(found, right, **FORMULA)


@pytest.mark.long
@pytest.mark.parametrize("name", FEW)
def test_a_whole_graph_of_the_loss_serves_every_step(name: str) -> None:
    torch._dynamo.reset()
    _, c = SAMPLE[name]
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, step: ours(c, c.net, x, step), fullgraph=True, backend=counter)
    as_eager(compiled, c)
    assert counter.frame_count <= 2


def test_inductor_runs_the_loss_and_its_gradient() -> None:
    torch._dynamo.reset()
    _, c = SAMPLE[FEW[1]]
    compiled = torch.compile(lambda x, step: ours(c, c.net, x, step), fullgraph=True, dynamic=True)
    as_eager(compiled, c)


@pytest.mark.parametrize("name", FEW)
def test_transforms_of_torch_func_are_loops(name: str) -> None:
    """grad, vmap(grad) over the parameters of several networks, and over examples; jvp and hessian in a parameter."""
    number, c = SAMPLE[name]
    parameters = {key: value.detach() for key, value in c.net.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor = c.x, t: torch.Tensor = c.t) -> torch.Tensor:
        net = lambda x, t: functional_call(c.net, parameters, (x, t))  # noqa: E731
        return ours(c._replace(t=t, z=None), net, x, number).sum()

    eager = gradients(ours(c._replace(z=None), c.net, c.x, number), c.net)
    for found, right in zip(grad(loss)(parameters).values(), eager, strict=True):
        torch.testing.assert_close(found, right, **FORMULA)
    several = {key: torch.stack([value, 0.5 * value, -value]) for key, value in parameters.items()}
    all_of = vmap(grad(loss))(several)
    for k in range(3):
        of_one = grad(loss)({key: value[k] for key, value in several.items()})
        for key, value in of_one.items():
            torch.testing.assert_close(all_of[key][k], value, **FORMULA)
    x, t = torch.cat([c.x, 0.3 * c.x]), torch.cat([c.t, c.t])
    each = vmap(grad(lambda p, x, t: loss(p, x[None], t[None])), (None, 0, 0))(parameters, x, t)
    for b in range(len(x)):
        for key, value in grad(loss)(parameters, x[b : b + 1], t[b : b + 1]).items():
            torch.testing.assert_close(each[key][b], value, **FORMULA)
    bias = parameters["bias"]
    tangent = jvp(lambda b: loss({**parameters, "bias": b}), (bias,), (torch.ones_like(bias),))[1]
    torch.testing.assert_close(tangent, eager[1].sum(), **FORMULA)
    curved = hessian(lambda b: loss({**parameters, "bias": b}))(bias)
    rows = [grad(lambda b, i=i: grad(lambda b: loss({**parameters, "bias": b}))(b)[i])(bias) for i in range(len(bias))]
    torch.testing.assert_close(curved, torch.stack(rows), **FORMULA)


@pytest.mark.parametrize("name", FEW)
def test_autocast_changes_the_network_alone(name: str) -> None:
    number, c = SAMPLE[name]
    with torch.autocast("cpu", torch.bfloat16):
        loss = ours(c, c.net, c.x, number)
        expected = by_hand(c, c.net, c.x, number)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
