"""Columns that few programs have: registers for the unguided output, second times, factors on the guidance weight."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from oracles import execute
from ulam import Program, schedules
from ulam.programs.builder import ProgramBuilder
from ulam.programs.predictions import eps_coefficients, x0_coefficients
from ulam.samplers import DDIM

SCHEDULE = schedules.vp_linear(100)


def with_branches() -> Program:
    """Rows that read the unguided output by itself, and tell the network another time."""
    builder = ProgramBuilder(SCHEDULE, "v", registers=2, unguided=True)
    builder.rows([80.0, 60.0], x={"D": 0.5, "eps_u": [0.25, 0.0]}, r1={"D": 1.0})
    builder.rows(40.0, x={"D": 0.5, "D_u": 0.25, "r1": -1.0}, second=20.0)
    builder.moves(x={"x": 0.5})
    return builder.program("test")


BRANCHES = with_branches()


def test_json_round_trip_is_exact() -> None:
    again = Program.from_json(BRANCHES.to_json())
    assert again == BRANCHES and hash(again) == hash(BRANCHES) and again.to_json() == BRANCHES.to_json()
    assert again != dataclasses.replace(BRANCHES, second=np.where(BRANCHES.second == 20, 19, BRANCHES.second))


def test_a_term_of_the_unguided_output_needs_its_register() -> None:
    with pytest.raises(ValueError, match="x: got unknown term 'D_u', expected one of x, D, m, z, eps"):
        ProgramBuilder(SCHEDULE, "v").rows(50.0, x={"D_u": 1.0})
    with pytest.raises(ValueError, match="updates: got unknown register 'r1', expected one of x"):
        ProgramBuilder(SCHEDULE, "v", unguided=True).rows(50.0, x={"D_u": 1.0}, r1={"x": 1.0})
    with pytest.raises(ValueError, match="x: got unknown term 'eps_u', expected one of x, r1, D, m, z"):
        ProgramBuilder(SCHEDULE, "v", unguided=True).moves(x={"eps_u": 1.0})


def test_rows_read_the_unguided_output_where_they_state_terms_in_it() -> None:
    program = BRANCHES
    assert program.unguided.tolist() == [2, 0, 2, 0] and program.reads_unguided and program.tells_second
    np.testing.assert_array_equal(program.second, [math.nan, math.nan, 20.0, math.nan])
    assert "u" in str(program).splitlines()[-2] and not DDIM(7).program(SCHEDULE).reads_unguided
    x, outputs = np.array([0.3, -2.0]), np.random.default_rng(0).normal(size=(2, 4, 2))
    states = execute(program, x, lambda row, _: outputs[0, row], lambda _: 0 * x, lambda row, _: outputs[1, row])
    past = 0.0
    for row, (on_eps, on_D) in enumerate([(0.25, 0.0), (0.0, 0.0), (0.0, 0.25)]):
        alpha, sigma = SCHEDULE.levels(np.array([80.0, 60.0, 40.0])[row])
        (kx, km, _), (ex, em) = x0_coefficients("v", alpha, sigma), eps_coefficients("v", alpha, sigma)
        m, u = outputs[:, row]
        D = kx * x + km * m
        x = 0.5 * D + on_eps * (ex * x + em * u) + on_D * (kx * x + km * u) - (row == 2) * past
        past = D
        np.testing.assert_allclose(states[row], x, rtol=1e-13)


def test_a_program_whose_rows_have_no_seldom_columns_is_written_without_them() -> None:
    assert not {"second", "unguided", "guidance"} & json.loads(DDIM(7).program(SCHEDULE).to_json()).keys()
    assert {"second", "unguided"} <= json.loads(BRANCHES.to_json()).keys()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"second": np.full(10, np.inf)}, "second: got inf at row 0"),
        ({"unguided": np.ones(10)}, r"unguided: got 1.0 at row 0"),
        ({"unguided": np.full(10, 0.5)}, r"unguided: got 0.5 at row 0"),
        ({"guidance": np.full(10, np.nan)}, "guidance: got nan at row 0"),
        ({"guidance": np.ones(9)}, r"guidance: got shape \[9\]"),
    ],
)
def test_seldom_columns_are_checked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DDIM(10).program(SCHEDULE), **fields)
