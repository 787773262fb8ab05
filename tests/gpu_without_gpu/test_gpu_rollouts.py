"""Trajectories on a GPU, as far as a stand-in with torch's own rules can tell: the CPU's bits, whole when they are
handed out, and densities of networks that live there."""

from __future__ import annotations

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, net
from gpu_cases import GUIDED, expected, make
from ulam import rollouts
from ulam.rollouts import Rollout
from ulam.samplers import DDIM, DDPM, DPMSolverPP

pytest_plugins = "gpu_stand_in"

SOLVER = DPMSolverPP(steps=7, sde=True)
RECORDED = ("states", "history", "squares", "outputs", "x")


def same(found, wanted, names=RECORDED):
    for name in names:
        one, other = getattr(found, name), getattr(wanted, name)
        assert one is other is None or torch.equal(one.cpu(), other)


def submitted(engine, sampler, rollout, **given):
    job = engine.submit(sampler, 6, 5, rollout=rollout, **given)
    engine.submit(DDIM(steps=3, spacing="trailing"), 5, 6, cond=given and {"y": torch.arange(5.0)})  # beside others
    return job


@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("results", ["device", "host"])
@pytest.mark.parametrize(("sampler", "given"), [(DDPM(steps=7), {}), (SOLVER, GUIDED)], ids=["DDPM", "guided solver"])
def test_trajectories_have_the_bits_of_the_cpu(gpu, sampler, given, results, host):
    """Read the moment they come, while later chains run; recorded memory is where it was asked for."""
    rollout = Rollout(outputs=True, host=host)
    engine = make(gpu, results=results)
    job = submitted(engine, sampler, rollout, **given)
    found = {}
    for result in engine.stream():
        if result.job is job:
            trajectory = result.trajectory
            found[result.chain] = {
                name: value if (value := getattr(trajectory, name)) is None else value.cpu().clone()
                for name in ("states", "history", "squares", "outputs")
            }
            assert trajectory.states.device.type == ("cpu" if host else "cuda")
    wanted = expected(lambda engine: submitted(engine, sampler, rollout, **given))
    assert sorted(found) == list(range(6))
    for chain, parts in found.items():
        for name, value in parts.items():
            other = getattr(wanted, name)
            assert value is other is None or torch.equal(value[0], other[chain])
    assert not engine.report.fallbacks


@pytest.mark.parametrize("gpu", ["late"], indirect=True)
def test_recorded_ticks_wait_for_nothing(gpu):
    engine = make(gpu)
    for seed in (5, 6):  # the second time all is compiled and allocated
        gpu.forget()
        engine.submit(DDPM(steps=7), 6, seed, rollout=Rollout(outputs=True))
        engine.run()
    assert not gpu.waited(but=("event.synchronize",)), gpu.waited(but=("event.synchronize",))


def test_branches_go_on_where_the_trunk_lies(gpu):
    def leaves(device):
        network = gpu.inside(net) if device != "cpu" else net
        denoiser = ulam.Denoiser(network, SCHEDULE)
        program = denoiser.program(SOLVER)
        trunk = rollouts.sample(denoiser, program[:4], SHAPE, 2, 5, device=device, slots=4)
        assert trunk.states.device.type == device.split(":")[0]
        return rollouts.sample(
            denoiser, shape=SHAPE, device=device, slots=4, **trunk.fork(4, 3, seed=6, program=program)
        )

    same(leaves("cuda:0"), leaves("cpu"))


def test_densities_of_a_network_that_lives_there(gpu):
    class Scaled(torch.nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(scale))

        def forward(self, x, t):
            return torch.tanh(x) * self.scale

    with torch.no_grad():
        ours = rollouts.sample(ulam.Denoiser(Scaled(0.5), SCHEDULE), SOLVER, SHAPE, 6, 5)
        wanted = rollouts.log_prob(ulam.Denoiser(Scaled(0.4), SCHEDULE), ours)
        there = ulam.Denoiser(Scaled(0.4).to("cuda:0"), SCHEDULE)
        for trajectory in (ours, ours.to("cuda:0")):
            found = rollouts.log_prob(there, trajectory)
            assert found.device.type == "cuda" and torch.equal(found.cpu(), wanted)
