"""The NumPy reference of noise-v1 against the standard's golden vectors (tests/data/noise-v1.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ulam_kernels.reference import fill_normal, noise

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "noise-v1.json").read_text())


def uint64(*values: int) -> noise.UInt64Array:
    return np.array(values, dtype=np.uint64)


def hex_words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize("vector", GOLDEN["philox_kat"])
def test_philox_known_answers(vector: dict[str, Any]) -> None:
    c0, c1, c2, c3 = (uint64(word) for word in hex_words(vector["ctr"]))
    k0, k1 = (uint64(word) for word in hex_words(vector["key"]))
    out = noise.philox4x32((c0, c1, c2, c3), (k0, k1), rounds=vector["rounds"])
    assert [int(word[0]) for word in out] == hex_words(vector["out"])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_golden_cases(case: dict[str, Any]) -> None:
    seed, chain, draw = (uint64(int(case[name], 16)) for name in ("seed", "chain", "draw"))
    assert int(draw[0]) == case["step"] * 16 + case["stage"]
    key = [f"{int(half[0]):08x}" for half in noise.chain_key(seed, draw)]
    assert key == case["key"]

    blocks = case["first_block"] + np.arange(len(case["words"]), dtype=np.uint64)
    words = noise.words(seed, chain, draw, case["tag"], blocks)
    assert [[f"{word:08x}" for word in block] for block in words[0]] == case["words"]

    first, count = 4 * case["first_block"], len(case["normals_hex"])
    normals = noise.normals(seed, chain, draw, tag=case["tag"], offset=first, count=count)
    assert [f"{bits:08x}" for bits in normals[0].view(np.uint32)] == case["normals_hex"]
    assert normals[0].tolist() == case["normals"]


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_fill_normal_golden_cases(case: dict[str, Any]) -> None:
    """Through the backend's entry point, whose ids are int64 tensors read as two's complement."""
    ids = {name: int(case[name], 16) for name in ("seed", "chain", "draw")}
    tensors = {name: torch.from_numpy(uint64(value).view(np.int64)) for name, value in ids.items()}
    out = torch.full((1, len(case["normals"])), torch.nan)
    fill_normal(out, **tensors, tag=case["tag"], scale=1.0, offset=4 * case["first_block"])
    assert [f"{bits:08x}" for bits in out[0].numpy().view(np.uint32)] == case["normals_hex"]


def test_transform_edge_rows() -> None:
    x = np.array([int(row["x"], 16) for row in GOLDEN["transform"]], dtype=np.uint32)
    cosine, sine = noise.circle(x)
    computed = {"u01": noise.u01(x), "radius": noise.radius(x), "cos": cosine, "sin": sine}
    for name, values in computed.items():
        expected = np.array([int(row[name], 16) for row in GOLDEN["transform"]], dtype=np.uint32)
        np.testing.assert_array_equal(values.view(np.uint32), expected, err_msg=name)


@pytest.mark.parametrize("chunk", ["0", "640"])
def test_exhaustive_hash_of_a_chunk(chunk: str) -> None:
    """2^22 consecutive words. Native backends run all 2^32; here one chunk from each half of the circle."""
    totals = np.zeros(3, dtype=np.uint64)
    start = int(chunk) << 22
    for first in range(start, start + (1 << 22), 1 << 16):
        x = np.arange(first, first + (1 << 16), dtype=np.uint64)
        weight = x * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
        word = x.astype(np.uint32)
        for i, value in enumerate((noise.radius(word), *noise.circle(word))):
            totals[i : i + 1] += (value.view(np.uint32).astype(np.uint64) * weight).sum(dtype=np.uint64)
    assert [f"{int(total):016x}" for total in totals] == GOLDEN["exhaustive"]["chunks"][chunk]


def test_rekey_is_per_chain() -> None:
    """Chains on both sides of draw = 2^32 in one batch get what each gets alone."""
    draws = uint64(0, 2**32 - 1, 2**32, 2**32 + 9, 5 * 2**32 + 9)
    seed, chain = np.full_like(draws, 42), np.full_like(draws, 7)
    together = noise.normals(seed, chain, draws, tag=0, offset=0, count=9)
    for i in range(len(draws)):
        one = slice(i, i + 1)
        alone = noise.normals(seed[one], chain[one], draws[one], tag=0, offset=0, count=9)
        np.testing.assert_array_equal(together[one], alone)
    assert len({row.tobytes() for row in together}) == len(draws)  # 0 and 2^32 share the counter, not the key


@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 5, 4 * noise.CHUNK - 1])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 7, 4 * noise.CHUNK + 2])
def test_any_window_of_a_chain_has_the_same_bits(chains: int, offset: int, count: int) -> None:
    ids = np.arange(chains, dtype=np.uint64)
    window = noise.normals(ids + 5, ids, ids * 16, tag=0, offset=offset, count=count)
    assert window.shape == (chains, count)
    blocks = np.arange((offset + count + 3) // 4, dtype=np.uint64)
    whole = noise.box_muller(noise.words(ids + 5, ids, ids * 16, 0, blocks)).reshape(chains, -1)
    np.testing.assert_array_equal(window, whole[:, offset : offset + count])
