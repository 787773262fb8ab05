"""Networks read into instructions are held against the modules, in float64 and in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ulam
from mlp_cases import CASES, MLPCase
from ulam import chain_kernel
from ulam.chain_kernel import tracing
from ulam.evaluation import modules_in
from ulam_kernels.reference.network import evaluate

CHAINS = 5
EXACT = 1e-12  # of float64, relative to the largest output
SINGLE = 2e-6
ROUNDED = {"running averages"}  # whose constants are no weights: computed in float64, and rounded to float32


@pytest.fixture(autouse=True)
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each graph whether it was decomposed; those that were not are as if they had been."""
    told, export, decompose = [], tracing._exported, torch.export.ExportedProgram.run_decompositions

    def noted(*args: Any) -> Any:
        told.append(True)
        return decompose(*args)

    def exported(*args: Any) -> Any:
        before, graph = len(told), export(*args)
        if len(told) == before:
            told.append(False)
            assert tracing._listed(graph) == tracing._listed(decompose(graph, {}))
        return graph

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", noted)
    monkeypatch.setattr(tracing, "_exported", exported)
    return told


def test_only_graphs_that_it_may_change_are_decomposed(decomposed: list[bool]) -> None:
    dropout = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    for net in (
        lambda x, t: x.relu(),
        lambda x, t: (x + 1).relu_(),
        lambda x, t: x.reshape(-1, 2).relu(),
        lambda x, t: dropout(x),
    ):
        compiled(net, (2,))
    assert decomposed == [False, True, True, True]


MORE: list[Any] = [
    *(nn.SELU(), nn.Softshrink(), nn.BatchNorm1d(4), nn.FeatureAlphaDropout(), nn.GLU()),
    lambda x: x[:, [1, 0, 2, 3]],
    lambda x: torch.cat(x.chunk(2, -1), -1) + x.mean(-1, keepdim=True),
    lambda x: x.unflatten(-1, (2, 2)).mT.flatten(1),
    lambda x: (x.T * 2).T.reshape(x.shape[0], -1),
    lambda x: x.clamp(-1, 1) + torch.zeros_like(x) + torch.ones(x.shape[0], 1),
    lambda x: torch.stack([x, x], 1).mean(1) ** 2 / torch.arange(1, 5).sqrt() - x.exp().log().sin().cos(),
    lambda x: torch.where(x > 0, x, 0.1 * x).double().float(),
]


@pytest.mark.long
@pytest.mark.parametrize("operations", MORE, ids=range(len(MORE)))
def test_other_graphs_too(operations: Any) -> None:
    """Also those that are refused: the fixture compares their graphs."""
    linear = nn.Linear(4, 4)
    for module in (operations, linear):
        if isinstance(module, nn.Module):
            module.eval()
    with contextlib.suppress(TypeError):
        compiled(lambda x, t: operations(linear(x)), (4,))


MASK = torch.tensor([[True, False, True, False]])
OPERATIONS: dict[str, Any] = {  # of what depends on x, [chains, 4]
    "GroupNorm": nn.GroupNorm(2, 4),
    "GroupNorm of channels": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.GroupNorm(1, 2), nn.Flatten()),
    "RMSNorm": nn.RMSNorm(4),
    "RMSNorm of parts": lambda x: nn.functional.rms_norm(x.view(-1, 2, 2), (2,), eps=0.1).flatten(1),
    "PReLU": nn.PReLU(init=0.3),
    "PReLU of channels": nn.Sequential(nn.Unflatten(1, (2, 2)), nn.PReLU(2), nn.Flatten()),
    "CELU": nn.CELU(),
    "CELU, alpha": nn.CELU(0.5),
    "Softplus, beta": nn.Softplus(beta=4),
    "LogSigmoid": nn.LogSigmoid(),
    "Hardswish": nn.Hardswish(),
    "Hardtanh": nn.Hardtanh(),
    "clamp": lambda x: x.clamp(-0.25, 0.5),
    "clamp below": lambda x: x.clamp(min=0.25) + x.clamp_min(-0.5),
    "clamp above": lambda x: x.clamp(max=0.25) + x.clamp_max(-0.5),
    "abs": torch.abs,
    "where": lambda x: torch.where(MASK, x, 2 * x) + torch.where(MASK, 0.5, x),
    "masked_fill": lambda x: x.masked_fill(MASK[0], 0.5),
    "pad": lambda x: nn.functional.pad(x.view(-1, 2, 2), (0, 1, 1, 0), value=0.5).flatten(1)[:, 1:5],
    "pad by zeros": lambda x: nn.functional.pad(x, (2, -2)),
    "constants of x's shape": lambda x: torch.cat([torch.full_like(x[:, :1], 0.5), x, torch.ones_like(x)], 1)[:, :4],
    "constants of x's kind": lambda x: torch.cat([x.new_zeros(x.shape[0], 1), x + x.new_full(x.shape, 2)], 1)[:, :4],
}
OF_NUMBERS = {"RMSNorm", "RMSNorm of parts", "Hardswish", "Softplus, beta", "masked_fill"}  # in float32, as 1/6 and eps


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_what_it_is_in_torch(name: str) -> None:
    torch.manual_seed(3)
    operation, before, after = OPERATIONS[name], nn.Linear(4, 4), nn.Linear(4, 4)
    for module in (m for m in (operation, before) if isinstance(m, nn.Module)):
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -2, 2)
    x, t = torch.randn(1000, 4), torch.zeros(1000)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return after(operation(before(x)))

    chain = compiled(net, (4,))
    with torch.no_grad():
        single, plainly = outputs(chain, x, t, {}, torch.float32), net(x, t)
    got = outputs(chain, x, t, {}, torch.float64)
    for module in (operation, before, after):
        if isinstance(module, nn.Module):
            module.double()
    with double(), torch.no_grad():
        expected = net(x.double(), t.double())
    for module in (operation, before, after):
        if isinstance(module, nn.Module):
            module.float()
    assert (got - expected).abs().max() <= (SINGLE if name in OF_NUMBERS else EXACT) * expected.abs().max()
    error, torchs = ((one - expected).square().mean().sqrt() for one in (single, plainly))
    assert error <= 3 * torchs


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Whatever makes float32 tensors makes float64 ones."""
    single, before = torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.float = single  # type: ignore[method-assign]
        torch.set_default_dtype(before)


def made(case: MLPCase) -> tuple[Any, torch.Tensor, torch.Tensor, dict[str, torch.Tensor], dict[str, Any]]:
    torch.manual_seed(3)
    net = case.make()
    shared = {name: torch.randn(shape) for name, shape in case.shared.items()}
    cond = case.conditioning(CHAINS)
    given = cond | {name: ulam.shared(value) for name, value in shared.items()}
    return net, torch.randn(CHAINS, *case.shape), torch.tensor([1.0, 17.0, 250.0, 17.0, 999.0]), cond | shared, given


def compiled(net: Any, shape: tuple[int, ...], cond: dict[str, Any] | None = None) -> chain_kernel.CompiledChain:
    return chain_kernel.compile(ulam.Denoiser(net, ulam.schedules.vp_linear()), shape, cond)


def outputs(
    chain: chain_kernel.CompiledChain, x: torch.Tensor, t: torch.Tensor, cond: dict[str, Any], dtype: torch.dtype
) -> torch.Tensor:
    row = chain.row_vectors(t, dtype).numpy()
    own = chain.chain_vectors(cond, len(x), dtype).numpy()
    return torch.from_numpy(np.array(evaluate(chain.network, x.flatten(1).to(dtype).numpy(), row, own)))


def plain(m: Any) -> torch.Tensor:
    return (m["sample"] if isinstance(m, dict) else m).detach()


@pytest.mark.parametrize("name", CASES)
def test_the_instructions_compute_what_the_module_does(name: str) -> None:
    case = CASES[name]
    net, x, t, cond, given = made(case)
    chain = compiled(net, case.shape, given)
    got = outputs(chain, x, t, given, torch.float64)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in cond.items()}
    for module in modules_in(net):
        module.double().eval()
    with double(), torch.no_grad():
        expected = plain(net(x.double(), t.double(), **wide)).flatten(1)
    assert (got - expected).abs().max() <= (SINGLE if name in ROUNDED else EXACT) * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_in_float32_it_differs_by_rounding(name: str) -> None:
    case = CASES[name]
    net, x, t, cond, given = made(case)
    chain = compiled(net, case.shape, given)
    for module in modules_in(net):
        module.eval()
    with torch.no_grad():
        expected = plain(net(x, t, **cond)).flatten(1)
    got = outputs(chain, x, t, given, torch.float32)
    largest = float(t.max()) * torch.finfo(torch.float32).eps  # what float32 loses of an angle
    assert (got - expected).abs().max() <= (SINGLE + largest) * expected.abs().max()
