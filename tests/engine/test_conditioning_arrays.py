"""Conditioning as people have it: arrays and lists are tensors, shared means one thing, types fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import ulam
from ulam import bulk, mcmc
from ulam.conditioning import as_tensor, check_cond
from ulam.estimation import measure
from ulam.estimation.x0_variances import x0_variances

SHAPE, N = (2, 3), 4
SCHEDULE = ulam.schedules.vp_linear(100)


class Net(torch.nn.Module):
    """Told a class and a vector a row, and a matrix that all rows share, whose first size is that of the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.classes, self.vector = torch.nn.Embedding(5, 3), torch.nn.Linear(2, 3)

    def forward(self, x, t, y, c, w):
        assert w.shape == (N, 3) and y.shape == x.shape[:1]
        return torch.tanh(x + self.classes(y)[:, None] + self.vector(c)[:, None] + w.sum(0)) + 1e-3 * t[:, None, None]


DENOISER = ulam.Denoiser(Net(), SCHEDULE)
Y, C, W = torch.tensor([3, 1, 4, 1]), torch.linspace(-1, 1, 2 * N).view(N, 2), torch.linspace(0, 0.5, 3 * N).view(N, 3)
# The same conditioning in other clothes.
GIVEN: dict[str, dict[str, Any]] = {
    "arrays": {"y": Y.numpy(), "c": C.numpy(), "w": ulam.shared(W.numpy())},
    "lists": {"y": Y.tolist(), "c": C.tolist(), "w": ulam.shared(W)},
    "wide arrays": {"y": Y.numpy().astype(np.uint8), "c": C.double().numpy(), "w": ulam.shared(W.double().numpy())},
    "arrays backwards": {"y": Y.flip(0).numpy()[::-1], "c": C.flip(1).numpy()[:, ::-1], "w": ulam.shared(W)},
    "lists of NumPy's numbers": {"y": [*Y.numpy()], "c": [[*row] for row in C.numpy()], "w": ulam.shared(W)},
}  # fmt: skip
X = ulam.noise.normal(SHAPE, seed=2, chains=N)
EVALUATIONS: dict[str, Callable[[Any], torch.Tensor]] = {
    "engine": lambda cond: ulam.sample(DENOISER, ulam.samplers.DDIM(4), SHAPE, N, slots=N, cond=cond, progress=False),
    "guided": lambda cond: ulam.sample(
        DENOISER, ulam.samplers.DDIM(4), SHAPE, N, slots=N, cond=cond, guidance=2.0, uncond={"y": [0] * N},
        progress=False,
    ),
    "markov chains": lambda cond: mcmc.run(
        mcmc.DenoiserScore(DENOISER, 0.5, cond), mcmc.ULA(0.01), chains=N, steps=3, shape=SHAPE, progress=False
    ).draws,
    "posterior mean": lambda cond: ulam.tweedie.mean(DENOISER, X, 0.5, cond),
    "covariance": lambda cond: ulam.tweedie.covariance_diagonal(DENOISER, X, 0.5, cond),
    "sure": lambda cond: ulam.sure.estimate(DENOISER, X, 0.5, cond).per_chain,
    "bound": lambda cond: ulam.bounds.vlb(DENOISER, X.tanh(), cond).per_chain,
    "likelihood": lambda cond: ulam.bounds.likelihood(DENOISER, X, cond).per_chain,
    "reverse variances": lambda cond: torch.tensor([*x0_variances(DENOISER, X, cond, timesteps=[3, 50]).values()]),
    "loss": lambda cond: ulam.objectives.denoising(DENOISER, X, 7, cond, step=0),
    "loss of observations": lambda cond: ulam.objectives.sure(DENOISER, X, 0.5, cond, step=0),
    "check": lambda cond: torch.tensor([found.sure.value for found in measure.measure(DENOISER, X, [0.5], cond)]),
}  # fmt: skip


@pytest.mark.parametrize("evaluation", EVALUATIONS)
@pytest.mark.filterwarnings("ignore:.*first noise level")
def test_arrays_and_lists_are_the_tensors_of_their_numbers_and_shared_is_shared(evaluation: str) -> None:
    evaluate = EVALUATIONS[evaluation]
    expected = evaluate({"y": Y, "c": C, "w": ulam.shared(W)})
    assert expected.isfinite().all()
    for name, cond in GIVEN.items():
        assert torch.equal(evaluate(cond), expected), name


@pytest.mark.parametrize(
    "value, dtype",
    [
        ([1, 2], torch.int64), ([1.0, 2], torch.float32), ([True, False], torch.bool), ([], torch.float32),
        ((1, 2), torch.int64),
        (np.float64(3), torch.float32), (np.int32(3), torch.int64), (np.array([1, 2], ">i4"), torch.int64),
        (np.array([1, 2], np.float16), torch.float32), (np.array([1, 2], ">f8"), torch.float32),
        (np.array([2**63 - 1], np.uint64), torch.int64), (np.zeros((0, 3)), torch.float32), (np.array(7), torch.int64),
    ],
    ids=range(13),
)  # fmt: skip
def test_numbers_become_the_tensor_that_a_network_takes(value: Any, dtype: torch.dtype) -> None:
    found = as_tensor("cond", value)
    assert isinstance(found, torch.Tensor) and found.dtype == dtype
    assert found.tolist() == np.asarray(value).tolist()


@pytest.mark.parametrize(
    "value",
    [["a", "b"], [1, [2, 3]], [None], [1 + 2j], np.array(["a"]), np.array([object()]), np.array([1j]), [torch.ones(2)],
     np.array([2**64 - 1], np.uint64), [2**70], np.array(["2026-01-01"], "M8[D]"), [{}], [[[]], 1]],
    ids=range(13),
)  # fmt: skip
def test_what_holds_no_numbers_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^cond\['y'\]: got .*, expected") as caught:
        check_cond("cond", {"y": value}, 1)
    assert "\n" not in str(caught.value)


def test_an_array_is_copied_and_its_own_stays() -> None:
    array = np.arange(3)
    array.flags.writeable = False
    found = as_tensor("cond", array)
    assert isinstance(found, torch.Tensor)
    found += 1
    assert array.tolist() == [0, 1, 2]


def test_labels_of_a_plan_may_be_a_list_or_an_array() -> None:
    def labels(given: Any) -> Any:
        cond = {"y": Y, "c": C, "w": ulam.shared(W)}
        return bulk.Plan(bulk.Job(DENOISER, ulam.samplers.DDIM(4), SHAPE, N, cond=cond, labels=given)).jobs[0].labels

    assert all(torch.equal(labels(given), Y) for given in (Y, Y.tolist(), Y.numpy()))
    with pytest.raises(ValueError, match=r"labels: got a tensor of torch\.float32"):
        labels([0.5] * N)


@pytest.mark.parametrize(
    "cond, said",
    [
        ({"c": C.double()}, r"expected cond\['c'\] as torch.float32, not torch.float64"),
        ({"w": ulam.shared(W.double())}, None),  # torch itself promotes a sum
        ({"y": Y.float()}, r"expected whole numbers as cond\['y'\]"),
    ],
    ids=range(3),
)
def test_types_that_a_network_does_not_take_are_named(cond: Any, said: str | None) -> None:
    given = {"y": Y, "c": C, "w": ulam.shared(W), **cond}
    denoiser = ulam.Denoiser(DENOISER.net, SCHEDULE, time="index")

    def sample() -> torch.Tensor:
        return ulam.sample(denoiser, ulam.samplers.DDIM(4), SHAPE, N, slots=N, cond=given, progress=False)

    if said is None:
        assert sample().isfinite().all()
        return
    with pytest.raises(RuntimeError, match=rf"^net: got an error .*, {said} \(chains 0, 1, 2, 3\)$") as caught:
        sample()
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*first noise level")
def test_masks_and_known_images_broadcast_and_may_be_arrays() -> None:
    net = ulam.Denoiser(lambda x, t: x, SCHEDULE)
    square, image = torch.zeros(2, 3), torch.arange(6.0).view(2, 3)
    square[:, :1] = 1.0

    def inpainted(known: Any, mask: Any) -> torch.Tensor:
        sampler = ulam.samplers.RePaint(5, jump_length=2, jump_n_sample=2)
        return ulam.sample(net, sampler, SHAPE, N, known=known, mask=mask, progress=False)

    expected = inpainted(image.expand(N, 2, 3), square.expand(N, 2, 3))
    for mask in (square, ulam.shared(square), square[:1], ulam.shared(square[0]), square.numpy(), square.tolist()):
        assert torch.equal(inpainted(ulam.shared(image), mask), expected)
    assert torch.equal(inpainted(image.numpy(), ulam.shared(square.numpy())), expected)
    with pytest.raises(
        ValueError, match=re.escape("mask: got shape [2], expected [4, 2, 3], or what broadcasts to it")
    ):
        inpainted(image, square[:, 0])


@pytest.mark.parametrize("sampler", [mcmc.ULA, mcmc.MALA, mcmc.BAOAB, mcmc.HMC], ids=["ula", "mala", "baoab", "hmc"])
@pytest.mark.parametrize(
    "target", [ulam.Energy(lambda x: x.square().flatten(1).sum(1)), mcmc.Gaussian([0.0] * 3)], ids=range(2)
)
def test_preconditioners_broadcast_and_may_be_numbers_and_arrays(sampler: Any, target: Any) -> None:
    shape = (3,) if isinstance(target, mcmc.Gaussian) else (2, 3)

    def draws(preconditioner: Any) -> torch.Tensor:
        chosen = sampler(0.05, preconditioner=preconditioner)
        return mcmc.run(target, chosen, chains=N, steps=3, shape=shape, progress=False).draws

    row = torch.tensor([1.0, 2.0, 0.5])
    expected = draws(row.expand(shape).contiguous())
    for same in (row, row.numpy(), row.tolist(), row[None].double() if len(shape) > 1 else row.double()):
        assert torch.equal(draws(same), expected)
    assert torch.equal(draws(2.0), draws(torch.full(shape, 2.0)))
    for wrong in (torch.ones(4), torch.ones(7, *shape), [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"^preconditioner: got shape .*, or what broadcasts to it$"):
            draws(wrong)
    for wrong in (0.0, "1", [1.0, -1.0, 1.0], float("nan"), [[1.0], 2.0]):
        with pytest.raises((TypeError, ValueError), match=r"^preconditioner: got "):
            draws(wrong)
