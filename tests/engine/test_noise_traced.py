"""The noise of training examples in what torch compiles and transforms: the eager bits, in one graph for every step."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch.func import grad, hessian, jvp, vmap

from ulam import noise

IDS = noise.examples(4)
STEPS = (0, 1, 2, 3, 17, 2**31, 2**59 - 1, 2**59, 2**60 - 1)
SEEDS = (3, 4, 5, 2**63, 2**64 - 1, -(2**63))


def draw(ids: torch.Tensor, step: int, seed: int = 3) -> torch.Tensor:
    return noise.normal_for(noise.TRAINING, (3,), seed=seed, chains=ids, row=step)


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize(("backend", "dynamic", "graphs"), [("aot_eager", None, 2), ("inductor", True, 1)])
def test_one_graph_serves_every_step(backend: str, dynamic: bool | None, graphs: int) -> None:
    """Without dynamic=True there is one of the first step alone. The draw of a late step, 16 times its number, has more
    than 63 bits: inductor has no such numbers, tensors wrap.
    """
    counter = CompileCounterWithBackend(backend)

    @torch.compile(backend=counter, fullgraph=True, dynamic=dynamic)
    def shifted(x: torch.Tensor, step: int) -> torch.Tensor:
        return x + draw(noise.examples(len(x)), step)

    for step in STEPS:
        assert torch.equal(shifted(torch.zeros(4, 3), step), draw(IDS, step)), step
    assert counter.frame_count <= graphs


def test_seeds_of_64_bits() -> None:
    counter = CompileCounter()
    compiled = torch.compile(lambda seed: draw(IDS, 7, seed), backend=counter, fullgraph=True)
    for seed in SEEDS:
        assert torch.equal(compiled(seed), draw(IDS, 7, seed)), seed
    assert counter.frame_count <= 5  # those of 64 bits are constants


def test_ids_outside_of_a_batch_are_refused_under_compile_as_elsewhere() -> None:
    for step in (2**60, -1):
        with pytest.raises(Exception, match="row: got "):
            torch.compile(lambda step: draw(IDS, step), backend="eager", fullgraph=True)(step)


def test_vmap_is_the_loop() -> None:
    z = draw(IDS, 7)
    assert torch.equal(vmap(lambda i: draw(i[None], 7)[0])(IDS), z)
    assert torch.equal(vmap(vmap(lambda i: draw(i[None], 7)[0]))(IDS.view(2, 2)), z.view(2, 2, 3))
    x = torch.zeros(5, 3)
    assert torch.equal(vmap(lambda x: x + draw(IDS[:1], 7)[0])(x), z[:1].expand(5, 3))  # of one id in every call
    assert torch.equal(vmap(lambda x, i: x + draw(i[None], 7)[0])(x[:4], IDS), z)


def test_transforms_of_torch_func() -> None:
    x, z = torch.randn(4, 3), draw(IDS, 7)
    assert torch.equal(grad(lambda x: (x * draw(IDS, 7)).sum())(x), z)
    assert torch.equal(vmap(grad(lambda x, i: (x * draw(i[None], 7)[0]).sum()))(x, IDS), z)
    assert torch.equal(jvp(lambda x: x * draw(IDS, 7), (x,), (x,))[1], x * z)
    of_squares = hessian(lambda x: (x.pow(2) * draw(IDS, 7)).sum())(x)
    assert torch.equal(of_squares.view(12, 12), torch.diag(2 * z.flatten()))


def test_noise_of_examples_is_numbered_by_seed_step_and_id() -> None:
    x = torch.empty(4, 2, 3, dtype=torch.float64)
    z = noise.for_examples(x, seed=3, step=7, chains=None)
    expected = noise.normal((2, 3), seed=3, chains=IDS, row=7, stage=noise.TRAINING.stage, tag=noise.TRAINING.tag)
    assert z.dtype == torch.float64 and torch.equal(z.float(), expected)
    half = noise.for_examples(x.bfloat16(), seed=3, step=7, chains=IDS)
    assert half.dtype == torch.float32 and torch.equal(half, expected)
