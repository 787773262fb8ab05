"""What shows a change: digests, places and identities, on every instruction set and without native code."""

from __future__ import annotations

import builtins
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ulam_kernels import _cpu, changes

Digest = Callable[[list[int], list[int]], bytes]
SIZES = [0, 1, 3, 4, 63, 64, 511, 512, 513, 1024, 4096 + 20]  # in bytes


def without_native(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the module has where the native code is missing."""
    imported = builtins.__import__

    def refusing(name: str, *arguments: Any) -> Any:
        if name == "ulam_kernels._cpu":
            raise ImportError(name)
        return imported(name, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(builtins, "__import__", refusing)
        found = dict(vars(importlib.reload(changes)))
    importlib.reload(changes)
    return found


@pytest.fixture(params=[*_cpu.instruction_sets(), "python"])
def digest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Digest]:
    if request.param == "python":
        yield without_native(monkeypatch)["digest"]
        return
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(request.param)
    try:
        yield _cpu.digest
    finally:
        _cpu.use_instruction_set(before)


def of(digest: Digest, *arrays: np.ndarray) -> bytes:
    return digest([array.ctypes.data for array in arrays], [array.nbytes for array in arrays])


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("size", SIZES[1:])
def test_every_bit_counts(digest: Digest, size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    whole = of(digest, data)
    assert of(digest, data.copy()) == whole
    found = {whole}
    places = range(size) if size < 1000 else range(0, size, 37)
    for place in places:
        for bit in range(8):
            data[place] ^= 1 << bit
            found.add(of(digest, data))
            data[place] ^= 1 << bit
    assert len(found) == 1 + 8 * len(places)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: -w,
        lambda w: w.T.copy(),
        lambda w: w[::-1].copy(),
        lambda w: w[:, ::-1].copy(),
        lambda w: np.roll(w, 16, 1),
        lambda w: np.roll(w, 128, 1),
        lambda w: 2 * w,
        lambda w: np.where(np.arange(256) % 2, -w, w).astype(np.float32),
        lambda w: w + np.float32(1e-3),
        lambda w: np.concatenate([w[1:2], w[0:1], w[2:]]),
        np.zeros_like,
    ],
)
def test_changes_of_a_whole_matrix_show(digest: Digest, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Those whose effects might cancel: in each column of words, and in the sign bits."""
    w = numbers(256, 256)
    assert of(digest, change(w)) != of(digest, w)


def test_two_words_of_a_lane_show(digest: Digest) -> None:
    """Pairs of one word each in the same lane of any instruction set, exchanged or with their signs changed."""
    data = numbers(64 * 128)
    found = {of(digest, data)}
    for apart in (1, 2, 3, 10):
        pair = [5, 5 + 128 * apart]
        for changed in (data[pair[::-1]], -data[pair]):
            other = data.copy()
            other[pair] = changed
            found.add(of(digest, other))
    assert len(found) == 9


def test_arrays_are_taken_in_order(digest: Digest) -> None:
    a, b = numbers(2, 300)
    assert of(digest, a, b) != of(digest, b, a)
    assert len(of(digest)) > 0


@pytest.mark.parametrize("size", SIZES)
def test_nothing_beyond_an_array_is_read(digest: Digest, size: int) -> None:
    around = np.zeros(size + 1024, np.uint8)
    before = digest([around.ctypes.data + 512], [size])
    around[:512], around[512 + size :] = 1, 2
    assert digest([around.ctypes.data + 512], [size]) == before


def test_another_number_of_sizes_is_refused(digest: Digest) -> None:
    with pytest.raises(ValueError):
        digest([numbers(1).ctypes.data], [])


@pytest.fixture(params=["native", "python"])
def has(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return vars(changes) if request.param == "native" else without_native(monkeypatch)


CHANGED: dict[str, Callable[[torch.Tensor], object]] = {
    "elsewhere": lambda t: setattr(t, "data", t.data.clone()),
    "a part": lambda t: setattr(t, "data", t.data[:3]),
    "turned": lambda t: setattr(t, "data", t.data.t()),
    "another shape": lambda t: setattr(t, "data", t.data.view(2, 8)),
    "a later element": lambda t: setattr(t, "data", t.data.view(-1)[4:].view(3, 4)),
}


@pytest.mark.parametrize("kind", [torch.Tensor, nn.Parameter])
@pytest.mark.parametrize("change", CHANGED)
def test_a_tensor_that_lies_otherwise_shows(has: dict[str, Any], change: str, kind: type) -> None:
    layouts, tensor = has["layouts"], torch.arange(16.0).view(4, 4)
    tensor = nn.Parameter(tensor) if kind is nn.Parameter else tensor
    tensors = [torch.zeros(2), tensor, torch.zeros(0, 3)]
    before = layouts(tensors)
    assert layouts(tensors) == before
    tensor.data[0, 0] = 7  # a number, no place
    assert layouts(tensors) == before
    CHANGED[change](tensor)
    assert layouts(tensors) != before


def test_dtypes_and_tensors_of_other_classes_show(has: dict[str, Any]) -> None:
    class Own(torch.Tensor):
        pass

    layouts, base = has["layouts"], torch.zeros(8)
    kinds = [base, base.view(torch.int32), base[:4], base.as_subclass(Own), torch.zeros(8, device="meta")]
    kinds += [base.view(2, 4), base.as_strided((8,), (0,))]
    found = [layouts([kind]) for kind in kinds]
    same = [(0, 3)]  # a class is no place
    for a in range(len(kinds)):
        for b in range(a):
            assert (found[a] == found[b]) <= ((b, a) in same)
    assert layouts([kinds[3]]) == found[3]


def test_values_of_dicts_are_compared_by_identity(has: dict[str, Any]) -> None:
    same, a, b = has["same_values"], [1.0], [1.0]
    dicts: list[dict[Any, Any]] = [{"x": a, "y": 1}, {}, {"z": None}]
    values = [a, 1, None]
    assert same(dicts, values)
    for changed in ([{"x": b, "y": 1}, {}, {"z": None}], [{"x": a, "y": 1}, {0: 0}, {"z": None}], dicts[:2]):
        assert not same(changed, values)
    assert not same(dicts, values[:2]) and same([], []) and not same(dicts, [])


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="expected a dict"):
        _cpu.same_values([[1]], [1])  # type: ignore[list-item]
    for arguments in (([],), ((), ()), ([], {})):
        with pytest.raises(TypeError, match="two lists"):
            _cpu.same_values(*arguments)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list of tensors"):
        _cpu.layouts(())  # type: ignore[arg-type]
    assert _cpu.layouts([None]) is None  # type: ignore[list-item]


@pytest.mark.parametrize("native", [True, False])
def test_identical_are_the_same_objects_in_the_same_order(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    identical = _cpu.identical if native else without_native(monkeypatch)["identical"]
    a, b = object(), 1000.5
    assert identical([a, b], (a, b)) and identical((), [])
    assert not identical([a, b], [b, a]) and not identical([a], [a, b]) and not identical([b], [float("1000.5")])
    with pytest.raises(TypeError):
        identical([a], 3)
