"""Other libraries' loops in the project's report: the same work as ulam's where they are installed, else a line."""

from __future__ import annotations

import sys

import pytest
import torch
from bench.peers import INSTALL, PEERS, Peer

import ulam
from ulam import samplers
from ulam.throughput import Work
from ulam.throughput.plain_loop import Unlike
from ulam.throughput.ways import ready

SCHEDULE = ulam.schedules.vp_linear(1000)


def gaussian(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """eps of data N(0, 1/4)."""
    v = torch.tensor(SCHEDULE.variances).float()[t.long()].view(-1, 1)
    return v.sqrt() * x / (0.25 * (1 - v) + v)


def installed(peer: Peer) -> None:
    if peer.name == peer.package:
        pytest.skip(f"{peer.package} is not installed: {INSTALL[peer.package]}")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.package)
@pytest.mark.parametrize("steps, evaluations", [(5, 5), (9, 4)])
def test_it_evaluates_as_often_and_solves_the_same_equation(peer: Peer, steps: int, evaluations: int) -> None:
    installed(peer)
    times = []

    def counting(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        times.append(float(t[0]))
        return gaussian(x, t)

    work = Work(ulam.Denoiser(counting, SCHEDULE), (4,), samplers.DDIM(steps), 8)
    run = peer.run(work, evaluations)
    run()
    assert len(times) == evaluations and times == sorted(times, reverse=True)
    many = Work(work.denoiser, (500,), samplers.DDIM(200), 8)
    assert float(peer.run(many, 200)().std()) == pytest.approx(0.5, rel=0.05)  # the data are N(0, 1/4)
    with pytest.raises(Unlike, match="no sampler"):
        peer.run(Work(work.denoiser, (4,), samplers.UniPC(5), 8), 5)


@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer.package != "azula"], ids=lambda peer: peer.package)
def test_from_the_same_states_its_samples_are_those_of_ulam(peer: Peer) -> None:
    """azula's grid of times is its own."""
    installed(peer)
    denoiser, sampler = ulam.Denoiser(gaussian, SCHEDULE), samplers.DDIM(20)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    ours = ulam.sample(denoiser, sampler, (4,), 8, x_init=x, progress=False)
    theirs = peer.run(Work(denoiser, (4,), sampler, 8), 20)(x)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.package)
def test_one_that_is_missing_is_left_out_with_the_way_to_have_it(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    over = peer.package.replace("-", "_")
    for name in [name for name in sys.modules if name.partition(".")[0] == over]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    work = Work(ulam.Denoiser(gaussian, SCHEDULE), (4,), samplers.DDIM(5), 8)
    with pytest.raises(Unlike, match=rf"^it is not installed: pip install --no-deps {peer.package} "):
        ready(peer.name, work, 5, others={peer.name: peer.run})
    assert peer.name == peer.package and "DDIM" in peer.does
