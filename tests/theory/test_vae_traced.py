"""A VAE's loss under torch.compile, torch.func and autocast."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

from ulam import objectives, vae
from vae_cases import LinearChain, TwoLevels, eps_of, written_out

X = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("inference", vae.INFERENCES)
def test_the_loss_is_traced_in_one_graph(inference: str) -> None:
    model = LinearChain((2, 3), inference).model()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(objectives.elbo, backend=graphs, fullgraph=True)
    for step in (3, 4, 5, 2**33):
        expected = objectives.elbo(model, X, step=step)
        torch.testing.assert_close(compiled(model, X, step=step), expected, rtol=1e-12, atol=1e-12)
    assert graphs.frame_count <= 2  # of the first step, and of all others
    options = {"beta": 0.5, "free_bits": 0.2, "samples": 2, "chains": torch.arange(20) + 5, "step": 7}
    expected = objectives.elbo(model, X, **options)
    torch.testing.assert_close(compiled(model, X, **options), expected, rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()


def test_gradients_of_each_example_by_vmap() -> None:
    net = TwoLevels().double()
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, chain: torch.Tensor) -> torch.Tensor:
        def part(name: str, *inputs: torch.Tensor) -> torch.Tensor:
            own = {key.removeprefix(f"{name}."): value for key, value in parameters.items() if key.startswith(name)}
            return torch.func.functional_call(getattr(net, name), own, inputs)

        levels = [
            vae.Level((2,), None, lambda x: part("top", x)),
            vae.Level((3,), lambda z: part("down", z), lambda x, z: part("both", torch.cat([x, z], dim=1))),
        ]
        model = vae.HierarchicalVAE(levels, lambda z: part("out", z), 0.6)
        return objectives.elbo(model, x[None], seed=2, step=3, chains=chain[None]).sum()

    ids = torch.arange(20)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, X, ids)
    objectives.elbo(net.model(), X, seed=2, step=3).sum().backward()
    for name, value in net.named_parameters():
        torch.testing.assert_close(each[name].sum(0), value.grad, rtol=1e-9, atol=1e-12)
    single = torch.func.grad(loss)(parameters, X[4], ids[4])
    torch.testing.assert_close(single["out.bias"], each["out.bias"][4], rtol=1e-9, atol=1e-12)


def test_under_autocast_only_the_networks_are_narrow() -> None:
    net = TwoLevels()
    with torch.autocast("cpu", torch.bfloat16):
        loss = objectives.elbo(net.model(), X.float(), seed=2, step=7)
        assert net.top(X.float()).dtype == torch.bfloat16

        def widened(name: str) -> torch.nn.Module:
            return lambda *inputs: getattr(net, name)(*inputs).float()

        wide = type("Wide", (), {name: staticmethod(widened(name)) for name in ("top", "below", "down", "out")})
        expected = sum(written_out(wide, X.float(), eps_of(7, 0).float()))
    torch.testing.assert_close(loss.float(), expected, rtol=1e-5, atol=1e-5)
    loss.mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())
