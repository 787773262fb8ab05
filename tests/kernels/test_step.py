"""The step: every backend against the readable reference, bit for bit, and the reference against the formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import ulam_kernels
from bit_comparison import same_bits
from step_cases import CHAINS, FLOATS, ROWS, one_row, random_inputs, random_table
from ulam_kernels import Table, _cpu
from ulam_kernels.cpu import BoundStep, scalar

TYPES = list(itertools.product(FLOATS, repeat=3))
SHAPES = [(1,), (2,), (3, 5, 7), (2, 8, 9), (4, 33), (1, 1000)]


@pytest.mark.parametrize("registers", range(1, 6))
@pytest.mark.parametrize("state_type, model_type, net_type", TYPES)
def test_every_instruction_set_equals_the_reference(registers, state_type, model_type, net_type):
    rng = np.random.default_rng([registers, *map(FLOATS.index, (state_type, model_type, net_type))])
    before = _cpu.instruction_set()
    for shape in SHAPES:
        table, inputs = random_table(rng, registers), random_inputs(rng, shape, model_type)
        start = torch.from_numpy(rng.normal(size=(registers, CHAINS, *shape))).to(state_type)
        row = torch.from_numpy(rng.integers(0, ROWS, CHAINS))
        if rng.random() < 0.5:
            inputs["source"] = torch.from_numpy(rng.normal(size=(CHAINS, *shape))).to(state_type)
        results = []
        for name in ("reference", *_cpu.instruction_sets()):
            if name != "reference":
                _cpu.use_instruction_set(name)
            state, net_in = start.clone(), torch.full((CHAINS, *shape), float("nan"), dtype=net_type)
            backend = "reference" if name == "reference" else "cpu"
            ulam_kernels.step(state, table, row, net_in=net_in, backend=backend, **inputs)
            results.append((name, state, net_in))
        _cpu.use_instruction_set(before)
        for name, state, net_in in results[1:]:
            assert same_bits(state, results[0][1]), (name, shape)
            assert same_bits(net_in, results[0][2]), (name, shape)


@pytest.mark.parametrize("given", [False, True], ids=["generated", "given noise"])
def test_every_form_of_the_plain_row_equals_the_reference(given):
    """Each subset of the terms of x' = a x + d D + b m + c z, in place and from a source, the noise in the output."""
    names, generator = ("x", "m", "z", "kx", "km"), torch.Generator().manual_seed(0)
    x, m, z = torch.randn(3, CHAINS, 1000, generator=generator)
    row, ids = torch.zeros(CHAINS, dtype=torch.int64), torch.arange(CHAINS)
    before = _cpu.instruction_set()
    for present in itertools.product((False, True), repeat=len(names)):
        terms = {name: 0.3 + 0.25 * k for k, name in enumerate(names) if present[k]}
        terms |= {"D": -0.7, "lo": -0.4, "hi": 0.5} if present[3] or present[4] else {}
        noise = {"seed": ids, "chain": ids, "draw": ids} | ({"noise": z} if given else {})
        expected = x[None].clone()
        ulam_kernels.step(expected, one_row(**terms), row, model=m, backend="reference", **noise)
        for name in _cpu.instruction_sets():
            _cpu.use_instruction_set(name)
            state, apart = x[None].clone(), (z if given else torch.full_like(z, float("nan")))[None].clone()
            ulam_kernels.step(state, one_row(**terms), row, model=m, **noise)
            ulam_kernels.step(
                apart, one_row(**terms), row, model=m, source=x, **noise | ({"noise": apart[0]} if given else {})
            )
            assert same_bits(state, expected) and same_bits(apart, expected), (name, terms)
        _cpu.use_instruction_set(before)


def test_a_bound_step_is_the_step():
    generator = torch.Generator().manual_seed(0)
    x, m, z = torch.randn(3, CHAINS, 3, 70, generator=generator)
    row = torch.zeros(CHAINS, dtype=torch.int64)
    for terms in ({"x": 0.9, "m": 0.1}, {"D": 0.9, "m": -0.3, "z": 0.2, "kx": 1.1, "km": -0.4, "lo": -1.0, "hi": 1.0}):
        expected = x[None].clone()
        ulam_kernels.step(expected, one_row(**terms), row, model=m, noise=z)
        step = BoundStep(one_row(**terms), x.shape)
        apart, together = torch.empty_like(x), z.clone()
        step(0, apart, x, m, z)
        step(0, together, x, m, together)
        assert torch.equal(apart, expected[0]) and torch.equal(together, expected[0])
    with pytest.raises(ValueError, match="reads noise"):
        step(0, apart, x, m, None)
    with pytest.raises(IndexError, match="row: got 3"):
        step(3, apart, x, m, z)
    with pytest.raises(
        ValueError, match="model: got another tensor, expected a contiguous float32 one of the bound shape"
    ):
        step(0, apart, x, m.half(), z)
    for shape in ((3, 0), ()):
        with pytest.raises(ValueError, match="at least one element"):
            BoundStep(one_row(x=1.0), shape)
    with pytest.raises(ValueError, match="one register"):
        BoundStep(random_table(np.random.default_rng(0), 2), x.shape)


def test_a_bound_step_takes_plain_tensors_only():
    takes, x = BoundStep(one_row(x=1.0), (3, 2, 4)).takes, torch.zeros(3, 2, 4)
    assert takes(x) and takes(torch.zeros(5, 2, 4)[1:4]) and takes(torch.zeros(3, 2, 4, requires_grad=True))
    others = [x[:2], x.mT.contiguous().mT, x[:, :1].expand(3, 2, 4), torch.zeros(24), torch.zeros(3, 2, 4, 1)]
    others += [x.half(), x.double(), x.int(), x.to("meta"), x.to_sparse(), torch.nn.Parameter(x), x.numpy(), None]
    assert not any(takes(other) for other in others)


def test_a_scalar_is_read_without_a_call_of_torch():
    for dtype in (torch.int64, torch.float32, torch.float64):
        assert [scalar(t) for t in torch.tensor([7, -3, 0], dtype=dtype)] == [7.0, -3.0, 0.0]
        assert scalar(torch.tensor([[5]], dtype=dtype)) == 5.0
    others = [torch.zeros(2), torch.zeros(0), torch.tensor(1.0).half(), torch.tensor(1.0, device="meta"), 1.0, None]
    assert [scalar(other) for other in others] == [None] * len(others)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_source_takes_the_place_of_the_first_register(backend):
    """All rows as if it had been copied there first, but that what no row writes keeps what it held."""
    rng = np.random.default_rng(8)
    table, inputs = random_table(rng, 3), random_inputs(rng, (3, 70), torch.float32)
    start, x = torch.randn(3, CHAINS, 3, 70), torch.randn(CHAINS, 3, 70)
    for first in range(0, ROWS, CHAINS):
        row = torch.arange(first, first + CHAINS) % ROWS
        state, copied = start.clone(), torch.cat([x[None], start[1:]])
        nets = torch.full((2, CHAINS, 3, 70), float("nan"))
        ulam_kernels.step(state, table, row, source=x, net_in=nets[0], backend=backend, **inputs)
        ulam_kernels.step(copied, table, row, net_in=nets[1], backend=backend, **inputs)
        unwritten = (table.flags[row] & 1) == 0
        copied[0, unwritten] = start[0, unwritten]
        assert same_bits(state, copied) and same_bits(*nets)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_source_that_overlaps_the_state_is_read_before_anything_is_written(backend):
    table, row = one_row(x=1.0), torch.zeros(3, dtype=torch.int64)
    numbers = torch.arange(91.0)
    expected = numbers[:-1].clone()
    ulam_kernels.step(numbers[1:].view(1, 3, 30), table, row, source=numbers[:-1].view(3, 30), backend=backend)
    assert torch.equal(numbers[1:], expected)
    zero, one = np.zeros(1), np.ones(1)
    two = Table.pack(zero, zero, one, one, one, one, one, np.eye(2, 5)[None], np.array([[False, True]]), zero > 0)
    state, nets = torch.arange(40.0).view(2, 2, 10), torch.empty(2, 2, 10)
    ulam_kernels.step(state.clone(), two, row[:2], source=state[1].clone(), net_in=nets[0], backend=backend)
    ulam_kernels.step(state, two, row[:2], source=state[1], net_in=nets[1], backend=backend)
    assert torch.equal(*nets)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(3, 77, 91), (1, 40_001)])
def test_threads_and_chunks_change_no_bit(threads, shape):
    """Sizes above what one thread takes alone, and chains above one chunk."""
    rng = np.random.default_rng(5)
    table, inputs = random_table(rng, 3), random_inputs(rng, shape, torch.float32)
    start = torch.from_numpy(rng.normal(size=(3, CHAINS, *shape))).float()
    row, states, before = torch.arange(1, CHAINS + 1), [], torch.get_num_threads()
    for backend in ("reference", "cpu"):
        state = start.clone()
        try:
            torch.set_num_threads(threads)
            ulam_kernels.step(state, table, row, backend=backend, **inputs)
        finally:
            torch.set_num_threads(before)
        states.append(state)
    assert same_bits(*states)


def test_flushing_of_subnormal_numbers_changes_no_bit():
    start = torch.full((1, 2, 70), 1e-39)
    results = []
    for flush in (False, True):
        state = start.clone()
        try:
            torch.set_flush_denormal(flush)
            ulam_kernels.step(state, one_row(x=0.5), torch.zeros(2, dtype=torch.int64))
        finally:
            torch.set_flush_denormal(False)
        results.append(state.view(torch.int32))
    assert torch.equal(*results) and bool((results[0] != 0).all())


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_ddpm_row_against_the_formula(backend):
    """A whole row in float64: the fp32 step is within a few roundings of a x + b m + c z."""
    a, b, c = 0.987654321, -0.0123456789, 0.1
    x, m, z = torch.randn(3, 4, 3, 17, 5, generator=torch.Generator().manual_seed(0))
    state = x[None].clone()
    ulam_kernels.step(
        state, one_row(x=a, m=b, z=c), torch.zeros(4, dtype=torch.int64), model=m, noise=z, backend=backend
    )
    exact = a * x.double() + b * m.double() + c * z.double()
    size = (a * x).abs() + (b * m).abs() + (c * z).abs()
    assert ((state[0].double() - exact).abs() <= 3 * 2**-24 * size.double()).all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_absent_terms_are_not_read(backend):
    """NaN behind a zero coefficient stays where it is."""
    state = torch.full((1, 2, 7), float("nan"))
    zeros = torch.zeros(2, dtype=torch.int64)
    ulam_kernels.step(state, one_row(m=2.0), zeros, model=torch.ones(2, 7), backend=backend)
    assert torch.equal(state[0], torch.full((2, 7), 2.0))
    state = torch.ones(1, 2, 7)
    ulam_kernels.step(state, one_row(x=3.0), zeros, model=torch.full((2, 7), float("nan")), backend=backend)
    assert torch.equal(state[0], torch.full((2, 7), 3.0))


def test_names_of_noise_go_no_further_where_no_row_makes_noise(monkeypatch):
    """A kernel that asks for all at once would load them for nothing; a table not made by pack may have any row."""
    silent, noisy = one_row(x=0.5, m=0.25), one_row(x=0.5, z=0.5)
    unknown = Table(silent.coef, silent.flags, 1)
    assert silent.uses & 0x7F == 0x21 and noisy.uses & 0x7F == 0x41 and unknown.uses == -1
    assert silent.widen(3).uses == silent.uses and Table.cat([silent, noisy]).uses == silent.uses | noisy.uses
    assert Table.cat([silent, unknown]).uses == -1
    seen = []
    monkeypatch.setattr(ulam_kernels.cpu, "step", lambda *tensors: seen.append(tensors[7:10]))
    x, ids = torch.ones(1, 3, 2), torch.arange(3)
    for table in (silent, noisy, unknown, Table.cat([silent, noisy])):
        ulam_kernels.step(x, table, ids * 0, model=x[0].clone(), seed=ids, chain=ids, draw=ids, backend="cpu")
    assert [names == (None, None, None) for names in seen] == [True, False, False, False]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_clip_passes_nan_and_holds_the_bounds(backend):
    state = torch.tensor([[[-9.0, -0.5, 0.25, 9.0, float("nan")]]])
    table = one_row(D=1.0, kx=1.0, lo=-1.0, hi=0.5)
    ulam_kernels.step(state, table, torch.zeros(1, dtype=torch.int64), backend=backend)
    assert same_bits(state[0, 0], torch.tensor([-1.0, -0.5, 0.25, 0.5, float("nan")]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_guidance_of_one_and_zero_take_their_side_untouched(backend):
    cond, uncond = torch.full((2, 3), 1e30), torch.full((2, 3), float("nan"))
    state = torch.zeros(1, 2, 3)
    kwargs = {"model": cond, "uncond": uncond, "guidance": torch.tensor([1.0, 0.0])}
    ulam_kernels.step(state, one_row(m=1.0), torch.zeros(2, dtype=torch.int64), backend=backend, **kwargs)
    assert torch.equal(state[0, 0], cond[0]) and state[0, 1].isnan().all()


def test_channels_last_and_other_strides_give_the_same_bits():
    generator = torch.Generator().manual_seed(1)
    start, model = (
        torch.randn(1, 4, 3, 8, 9, generator=generator),
        torch.randn(4, 3, 8, 9, generator=generator),
    )
    ids = torch.arange(4)
    results = []
    for m in (
        model,
        model.to(memory_format=torch.channels_last),
        model.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        state = start.clone()
        ulam_kernels.step(state, one_row(x=0.9, m=0.3, z=0.1), ids * 0, model=m, seed=ids, chain=ids, draw=ids)
        results.append(state)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_model_output_may_be_the_state_itself():
    start = torch.randn(1, 4, 33, generator=torch.Generator().manual_seed(2))
    state, apart = start.clone(), start.clone()
    row = torch.zeros(4, dtype=torch.int64)
    ulam_kernels.step(state, one_row(x=0.9, m=0.3), row, model=state[0])
    ulam_kernels.step(apart, one_row(x=0.9, m=0.3), row, model=start[0].clone())
    assert torch.equal(state, apart)


def test_empty_batch_and_sizes():
    none = torch.zeros(0, dtype=torch.int64)
    ulam_kernels.step(torch.empty(1, 0, 3), one_row(x=1.0), none)
    ulam_kernels.step(torch.empty(1, 2, 0), one_row(x=1.0), torch.zeros(2, dtype=torch.int64))
    ulam_kernels.step(
        torch.empty(1, 2, 0), one_row(x=1.0, m=1.0), torch.zeros(2, dtype=torch.int64), model=torch.empty(2, 0)
    )
    assert ulam_kernels.fill_normal(torch.empty(0, 3), seed=none, chain=none, draw=none).shape == (0, 3)


def test_float64_state_runs_on_the_reference():
    state = torch.randn(1, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    exact = state[0] * 0.1
    table = one_row(x=0.1)
    wide = Table(table.coef.double().copy_(table.coef), table.flags, 1)
    wide.coef[0, 7] = 0.1
    ulam_kernels.step(state, wide, torch.zeros(2, dtype=torch.int64))
    assert torch.equal(state[0], exact)


@pytest.mark.parametrize("types", TYPES)
def test_affine_every_instruction_set_equals_the_reference(types):
    generator = torch.Generator().manual_seed(4)
    x, m = (torch.randn(6, 3, 77, generator=generator).to(dtype) for dtype in types[:2])
    a, b = torch.tensor([1.5, 0.0, 1.0, 0.0, -2.0, 3.0]), torch.tensor([0.5, 2.0, 0.0, 0.0, 1e-3, -0.1])
    expected = ulam_kernels.affine(x, m, a, b, torch.empty(6, 3, 77, dtype=types[2]), backend="reference")
    before = _cpu.instruction_set()
    for name in _cpu.instruction_sets():
        _cpu.use_instruction_set(name)
        out = torch.full((6, 3, 77), float("nan"), dtype=types[2])
        assert same_bits(ulam_kernels.affine(x, m, a, b, out, backend="cpu"), expected), name
    _cpu.use_instruction_set(before)


def bad_step(**changes):
    arguments = {
        "state": torch.zeros(1, 2, 3),
        "table": one_row(x=1.0, m=1.0, z=1.0),
        "row": torch.zeros(2, dtype=torch.int64),
        "model": torch.zeros(2, 3),
        "noise": torch.zeros(2, 3),
    }
    arguments |= changes
    ulam_kernels.step(arguments.pop("state"), arguments.pop("table"), arguments.pop("row"), **arguments)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"state": torch.zeros(2, 2, 3)}, "state"),
        ({"state": torch.zeros(1, 2, 3, dtype=torch.int32)}, "state"),
        ({"state": torch.zeros(1, 3, 2).transpose(1, 2)}, "state"),
        ({"row": torch.zeros(2, dtype=torch.int32)}, "row"),
        ({"row": torch.zeros(3, dtype=torch.int64)}, "row"),
        ({"row": torch.tensor([0, 1])}, "row: got 1"),
        ({"row": torch.tensor([-1, 0])}, "row: got -1"),
        ({"model": torch.zeros(2, 4)}, "model"),
        ({"model": torch.zeros(2, 3, dtype=torch.int64)}, "model"),
        ({"model": None}, "model"),
        ({"noise": None}, "noise"),
        ({"noise": torch.zeros(2, 4)}, "noise"),
        ({"uncond": torch.zeros(2, 3)}, "guidance"),
        ({"uncond": torch.zeros(2, 3, dtype=torch.bfloat16)}, "uncond"),
        ({"net_in": torch.zeros(2, 2)}, "net_in"),
        ({"source": torch.zeros(2, 2)}, "source"),
        ({"table": one_row(x=1.0, z=1.0, lv_m=1.0)}, "learned"),
        ({"backend": "gpu"}, "backend"),
    ],
)
def test_bad_input_is_named(changes, named):
    with pytest.raises((TypeError, ValueError, IndexError), match=named):
        bad_step(**changes)
