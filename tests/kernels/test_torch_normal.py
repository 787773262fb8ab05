"""torch's CPU normals from native code: every bit, and every bit of the generator's state, against torch itself."""

from __future__ import annotations

import importlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import ulam_kernels
from ulam_kernels import _cpu, torch_normal

VECTORS = [name for name in _cpu.instruction_sets() if name != "portable"]
SIZES = [16, 17, 31, 32, 48, 608, 624, 639, 640, 1000, 1247, 1248, 1249, 1264, 8192, 20_003, 786_432, 786_437]
WORDS = 1 << 24  # words that differ in the bits that count


@pytest.fixture(params=VECTORS)
def instruction_set(request):
    """Each vector instruction set of this machine in turn."""
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(before)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(*(x.flatten().view(torch.uint8) for x in (a, b)))


def generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)


def native(out: torch.Tensor, state: torch.Tensor) -> bool:
    return _cpu.torch_normal(out.data_ptr(), out.numel(), state.data_ptr(), state.numel(), torch.get_num_threads())


def native_fill(out: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    state = generator.get_state()
    assert native(out, state), "native code refused the state"
    generator.set_state(state)
    return out


@pytest.mark.skipif(
    not VECTORS or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="torch does not use AVX2"
)
def test_native_code_serves_this_torch():
    """So that no other test passes merely because torch itself drew."""
    assert importlib.import_module("ulam_kernels.torch_normal")._native() is _cpu.torch_normal


@pytest.mark.parametrize("size", SIZES)
def test_bits_and_state(size, instruction_set):
    """Four fills, between them draws that leave the state at odd places and cached float and double normals in it."""
    theirs, ours = generators(size)
    for between in range(4):
        expected = torch.randn(size, generator=theirs)
        assert same_bits(native_fill(torch.full((size,), float("nan")), ours), expected)
        assert torch.equal(ours.get_state(), theirs.get_state())
        for generator in (theirs, ours):
            torch.randn(between, generator=generator)
            torch.rand(101 * between, generator=generator)
    assert same_bits(torch.randn(700, generator=ours), torch.randn(700, generator=theirs))


def untempered(y: np.ndarray) -> np.ndarray:
    """The word of mt19937's state that is tempered to y."""
    y = y ^ y >> 18
    y = y ^ (y << 15 & 0xEFC60000)
    x = y
    for _ in range(4):
        x = y ^ (x << 7 & 0x9D2C5680)
    y = x
    for _ in range(2):
        x = y ^ x >> 11
    return x


def fills_of_words(radii: np.ndarray, angles: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Native and torch's normals for chosen words, through generators whose states hold them: 38 groups at a time."""
    pairs = 304
    rows = -(-radii.size // pairs)
    words = np.zeros((2, rows * pairs), dtype=np.uint32)
    words[0, : radii.size], words[1, : radii.size] = radii, angles
    groups = words.reshape(2, rows, 38, 8).transpose(1, 2, 0, 3).reshape(rows, 608)
    ours, theirs = torch.full((rows, 608), float("nan")), torch.full((rows, 608), float("nan"))
    generator = torch.Generator()
    state = generator.get_state()
    fields, blocks = state.numpy().view(np.uint64), untempered(groups).astype(np.uint64)
    for row in range(rows):
        fields[1:3] = [624 | 1 << 32, 1]  # left, seeded; next
        fields[4:612] = blocks[row]
        generator.set_state(state)
        theirs[row].normal_(generator=generator)
        assert native(ours[row], state)
    assert torch.equal(state, generator.get_state())
    return ours, theirs


def test_all_radii_and_angles(instruction_set):
    """All 2^24 radii at the angle 0, where the cosine is 1, and all 2^24 angles at a radius of exactly 1."""
    words = np.arange(WORDS, dtype=np.uint32)
    ours, theirs = fills_of_words(words, np.zeros_like(words))
    assert same_bits(ours, theirs)
    radii = ours.view(-1, 2, 8)[:, 0].flatten()[: words.size]
    one = int(torch.nonzero(radii == 1.0)[0])
    assert abs(one * 2.0**-24 - (1 - np.exp(-0.5))) < 2e-7
    ours, theirs = fills_of_words(np.full_like(words, one), words)
    assert same_bits(ours, theirs)
    cosine, sine = (ours.view(-1, 2, 8)[:, i].flatten()[: words.size] for i in (0, 1))
    angle = torch.from_numpy(words).to(torch.float64) * (2 * np.pi * 2.0**-24)
    assert (cosine - angle.cos()).abs().max() < 5e-7 and (sine - angle.sin()).abs().max() < 5e-7


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_thread_count_changes_no_bit(threads, instruction_set):
    before = torch.get_num_threads()
    theirs, ours = generators(5)
    try:
        torch.set_num_threads(threads)
        assert same_bits(native_fill(torch.full((8216,), float("nan")), ours), torch.randn(8216, generator=theirs))
    finally:
        torch.set_num_threads(before)


def test_generators_of_several_threads_do_not_disturb_one_another():
    def fill(seed: int) -> torch.Tensor:
        generator, out = torch.Generator().manual_seed(seed), torch.empty(50_000)
        for _ in range(20):
            torch_normal(out, generator)
        return out

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(50_000, generator=generator) for _ in range(20)][-1]

    with ThreadPoolExecutor(4) as pool:
        for seed, out in enumerate(pool.map(fill, range(8))):
            assert same_bits(out, draw(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(0,), (), (1,), (15,), (16,), (3, 5, 7), (4, 3, 32, 32)])
def test_always_what_randn_gives(shape, dtype):
    theirs, ours = generators(11)
    for _ in range(3):
        out = torch.full(shape, float("nan"), dtype=dtype)
        assert torch_normal(out, ours) is out
        assert same_bits(out, torch.randn(shape, dtype=dtype, generator=theirs))
        assert torch.equal(ours.get_state(), theirs.get_state())


@pytest.mark.parametrize(
    "layout", [lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x.to(memory_format=torch.channels_last)]
)
def test_other_layouts_are_filled_by_torch(layout):
    theirs, ours = generators(3)
    base = torch.zeros(4, 6, 8, 8)
    out, expected = layout(base.clone()), layout(base.clone())
    torch_normal(out, ours)
    assert same_bits(out, expected.normal_(generator=theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_neighbours_stay():
    """A part of a larger tensor at an odd address."""
    whole = torch.full((1003,), 7.0)
    theirs, ours = generators(8)
    torch_normal(whole[1:1002], ours)
    assert same_bits(whole[1:1002], torch.randn(1001, generator=theirs))
    assert whole[0] == 7.0 and whole[1002] == 7.0


def test_default_generator():
    torch.manual_seed(21)
    expected, after = torch.randn(3, 333), torch.rand(5)
    torch.manual_seed(21)
    assert same_bits(torch_normal(torch.empty(3, 333)), expected) and same_bits(torch.rand(5), after)


def altered(name: str, value: int) -> torch.Tensor:
    state = torch.Generator().manual_seed(1).get_state()
    fields = {"left": 2, "seeded": 3, "next": 4}  # in units of 32 bits
    state.view(torch.int32)[fields[name]] = value
    return state


@pytest.mark.parametrize(
    "state",
    [altered("left", 2), altered("next", 7), altered("next", 625), altered("seeded", 0), torch.zeros(16).byte()],
    ids=["left", "next", "beyond", "unseeded", "size"],
)
def test_unknown_states_are_refused_untouched(state, instruction_set):
    out, before = torch.full((64,), 7.0), state.clone()
    assert not native(out, state)
    assert torch.equal(state, before) and bool((out == 7.0).all())


def test_a_state_that_torch_accepts_but_never_makes_is_left_to_torch():
    """left and next that do not belong together: torch regenerates by left and reads by next."""
    theirs, ours = generators(0)
    for generator in (theirs, ours):
        generator.set_state(altered("left", 300))
    assert same_bits(torch_normal(torch.empty(200), ours), torch.randn(200, generator=theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_portable_kernels_leave_it_to_torch():
    before = _cpu.instruction_set()
    theirs, ours = generators(4)
    try:
        _cpu.use_instruction_set("portable")
        assert not native(torch.empty(64), ours.get_state())
        assert same_bits(torch_normal(torch.empty(64), ours), torch.randn(64, generator=theirs))
    finally:
        _cpu.use_instruction_set(before)


def test_refuses_what_torch_refuses():
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch_normal(torch.empty(64, dtype=torch.int64), torch.Generator())
    with pytest.raises(RuntimeError, match="requires grad"):
        torch_normal(torch.empty(64, requires_grad=True), torch.Generator())


def test_exported():
    assert "torch_normal" in ulam_kernels.__all__


@pytest.mark.parametrize("own", [True, False])
def test_compiled_calls_have_the_same_bits(own: bool) -> None:
    """Of torch's own generator in the graph, of another one outside of it."""
    torch._dynamo.reset()

    def draw(x: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.manual_seed(seed) if own else torch.Generator().manual_seed(seed)
        return torch_normal(x * 1.0, None if own else generator) + 1

    compiled = torch.compile(draw, backend="aot_eager")
    for seed in (3, 4):
        assert torch.equal(compiled(torch.zeros(100), seed), draw(torch.zeros(100), seed))
