"""The native CPU extension: its operations, and what is its own."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from ulam_kernels._native import *  # noqa: F403

def bound_step(
    shape: Sequence[int], coef: int, flags: int, rows: int, /
) -> tuple[
    Callable[[torch.Tensor], bool],
    Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None, int], None],
]: ...
def bound_tick(
    *given: object,
) -> tuple[Callable[[torch.Tensor, int], bool], Callable[[torch.Tensor, torch.Tensor | None, int], bool]]:
    """Of the arguments of step, with (times, whether they are whole, out, cursor, whether to check, shape) for own."""

def bound_trees(max_depth: int, tensors: tuple[int, ...], /) -> tuple[Callable[..., None], Callable[..., None]]:
    """(leap, run) of trees whose tensors stay where they are: see bindings/bound_trees.h."""

def scalar(tensor: torch.Tensor, /) -> float | None: ...
def address(tensor: torch.Tensor, /) -> int | None: ...
def eager(*tensors: torch.Tensor | None) -> bool: ...
def separate(written: torch.Tensor, elementwise: int, /, *reads: torch.Tensor | None) -> bool: ...
def ready(
    state: torch.Tensor, net_in: torch.Tensor | None, squares: torch.Tensor | None, /, *reads: torch.Tensor | None
) -> bool: ...
def quick_look_up(
    times: torch.Tensor,
    row: torch.Tensor,
    out: torch.Tensor,
    guidance: torch.Tensor | None,
    interval: torch.Tensor | None,
    weight: torch.Tensor | None,
    backend: str | None,
    threads: int,
    /,
) -> bool:
    """Whether this was done: all tensors are plain and the CPU backend is wanted. Else nothing was."""

def quick_advance(
    cursor: torch.Tensor,
    now: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    backend: str | None,
    threads: int,
    /,
) -> bool:
    """As quick_look_up."""

def quick_examples(
    state: torch.Tensor,
    source: torch.Tensor,
    row: torch.Tensor,
    coef: torch.Tensor,
    flags: torch.Tensor,
    seed: int,
    first: int,
    draw: int,
    backend: str | None,
    threads: int,
    /,
) -> bool:
    """As quick_look_up: a step from source to state of chains numbered from ``first`` on."""

def walk(
    chains: int,
    elements: int,
    registers: int,
    states: int,
    coef: int,
    flags: int,
    rows: int,
    cursor: int,
    steps: int,
    net_in: int,
    seed: int,
    chain: int,
    code: int,
    data: int,
    packed: int,
    work: int,
    row_vectors: int,
    chain_vectors: int,
    uncond_vectors: int,
    guidance: int,
    known: int,
    mask: int,
    mask_stride: int,
    threads: int,
    /,
) -> None:
    """Whole chains of a small network: see ulam/walk.h."""

def call_network(
    chains: int,
    x: int,
    code: int,
    data: int,
    packed: int,
    work: int,
    row_vector: int,
    chain_vectors: int,
    out: int,
    energy: int,
    threads: int,
    /,
) -> None:
    """A small network at the states of all chains: see ulam/walk.h."""

def torch_normal(out: int, count: int, state: int, state_bytes: int, threads: int, /) -> bool:
    """Fill float32 out[0 .. count) as torch would and move the state on. False: untouched, see torch_normal.h."""

def instruction_sets() -> list[str]:
    """The instruction sets usable here, fastest first."""

def instruction_set() -> str:
    """The instruction set in use."""

def panel_columns() -> int:
    """The columns of a network's packed weights that lie together, in panels."""

def use_instruction_set(name: str, /) -> None:
    """Choose one of instruction_sets(), for tests and benchmarks."""

def digest(addresses: list[int], sizes: list[int], /) -> bytes:
    """What stands for the bytes of arrays, by their addresses: another where they have changed."""

def identical(these: Collection[object], those: Collection[object], /) -> bool:
    """Whether these are the same objects, in the same order; lists or tuples."""

def layouts(tensors: list[torch.Tensor], /) -> bytes | None:
    """Where tensors lie, with dtypes, shapes and strides, as bytes; None where one has no view."""

def same_values(dicts: list[dict[Any, Any]], values: list[object], /) -> bool:
    """Whether the values of dicts, one after another, are exactly these objects."""

def multiply_adds(rounds: int, threads: int, /) -> int:
    """Rounds of fused multiply-adds on every thread; how many floating-point operations they are."""

def noise_checksums(first: int, count: int, threads: int, /) -> tuple[int, int, int]:
    """Checksums of radius, cosine and sine over the words [first, first + count), as the noise standard defines."""
