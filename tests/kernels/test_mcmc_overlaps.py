"""Operations on Markov chains whose arguments share memory: read as if put aside, or refused; the same everywhere."""

from __future__ import annotations

import itertools

import pytest
import torch

import ulam_kernels.mcmc as ops
from ulam_kernels.densities import double_well

CHAINS, WIDTH = 4, 6
BACKENDS = ["reference", "cpu"]


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ids() -> dict[str, torch.Tensor]:
    return {"seed": torch.arange(CHAINS), "chain": torch.arange(CHAINS) + 5, "draw": 16 * torch.arange(CHAINS)}


def full() -> torch.Tensor:
    return numbers(CHAINS, WIDTH)


def per_chain() -> torch.Tensor:
    return numbers(CHAINS).abs()


def langevin(backend, x, **given):
    return ops.langevin(x, given.pop("score"), given.pop("step"), given.pop("noise_scale"), **given, backend=backend)


def kick_drift(backend, x, v, score, kick, drift, **given):
    ops.kick_drift(x, v, score, kick, drift, **given, backend=backend)


def kick(backend, x, v, score, kick):
    ops.kick_drift(x, v, score, kick, None, backend=backend)


def mala_accept(backend, x, proposal, score, proposal_score, step, scale):
    energy, proposed = torch.arange(CHAINS).double(), torch.arange(CHAINS).double() / 2
    return ops.mala_accept(
        x, proposal, score, proposal_score, energy, proposed, step, scale=scale, **ids(), backend=backend
    )


def accept(backend, log_ratio, a, b, c, d):
    return ops.accept(log_ratio.double(), [(a, b), (c, d)], **ids(), backend=backend)


def accept_energies(backend, log_ratio, a, b):
    return ops.accept(log_ratio, [(a, b)], **ids(), backend=backend)


def run(backend, x, v, draws, coef, scale):
    ops.run(double_well(WIDTH), x, "baoab", coef, 3, v=v, scale=scale, draws=draws, **ids(), backend=backend)


# Each operation with its arguments, and which of these it writes to.
OPERATIONS = {
    "langevin": (
        langevin,
        lambda: {
            "x": full(), "score": full() + 1, "out": full() + 2, "noise": full() + 3, "step": per_chain(),
            "noise_scale": per_chain(), "scale": numbers(WIDTH).abs(),
        },
        ("out",),
    ),
    "kick_drift": (
        kick_drift,
        lambda: {
            "x": full(), "v": full() + 1, "score": full() + 2, "noise": full() + 3, "kick": per_chain(),
            "drift": per_chain() + 1, "keep": per_chain() / 9, "noise_scale": per_chain() / 3,
            "scale": numbers(WIDTH).abs(),
        },
        ("x", "v"),
    ),
    "kick": (kick, lambda: {"x": full(), "v": full() + 1, "score": full() + 2, "kick": per_chain()}, ("v",)),
    "mala_accept": (
        mala_accept,
        lambda: {
            "x": full(), "proposal": full() + 0.1, "score": full() / 2, "proposal_score": full() / 3,
            "step": per_chain(), "scale": numbers(WIDTH).abs(),
        },
        ("x", "score"),
    ),
    "accept": (
        accept,
        lambda: {"log_ratio": per_chain() - 1, "a": full(), "b": full() + 1, "c": full() + 2, "d": full() + 3},
        ("a", "c"),
    ),
    "accept_energies": (
        accept_energies,
        lambda: {
            "log_ratio": per_chain().double() - 1, "a": per_chain().double(), "b": per_chain().double() + 1
        },
        ("a",),
    ),
    "run": (
        run,
        lambda: {
            "x": full(), "v": full() + 1, "draws": numbers(CHAINS, 3, WIDTH), "coef": numbers(CHAINS, 4).abs() / 9,
            "scale": numbers(WIDTH).abs(),
        },
        ("x", "v", "draws"),
    ),
}  # fmt: skip


def overlapping(given: dict[str, torch.Tensor], one: str, other: str, offset: int) -> dict[str, torch.Tensor]:
    """The arguments, two of them in one memory, the other so many numbers behind."""
    first, second = given[one], given[other]
    memory = torch.empty(max(first.numel(), offset + second.numel()), dtype=first.dtype)
    memory[: first.numel()] = first.flatten()
    memory[offset : offset + second.numel()] = second.flatten()
    shared = memory[: first.numel()].view_as(first), memory[offset : offset + second.numel()].view_as(second)
    return {**given, one: shared[0], other: shared[1]}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_arguments_that_share_memory_are_read_before_anything_is_written(name: str, backend: str):
    operation, arguments, written = OPERATIONS[name]
    refused = 0
    for one, other in itertools.permutations(arguments(), 2):
        for offset in (0, 1, 12):
            given = arguments()
            if given[one].dtype != given[other].dtype or offset >= given[one].numel():
                continue
            given = overlapping(given, one, other, offset)
            apart = {key: tensor.clone() for key, tensor in given.items()}
            if one in written and other in written:
                with pytest.raises(ValueError, match=r"^\S+: got memory shared with \S+, expected memory of its own$"):
                    operation(backend, **given)
                assert all(torch.equal(given[key], apart[key]) for key in apart)
                refused += 1
                continue
            expected = operation("reference", **apart)
            found = operation(backend, **given)
            for key in written:
                assert torch.equal(given[key], apart[key]), (one, other, offset)
            if expected is not None:
                for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected)), strict=True):
                    assert torch.equal(a, b), (one, other, offset)
    assert refused or len(written) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_langevin_step_may_be_taken_in_place(backend: str):
    x, given = full(), {"score": full() + 1, "step": per_chain(), "noise_scale": per_chain(), "noise": full() + 3}
    expected = langevin(backend, x.clone(), **given)
    assert langevin(backend, x, out=x, **given) is x and torch.equal(x, expected)
