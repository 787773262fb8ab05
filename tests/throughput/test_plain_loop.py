"""The plain loop does what ulam does: the same samples from the same noise, for every sampler that it has words for."""

from __future__ import annotations

import pytest
import torch

import ulam
from ulam import samplers
from ulam.throughput import Work
from ulam.throughput.plain_loop import PlainLoop, Unlike
from ulam.throughput.ways import engine, plain

SHAPE, SLOTS = (2, 4, 4), 3


class Net(torch.nn.Module):
    """Smooth, and different in t and y."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = torch.nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        shift = 0.0 if y is None else 0.1 * y.view(-1, 1, 1, 1)
        return torch.tanh(self.mix(x)) * (1 + t.view(-1, 1, 1, 1) / 1000) + shift


def work(sampler: object, schedule: object = None, **more: object) -> Work:
    denoiser = ulam.Denoiser(Net(), schedule or ulam.schedules.vp_linear(1000), **more)
    return Work(denoiser, SHAPE, sampler, SLOTS)


MADE = [
    samplers.DDIM(6),
    samplers.DDIM(6, eta=1.0, clip=(-1, 1)),
    samplers.DDPM(6),
    samplers.Euler(6),
    samplers.EulerAncestral(6),
    samplers.Heun(6),
    samplers.DPMSolverPP(6),
    samplers.DPMSolverPP(6, clip=samplers.DynamicThreshold(0.9)),
    samplers.UniPC(6),
    samplers.DEIS(6),
    samplers.PNDM(6),
    samplers.LMS(6),
    samplers.ERSDE(6),
    samplers.PredictorCorrector(6),
]


@pytest.mark.parametrize("sampler", MADE, ids=repr)
def test_the_same_noise_gives_the_same_samples(sampler):
    given = work(sampler)
    evaluations = len(given.program.evaluating)
    theirs, ours = (made(given, evaluations)[1]() for made in (plain, engine))
    assert theirs.shape == (SLOTS, *SHAPE) and theirs.isfinite().all()
    torch.testing.assert_close(theirs, ours, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    "schedule, predicts",
    [(ulam.schedules.ve(0.01, 20.0), "eps"), (ulam.schedules.edm(), "raw"), (ulam.schedules.flow(), "flow")],
    ids=["ve", "edm", "flow"],
)
def test_other_schedules_and_scales_of_the_input(schedule, predicts):
    given = work(samplers.Euler(6), schedule, predicts=predicts)
    theirs, ours = (made(given, 6)[1]() for made in (plain, engine))
    torch.testing.assert_close(theirs, ours, rtol=2e-4, atol=2e-4)


def test_guidance_labels_and_a_guide():
    y = torch.tensor([1.0, 2.0, 3.0])
    denoiser = ulam.Denoiser(Net(), ulam.schedules.vp_linear(1000))
    guided = Work(denoiser, SHAPE, samplers.DDIM(5), SLOTS, {"y": y}, {"y": 0 * y}, 2.0)
    plain_samples, ours = (made(guided, 5)[1]() for made in (plain, engine))
    torch.testing.assert_close(plain_samples, ours, rtol=2e-4, atol=2e-4)
    unguided = plain(Work(denoiser, SHAPE, samplers.DDIM(5), SLOTS, {"y": y}), 5)[1]()
    assert (plain_samples - unguided).abs().max() > 0.01
    by_guide = ulam.Denoiser(Net(), ulam.schedules.vp_linear(1000), guide=lambda x, t, y=None: 0 * x)
    guided = Work(by_guide, SHAPE, samplers.DDIM(5), SLOTS, {"y": y}, None, 2.0)
    torch.testing.assert_close(*(made(guided, 5)[1]() for made in (plain, engine)), rtol=2e-4, atol=2e-4)


def test_conditioning_is_used_in_turn():
    given = Work(work(samplers.DDIM(2)).denoiser, SHAPE, samplers.DDIM(2), 5, {"y": torch.tensor([1.0, 2.0])})
    assert given.cond["y"].tolist() == [1, 2, 1, 2, 1]


def test_a_part_of_a_run_is_its_beginning():
    given = work(samplers.DDIM(6))
    calls = []
    loop = PlainLoop(Work(ulam.Denoiser(lambda x, t: calls.append(t[0].item()) or x, given.denoiser.schedule), SHAPE,
                          samplers.DDIM(6), SLOTS), 2)  # fmt: skip
    loop(torch.zeros(SLOTS, *SHAPE))
    assert calls == given.program.time[:2].tolist()


def test_what_a_plain_loop_has_no_words_for_is_said():
    with pytest.raises(Unlike, match="reads the unguided output"):
        PlainLoop(work(samplers.DDIM(4, cfg_pp=True)), 4)
    with pytest.raises(ValueError, match=r"^sampler: got RePaint.*, expected one without a known image$"):
        work(samplers.RePaint(4))


@pytest.mark.parametrize(
    "more, says",
    [
        ({"slots": 0}, "slots: got 0"),
        ({"cond": {"y": 3}}, "cond: got 3"),
        ({"guidance": 2.0}, "uncond: got none"),
        ({"device": "nowhere"}, "device: got"),
        ({"sampler": 5}, "sampler: got 5"),
    ],
)
def test_a_wrong_argument_is_named(more, says):
    with pytest.raises((TypeError, ValueError), match=f"^{says}"):
        Work(**{"denoiser": work(samplers.DDIM(2)).denoiser, "shape": SHAPE, **more})
