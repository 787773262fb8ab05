"""Training on two ranks: the gradients of DistributedDataParallel are those of the joint batch, and no noise is shared.

Two processes on the CPU, with gloo, run every loss once; the tests compare what they saved.
"""

from __future__ import annotations

import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import rank_cases as cases
import ulam
from ulam import noise, objectives
from ulam.objectives import timesteps

SIZES = (3, 5)  # of the batches of rank 0 and 1 whose noise is compared
EXPORTED = [name for name in objectives.__all__ if name not in cases.NO_LOSSES]


def on_a_rank(rank: int, folder: str) -> None:
    """All that a rank does; what it found is saved in the folder, errors too."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=cases.WORLD, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {}
    for name in (*filter(cases.LOSSES.get, EXPORTED), *SPECIAL):
        try:
            found[name] = SPECIAL[name](rank) if name in SPECIAL else trained(cases.LOSSES[name], rank)
        except Exception:
            found[name] = traceback.format_exc()
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def trained(case: cases.Case, rank: int) -> dict[str, Any]:
    module, size = cases.network(case), SIZES[rank]
    net = DistributedDataParallel(module)
    return {
        "gradients": cases.gradients(case, net, module, cases.data(rank), None),
        "training": module.training and net.training,
        "apart": [cases.drawn(case, size, chains) for chains in (None, noise.examples(size, micro_batch=1))],
        "told": cases.drawn(case, 3, range(3)),
    }


def sampled(rank: int) -> dict[str, Any]:
    """Samples of a wrapped network, which is in training mode, and of the network itself."""
    module = cases.Network()
    net = DistributedDataParallel(module)
    draw = [
        ulam.sample(ulam.Denoiser(each, cases.VP), ulam.samplers.DDIM(steps=3), cases.SHAPE, 2, 0, progress=False)
        for each in (net, module)
    ]
    return {"draws": draw, "training": module.training and net.training}


def remembered(rank: int) -> torch.Tensor:
    """The probabilities that ranks with batches of different sizes come to."""
    times = timesteps.LossAware(ulam.schedules.vp_linear(4))
    times.update(*losses_of(rank))
    return times.probabilities


class Uneven(torch.nn.Module):
    """With a buffer, which ranks share; on rank 1 it bends so much that its derivative is compared at every step."""

    steepness: torch.Tensor

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.layer, self.rank, self.calls = torch.nn.Linear(6, 6), rank, [0, 0]
        self.register_buffer("steepness", torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[self.training] += 1
        bent = torch.sin(300 * x) if self.rank else x
        return self.layer(x) * self.steepness + bent


def checked(rank: int) -> dict[str, list[Any]]:
    """How often buffers were sent while derivatives were checked, and how often a network was called meanwhile."""
    found: dict[str, list[Any]] = {"sent": [], "calls": []}
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    losses: list[Any] = [
        lambda net: objectives.sliced_score_matching(net, x, step=1),
        lambda net: objectives.sure(net, x, 0.5, step=1, check=True),
    ]
    for loss in losses:
        module = Uneven(rank)
        net = DistributedDataParallel(module)
        send, sent = net._sync_buffers, [0, 0]

        def counted(send: Any = send, sent: list[int] = sent, module: Uneven = module) -> None:
            sent[module.training] += 1
            send()

        net._sync_buffers = counted
        for _ in range(2):
            loss(net).mean().backward()
        found["sent"].append(sent)
        found["calls"].append(module.calls)
    return found


SPECIAL = {"sampling": sampled, "history": remembered, "checks": checked}


def losses_of(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.arange(4).repeat(8 + 2 * rank)
    return t, (1.0 + t) * torch.rand(len(t), generator=torch.Generator().manual_seed(rank))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(on_a_rank, (str(folder),), nprocs=cases.WORLD)
    return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(cases.WORLD)]


def of(ranks: list[dict[str, Any]], name: str) -> list[Any]:
    for rank, found in enumerate(ranks):
        assert not isinstance(found[name], str), f"rank {rank}: {found[name]}"
    return [found[name] for found in ranks]


def case_of(name: str) -> cases.Case:
    assert name in cases.LOSSES, f"{name}: a loss that ulam.objectives exports, expected a line in rank_cases.LOSSES"
    return cases.LOSSES[name]


@pytest.mark.parametrize("name", EXPORTED)
def test_gradients_on_two_ranks_are_those_of_the_joint_batch(ranks: list[dict[str, Any]], name: str) -> None:
    case, found = case_of(name), of(ranks, name)
    module = cases.network(case)
    ids = torch.cat([noise.examples(cases.COUNT, rank=rank) for rank in range(cases.WORLD)])
    joint = torch.cat([cases.data(rank) for rank in range(cases.WORLD)])
    expected = cases.gradients(case, module, module, joint, ids)
    assert len(expected) >= 4 and all(bool(gradient.any()) for gradient in expected)
    for one in found:
        assert one["training"]
        for gradient, exact in zip(one["gradients"], expected, strict=True):
            assert float((gradient - exact).norm()) <= 1e-6 * float(exact.norm()), name


@pytest.mark.parametrize("name", EXPORTED)
def test_ranks_and_micro_batches_share_no_noise_unless_told_to(ranks: list[dict[str, Any]], name: str) -> None:
    """Equal examples of both ranks, of batches of 3 and 5, in two micro-batches: 16 different draws."""
    case, found = case_of(name), of(ranks, name)
    draws = torch.cat([batch for one in found for batch in one["apart"]]).double()
    apart = torch.pdist(draws)
    assert len(draws) == 2 * sum(SIZES)
    assert float(apart.min()) > 1e-5 if case.random else float(apart.max()) < 1e-5
    torch.testing.assert_close(found[0]["told"], found[1]["told"], rtol=1e-6, atol=1e-6)


def test_a_wrapped_network_is_sampled_as_the_network_itself(ranks: list[dict[str, Any]]) -> None:
    for one in of(ranks, "sampling"):
        assert torch.equal(*one["draws"]) and one["training"]


def test_ranks_agree_on_the_losses_that_times_are_drawn_by(ranks: list[dict[str, Any]]) -> None:
    times = timesteps.LossAware(ulam.schedules.vp_linear(4))
    times.update(*(torch.cat(parts) for parts in zip(*map(losses_of, range(cases.WORLD)), strict=True)))
    for probabilities in of(ranks, "history"):
        assert torch.equal(probabilities, times.probabilities)
    assert not bool((times.probabilities == 0.25).all())


def test_checks_of_derivatives_wait_for_no_other_rank(ranks: list[dict[str, Any]]) -> None:
    """Ranks make different numbers of calls in them, so none may be collective."""
    first, second = of(ranks, "checks")
    assert first["sent"] == second["sent"] == [[0, 2], [0, 2]]
    assert first["calls"] != second["calls"] and all(calls[0] > 0 for calls in first["calls"] + second["calls"])
