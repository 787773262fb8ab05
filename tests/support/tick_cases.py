"""Random ticks: cursors, network outputs with a few numbers that are not finite, and the expected results."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import ulam_kernels

OUTPUTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LIMITS = {dtype: torch.finfo(dtype) for dtype in OUTPUTS}
LINES = ("row", "draw", "row_advance", "draw_advance", "failed", "parts")
INTEGERS = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float64: torch.int64,
}

# Waves of blocks that run one after another, and the order in which a wave's blocks reach the counter.
ORDERS = {
    "all at once": (None, range),
    "all at once, the last first": (None, lambda count: range(count - 1, -1, -1)),
    "one by one": (lambda blocks: np.arange(blocks), range),
    "one by one, the last first": (lambda blocks: np.arange(blocks)[::-1], range),
    "shuffled": (lambda blocks: np.random.default_rng(blocks).permutation(blocks), range),
    "in three waves": (lambda blocks: [np.arange(k, blocks, 3) for k in (1, 2, 0)], lambda count: range(count)[::-1]),
}


def random_cursor(rng: np.random.Generator, chains: int) -> torch.Tensor:
    """``[6, chains]``: some chains are idle, some have failed before; draws wrap, and parts are 0."""
    lines = rng.integers(1, 1000, (6, chains))
    lines[1] = rng.integers(-(2**63), 2**63 - 1, chains)
    lines[2:4] = rng.integers(1, 17, (2, chains))
    lines[4] *= rng.random(chains) < 0.2
    idle = rng.random(chains) < 0.2
    lines[0, idle] = lines[2, idle] = lines[3, idle] = lines[5] = 0
    lines[1, ::7] = 2**63 - 1
    return torch.from_numpy(lines)


def random_output(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, bad: float = 0.3
) -> torch.Tensor:
    """Finite numbers of every size; a share ``bad`` of the chains has one, somewhere, that is not."""
    limits = LIMITS[dtype]
    edges = torch.tensor([0.0, -0.0, limits.max, -limits.max, limits.tiny, limits.smallest_normal / 2], dtype=dtype)
    values = torch.from_numpy(rng.normal(size=shape)).to(dtype)
    flat = values.view(shape[0], -1)
    at = torch.from_numpy(rng.random(flat.shape) < 0.2)
    flat[at] = edges[torch.from_numpy(rng.integers(0, len(edges), int(at.sum())))]
    for chain in np.flatnonzero(rng.random(shape[0]) < bad) if flat.shape[1] else ():
        ends = (0, flat.shape[1] - 1, int(rng.integers(flat.shape[1])))
        flat[chain, ends[rng.integers(3)]] = not_finite(rng, dtype)
    return values


def not_finite(rng: np.random.Generator, dtype: torch.dtype) -> torch.Tensor:
    """An infinity, or a NaN of any sign and payload."""
    kind = INTEGERS[dtype]
    infinity = torch.tensor(float("inf"), dtype=dtype).view(kind)
    payload = int(rng.integers(-int(infinity), int(infinity))) & ~int(infinity) if rng.random() < 0.6 else 0
    sign = torch.iinfo(kind).min if rng.random() < 0.5 else 0
    return ((infinity | payload & torch.iinfo(kind).max) | sign).view(dtype)


def random_tick(rng: np.random.Generator, chains: int, shape: tuple[int, ...], dtype: torch.dtype, guided: bool,
                bad: float = 0.3) -> dict[str, Any]:  # fmt: skip
    """The arguments of an advance."""
    given: dict[str, Any] = {
        "cursor": random_cursor(rng, chains),
        "now": torch.full((2, chains), -7),
        "model": random_output(rng, (chains, *shape), dtype, bad),
    }
    if guided:
        given["uncond"] = random_output(rng, (chains, *shape), dtype, bad)
        given["guidance"] = torch.from_numpy(rng.choice([0.0, 1.0, 2.5, -1.0, np.nan], size=chains)).float()
    return given


def expected_of(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """(cursor, now) after the tick, as the rules say."""
    cursor = given["cursor"].numpy().copy()
    row, draw, row_advance, draw_advance, failed, _ = cursor
    well = np.ones(len(row), bool)
    if given.get("model") is not None:
        well = finite(given["model"])
        if given.get("uncond") is not None:
            w = given["guidance"].numpy()
            well = (well | (w == 0)) & (finite(given["uncond"]) | (w == 1))
        well |= row == 0
    failed[~well] = row[~well]
    row[~well] = row_advance[~well] = draw_advance[~well] = 0
    now = cursor[:2].copy()
    row += row_advance
    draw += draw_advance
    return torch.from_numpy(cursor), torch.from_numpy(now)


def finite(output: torch.Tensor) -> Any:
    """Whether all of each chain's numbers are finite."""
    return np.isfinite(output.detach().double().numpy()).reshape(len(output), -1).all(axis=1)


def clone_of(given: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with copies of cursor and now."""
    return given | {"cursor": given["cursor"].clone(), "now": given["now"].clone()}


def random_look_up(
    rng: np.random.Generator, chains: int, rows: int, dtype: torch.dtype, limited: bool
) -> dict[str, Any]:
    """The arguments of a look_up: times on a few levels, so that they meet the ends of their intervals."""
    times = rng.integers(-4, 5, rows) / 4
    if dtype == torch.int64:
        times = rng.integers(2**24 - 3, 2**24 + 4, rows) * rng.choice([-1, 1], rows)
    elif rows > 4:
        times[1:5] = np.nan, np.inf, -np.inf, 1e-40
    table = torch.from_numpy(times).to(dtype)
    given: dict[str, Any] = {"times": table, "row": torch.from_numpy(rng.integers(0, rows, chains))}
    given["out"] = torch.full((chains,), -9, dtype=dtype)
    if limited:
        ends = table.float()[torch.from_numpy(rng.integers(0, rows, (2, chains)))]
        ends[0, ::5], ends[1, ::4] = -np.inf, np.inf
        given["interval"] = ends
        given["guidance"] = torch.from_numpy(rng.normal(size=chains)).float()
        given["weight"] = torch.full((chains,), np.nan)
    return given


def looked_up(given: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The expected (out, weight)."""
    out = given["times"][given["row"]]
    if "weight" not in given:
        return out, None
    lo, hi = given["interval"]
    return out, torch.where((out >= lo) & (out <= hi), given["guidance"], 1.0)


# (chains, elements): short and long, many and few, with parts and without.
GPU_SIZES = [(1, 1), (100_003, 2), (3000, 33), (700, 1024), (64, 3072), (9, 11_121), (8, 196_608), (1, 3_000_001)]


def on_gpu(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cuda() if torch.is_tensor(value) else value for name, value in given.items()}


def check_on_gpu(backend: str) -> None:
    """advance, alone and in a graph that is replayed, and look_up: nothing waits for the device."""
    rng = np.random.default_rng(12)
    for k, (chains, n) in enumerate(GPU_SIZES):
        for dtype in OUTPUTS:
            bad = 0.4 if chains < 1000 else 0.01
            given = random_tick(rng, chains, (n,), dtype, guided=k % 2 == 0, bad=bad)
            _check_replays(given, backend, skewed=k % 3 == 0)
    for dtype in (torch.float32, torch.int64):
        given = random_look_up(rng, 100_003, 1000, dtype, limited=True)
        (out, weight), there = looked_up(given), on_gpu(given)
        ulam_kernels.look_up(**there, backend=backend)
        assert torch.equal(there["out"].cpu().nan_to_num(8), out.nan_to_num(8))
        assert weight is not None and torch.equal(there["weight"].cpu(), weight)


def _check_replays(given: dict[str, Any], backend: str, skewed: bool) -> None:
    """Three ticks, the second and the third replayed; the last after the model has become finite."""
    there, expected = on_gpu(given), clone_of(given)
    if skewed:  # chains apart, at odd addresses
        chains, n = there["model"].shape
        there["model"] = there["model"].new_zeros(chains, n + 1)[:, 1:].copy_(there["model"])
    cursor, now = there.pop("cursor"), there.pop("now")
    tick = lambda: ulam_kernels.advance(cursor, now, **there, backend=backend)  # noqa: E731
    before = torch.cuda.get_sync_debug_mode()
    tick()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        cursor.copy_(expected["cursor"].pin_memory(), non_blocking=True)
        tick()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    expected["cursor"], expected["now"] = expected_of(expected)
    assert torch.equal(cursor.cpu(), expected["cursor"]) and torch.equal(now.cpu(), expected["now"])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tick()
    for _ in range(2):
        graph.replay()
        expected["cursor"], expected["now"] = expected_of(expected)
        assert torch.equal(cursor.cpu(), expected["cursor"]) and torch.equal(now.cpu(), expected["now"])
        there["model"].zero_()
        expected["model"] = torch.zeros_like(expected["model"])


def check_races_on_gpu(backend: str) -> None:
    """A thousand ticks of chains in many parts: the one that fails, in some part of it, is seen, and it alone."""
    chains, n = 16, 300_000
    model = torch.zeros(chains, n, device="cuda")
    rng = np.random.default_rng(13)
    cursor, now = torch.zeros(6, chains, dtype=torch.int64).cuda(), torch.zeros(2, chains, dtype=torch.int64).cuda()
    well = torch.zeros(1000, chains, dtype=torch.bool, device="cuda")
    failing = rng.integers(0, chains, 1000)
    for k, chain in enumerate(failing):
        place = int(rng.integers(n))
        model[chain, place] = float("inf")
        cursor[0], cursor[2] = 7, 1
        ulam_kernels.advance(cursor, now, model=model, backend=backend)
        model[chain, place] = 0.0
        well[k] = (now[0] == 7) & (cursor[0] == 8) & (cursor[5] == 0)
    expected = torch.ones(1000, chains, dtype=torch.bool)
    expected[torch.arange(1000), torch.from_numpy(failing)] = False
    assert torch.equal(well.cpu(), expected)
