"""Programs in the engine's table of rows: their values, who makes way for whom, and when the table moves."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import ulam
from engine_cases import SCHEDULE, SHAPE, net
from ulam.engine.row_table import CAPACITY, RowTable
from ulam.samplers import DDIM, DDPM, PNDM, DPMSolverPP
from ulam_kernels.table import C_NEXT

CPU = torch.device("cpu")


def load(rows, program, running):
    """The program's place, made if it has none."""
    return rows.find(program) or rows.add(program, running)


def programs(*samplers):
    return [sampler.program(SCHEDULE) for sampler in samplers]


def new_table():
    return RowTable(CPU, torch.float32, torch.float32)


def expect_values(rows, program):
    """Every table with registers enough holds the program's rows as it packs them itself."""
    place, packed = rows[program], program.table()
    at = slice(place.begin, place.end)
    for registers in (1, 2, 4, 5):
        if registers >= program.registers:
            table = rows.table(registers)
            assert torch.equal(table.coef[at], packed.widen(registers).coef)
            assert torch.equal(table.flags[at], packed.flags)
    columns = rows.columns
    assert torch.equal(columns.c_next[at], packed.coef[:, C_NEXT])
    assert columns.times[at][program.evaluating].tolist() == place.network_times
    assert place.network_times == [float(torch.tensor(t, dtype=torch.float32)) for t in program.time[program.evaluates]]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_programs_of_all_widths_lie_in_every_table_that_is_wide_enough(order):
    rows, made = new_table(), programs(DDPM(steps=7), DPMSolverPP(9), PNDM(12))
    for number in order:
        load(rows, made[number], set)
        rows.table(made[number].registers)
        for program in rows.programs:
            expect_values(rows, program)
    places = sorted((rows[p].begin, rows[p].end) for p in made)
    assert places[0][0] == 1, "row 0 is the idle row"
    assert all(end <= begin for (_, end), (begin, _) in pairwise(places))
    assert not rows.table(5).flags[0] and rows.columns.times[0] == made[order[0]].time[0]


def test_programs_without_chains_make_way_the_longest_unused_first():
    rows, made = new_table(), programs(*(DDIM(steps=1000, eta=eta / 10) for eta in range(6)))
    before = rows.columns
    for program in made[:4]:
        load(rows, program, set)
    load(rows, made[0], set)  # used again: the second is now the one that waited longest
    load(rows, made[4], lambda: {made[2]})
    assert rows.columns is before, "nothing moved"
    assert set(rows.programs) == {made[0], made[2], made[3], made[4]}
    load(rows, made[5], lambda: {made[2], made[0]})
    assert set(rows.programs) == {made[0], made[2], made[4], made[5]}
    for program in rows.programs:
        expect_values(rows, program)


def test_a_table_of_running_programs_grows_geometrically_and_keeps_every_place():
    rows, made = new_table(), programs(*(DDIM(steps=1000, eta=eta / 20) for eta in range(12)))
    sizes, places = [], {}
    for program in made:
        load(rows, program, lambda: set(made))
        assert all((rows[p].begin, rows[p].end) == place for p, place in places.items())
        places[program] = rows[program].begin, rows[program].end
        sizes.append(len(rows))
    assert sorted(set(sizes)) == [CAPACITY, 2 * CAPACITY, 4 * CAPACITY]
    for program in made:
        expect_values(rows, program)


def test_a_program_larger_than_the_table_fits():
    rows = new_table()
    (program,) = programs(DDIM(steps=1000))
    long = ulam.samplers.RePaint(200, jump_length=10, jump_n_sample=30).program(SCHEDULE)
    assert len(long) > CAPACITY
    load(rows, program, lambda: {program})
    load(rows, long, lambda: {program})
    assert len(rows) >= len(long) + len(program)
    expect_values(rows, program)
    expect_values(rows, long)


def test_a_thousand_samplers_leave_a_table_of_the_size_it_had():
    engine = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, 2)
    for number in range(200):
        engine.submit(DDIM(steps=50, eta=number / 200), 1, seed=number)
    results = engine.run()
    rows = engine._runner.buffers.rows
    assert len(rows) == CAPACITY and len(rows.programs) < 82
    last = list(results)[-1]
    alone = ulam.Engine(ulam.Denoiser(net, SCHEDULE), SHAPE, 2)
    job = alone.submit(DDIM(steps=50, eta=199 / 200), 1, seed=199)
    assert torch.equal(alone.run()[job], results[last])


def test_failures_are_told_by_the_rows_that_the_program_had_when_its_chains_left():
    """Between leaving the slots and being handed out, another program may take a program's rows."""
    time = float(DDIM(steps=9).program(SCHEDULE).time[5])

    def network(x, t):
        return torch.where((t == time).view(-1, 1, 1, 1), torch.nan, net(x, t))

    engine = ulam.Engine(ulam.Denoiser(network, SCHEDULE), SHAPE, 2)
    engine.submit(DDIM(steps=9), 2)
    rows = engine._runner.buffers.rows
    while not engine._delivery._departures:
        engine._loop.run_to_next_event(None)
    for program in programs(*(DDIM(steps=1000, eta=eta / 10) for eta in range(5))):
        load(rows, program, set)
    assert DDIM(steps=9).program(SCHEDULE) not in rows.programs
    assert [result.failed for result in engine.stream()] == [5, 5]
