"""Tensors as they come: with torch's negative bit, sharing memory with what is written, or no tensors at all."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

import ulam_kernels
from kernel_arguments import (
    CHAINS,
    Given,
    N,
    affine_arguments,
    blend_arguments,
    fill_arguments,
    reduce_arguments,
    step_arguments,
    table_of,
)
from ulam_kernels import Table
from ulam_kernels.arguments import described
from ulam_kernels.cpu import BoundStep, scalar

BACKENDS = ["reference", "cpu"]


def run_step(given: Given, backend: str) -> tuple[torch.Tensor, ...]:
    ulam_kernels.step(given["state"], given["table"], given["row"], backend=backend,
                      **{name: x for name, x in given.items() if name not in ("state", "table", "row")})  # fmt: skip
    return given["state"], given["net_in"], given["squares"]


def run_reduce(given: Given, backend: str) -> tuple[torch.Tensor, ...]:
    ulam_kernels.reduce(given["state"], given["table"], given["row"], backend=backend,
                        **{name: x for name, x in given.items() if name not in ("state", "table", "row")})  # fmt: skip
    return (given["out"],)


def run_blend(given: Given, backend: str) -> tuple[torch.Tensor, ...]:
    ulam_kernels.blend(**given, backend=backend)
    return given["state"], given["net_in"]


def run_fill(given: Given, backend: str) -> tuple[torch.Tensor, ...]:
    return (ulam_kernels.fill_normal(**given, backend=backend),)


def run_affine(given: Given, backend: str) -> tuple[torch.Tensor, ...]:
    return (ulam_kernels.affine(**given, backend=backend),)


Operation = tuple[Callable[[], Given], Callable[[Given, str], tuple[torch.Tensor, ...]], tuple[str, ...]]
# The arguments, how it is called, and the names of what it writes.
OPERATIONS: dict[str, Operation] = {
    "step": (step_arguments, run_step, ("state", "net_in", "squares")),
    "reduce": (reduce_arguments, run_reduce, ("out",)),
    "blend": (blend_arguments, run_blend, ("state", "net_in")),
    "fill_normal": (fill_arguments, run_fill, ("out",)),
    "affine": (affine_arguments, run_affine, ("out",)),
}
TENSORS = [(name, argument) for name, (make, _, _) in OPERATIONS.items() for argument in make() if argument != "table"]


@pytest.fixture(params=[True, False], ids=["one look", "each looked at"], autouse=True)
def both_doors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door in C++, and the one in Python, which has the last word."""
    if not request.param:
        monkeypatch.setattr(ulam_kernels.ops.rows, "ready", lambda *tensors: False)
        monkeypatch.setattr(ulam_kernels.validation, "separate", lambda *tensors: False)


@pytest.mark.parametrize("operation, argument", TENSORS)
def test_other_than_tensors_are_named(operation: str, argument: str) -> None:
    make, run, _ = OPERATIONS[operation]
    optional = (operation, argument) == ("affine", "out") or argument in (
        "uncond", "guidance", "noise", "source", "scales", "net_in", "squares", "c_next", "model",
        *(() if operation == "fill_normal" else ("seed", "chain", "draw")),
    )  # fmt: skip
    others = [[1.0], 3, "x", np.zeros((CHAINS, N), np.float32)] + ([] if optional else [None])
    for other in others:
        with pytest.raises(TypeError, match=rf"^{argument}: got {re.escape(described(other))}, expected a tensor"):
            run(make() | {argument: other}, "cpu")


def test_guidance_is_a_tensor_without_uncond_too() -> None:
    make, run, _ = OPERATIONS["step"]
    with pytest.raises(TypeError, match=r"^guidance: got 'x', expected a tensor"):
        run(make() | {"uncond": None, "guidance": "x"}, "cpu")


@pytest.mark.parametrize("operation", ["step", "reduce"])
def test_another_table_is_named(operation: str) -> None:
    make, run, _ = OPERATIONS[operation]
    for other in (None, [1], torch.zeros(3)):
        with pytest.raises(TypeError, match=rf"^table: got {re.escape(described(other))}, expected a Table"):
            run(make() | {"table": other}, "cpu")


ANY_LAYOUT = {("step", "model"), ("step", "uncond"), ("reduce", "model"), ("reduce", "uncond"), ("affine", "x"),
              ("affine", "m")}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation, argument", TENSORS)
def test_the_negative_bit_is_resolved_or_refused(operation: str, argument: str, backend: str) -> None:
    """What may have any layout is resolved; the rest is refused, as if it were not contiguous."""
    make, run, _ = OPERATIONS[operation]
    given = make()
    negative = torch._neg_view(given[argument].clone())
    assert negative.is_neg() and negative.is_contiguous()
    if (operation, argument) in ANY_LAYOUT:
        expected = run(make() | {argument: -given[argument]}, backend)
        for a, b in zip(run(given | {argument: negative}, backend), expected, strict=True):
            assert torch.equal(a, b)
    else:
        with pytest.raises(ValueError, match=rf"^{argument}: got a tensor with torch's negative bit, .* resolve_neg"):
            run(given | {argument: negative}, backend)


def test_the_imaginary_part_of_a_conjugate() -> None:
    """One element of it is contiguous, and so was read as it lies, with the wrong sign."""
    part = torch.tensor([[1 + 2j]]).conj().imag
    assert part.is_neg() and part.is_contiguous()
    state, row = torch.zeros(1, 1, 1), torch.zeros(1, dtype=torch.int64)
    table = Table.pack(*np.zeros((2, 1)), *np.array([[-np.inf], [np.inf]]), *np.zeros((3, 1)),
                       np.array([[[0.0, 0.0, 1.0, 0.0]]]), np.array([[True]]), np.array([False]))  # fmt: skip
    ulam_kernels.step(state, table, row, model=part)
    assert state.item() == part.item() == -2


def test_the_negative_bit_elsewhere() -> None:
    table = table_of()
    for coef, flags in ((torch._neg_view(table.coef), table.flags), (table.coef, torch._neg_view(table.flags))):
        with pytest.raises(ValueError, match="negative bit"):
            Table(coef, flags, 1)
    x = torch.ones(3, 2)
    one_row = Table(table.coef, table.flags & 31, 1)
    takes = BoundStep(one_row, x.shape).takes
    assert takes(x) and not takes(torch._neg_view(x))
    assert scalar(torch.ones(1)) == 1 and scalar(torch._neg_view(torch.ones(1))) is None


READ = [(operation, argument) for operation, argument in TENSORS if argument not in OPERATIONS[operation][2]]
READ += [("step", "table"), ("reduce", "table"), ("reduce", "state")]


def in_arena(given: Given, written: str, read: str, offset: int) -> tuple[Given, int]:
    """The arguments with ``written`` and ``read`` in one memory, the latter beginning ``offset`` bytes after the other.

    Returns how many bytes they share.
    """
    target, source = given[written], given[read].coef if read == "table" else given[read]
    arena, start = torch.zeros(4096, dtype=torch.uint8), 1024
    place = lambda like, at: arena[at : at + like.nbytes].view(like.dtype).view(like.shape)  # noqa: E731
    a, b = place(target, start), place(source, start + offset)
    a.copy_(target)
    b.copy_(source)
    moved = given | {written: a, read: Table(b, given["table"].flags, 1) if read == "table" else b}
    return moved, min(target.nbytes, offset + source.nbytes) - max(0, offset)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation, argument", READ)
def test_what_is_read_may_share_memory_with_what_is_written(operation: str, argument: str, backend: str) -> None:
    """It is read as if it had been put aside, wherever it overlaps."""
    make, run, writes = OPERATIONS[operation]
    shared = 0
    for written in writes:
        for offset in (-40, -8, 0, 8, 64):
            given, bytes_shared = in_arena(make(), written, argument, offset)
            shared += bytes_shared > 0
            apart = {name: x.clone() if torch.is_tensor(x) else x for name, x in given.items()}
            if argument == "table":
                apart["table"] = Table(given["table"].coef.clone(), given["table"].flags, 1)
            expected = run(apart, "reference")
            for a, b in zip(run(given, backend), expected, strict=True):
                assert torch.equal(a.nan_to_num(9), b.nan_to_num(9)), (written, offset)
    assert shared >= 3 * len(writes)


@pytest.mark.parametrize("operation", ["step", "blend"])
def test_a_network_input_inside_the_state_is_refused(operation: str) -> None:
    make, run, _ = OPERATIONS[operation]
    for offset in (-88, 0, 64):
        given, _ = in_arena(make(), "state", "net_in", offset)
        before = given["state"].clone()
        with pytest.raises(ValueError, match=r"^net_in: got memory shared with state, expected memory of its own"):
            run(given, "cpu")
        assert torch.equal(given["state"], before)


def test_squares_inside_what_is_written_are_refused() -> None:
    for written in ("state", "net_in"):
        for offset in (-24, 0, 64):
            given, _ = in_arena(step_arguments(), written, "squares", offset)
            before = given["state"].clone()
            with pytest.raises(ValueError, match=rf"^squares: got memory shared with {written}, expected"):
                run_step(given, "cpu")
            assert torch.equal(given["state"], before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_elementwise_operands_may_be_the_first_register_without_a_copy(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    given = step_arguments()
    module = __import__(f"ulam_kernels.{backend}", fromlist=["step"])
    got: list[torch.Tensor] = []
    monkeypatch.setattr(module, "step", lambda *tensors: got.extend(tensors))
    first = given["state"][0]
    run_step(given | dict.fromkeys(("model", "uncond", "noise", "source"), first), backend)
    assert all(got[k] is first for k in (4, 5, 10, 13))
    got.clear()
    state = torch.zeros(2, CHAINS, N)
    run_step(given | {"table": table_of(2), "state": state, "model": state[1]}, backend)
    assert got[4].data_ptr() != state[1].data_ptr()  # the other registers are written too, at other times
