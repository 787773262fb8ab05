"""Which tests `make test` runs: none marked long; of several parameters every value, in few cases; for one GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

import quick

pytest_plugins = "pytester"
CASES = """
import pytest

OBJECTS = [object(), object()]

@pytest.fixture(params=["one", "other"])
def made(request):
    return request.param

def test_alone(): pass

@pytest.mark.long
@pytest.mark.parametrize("a", [1, 2])
def test_that_takes_long(a): pass

@pytest.mark.parametrize("n", [0, 0.0, -0.0, False, "0", None])
def test_one_parameter(n): pass

@pytest.mark.parametrize("a", range(5))
@pytest.mark.parametrize("b", ["x", "y", "z"])
@pytest.mark.parametrize("c", OBJECTS)
def test_three_parameters(a, b, c): pass

@pytest.mark.parametrize(("a", "b"), [(1, "p"), (1, "q"), (2, "p"), (2, "q")])
def test_a_product_as_one(a, b, made): pass

@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("a", [1, 2])
def test_machine_code(architecture, a): pass

class TestOne:
    @pytest.mark.parametrize("a", [1, 2])
    @pytest.mark.parametrize("b", [1, 2])
    def test_in_a_class(self, a, b): pass

class TestOther:
    @pytest.mark.parametrize("a", [1, 2])
    @pytest.mark.parametrize("b", [1, 2])
    def test_in_a_class(self, a, b): pass
"""


def test_every_value_is_kept_by_few_cases():
    grid = [frozenset({("row", row), ("column", column)}) for row in range(7) for column in range(4)]
    kept = quick.fewest(grid)
    assert kept == sorted(set(kept)) and len(kept) == 7
    assert frozenset().union(*(grid[place] for place in kept)) == frozenset().union(*grid)
    assert quick.fewest([]) == [] and quick.fewest([frozenset()]) == []


def collected(pytester: pytest.Pytester, *options: str) -> list[str]:
    root = Path(__file__).parents[1]
    pytester.makeconftest((root / "conftest.py").read_text())
    pytester.makeini("[pytest]\nmarkers = long: takes long")
    pytester.makepyfile(CASES)
    pytester.syspathinsert(root / "support")
    run = pytester.inline_run("--collect-only", *options)
    return [item.nodeid.partition("::")[2] for item in run.getcalls("pytest_collection_finish")[0].session.items]


def test_what_pytest_runs(pytester: pytest.Pytester):
    every = collected(pytester)
    few = collected(pytester, "--quick")
    counts = {"alone": (1, 1), "long": (2, 0), "one_parameter": (6, 6)}
    counts |= {"three_parameters": (30, 5), "a_product": (8, 2), "in_a_class": (8, 4), "machine_code": (6, 2)}
    for word, (all_of_it, kept) in counts.items():
        assert sum(word in name for name in every) == all_of_it
        assert sum(word in name for name in few) == kept, word
    assert [name for name in every if name in set(few)] == few
    assert all("sm_90" in name for name in few if "machine_code" in name)


def test_cases_are_chosen_of_those_that_remain(pytester: pytest.Pytester):
    """-k leaves out the case that would have stood for x."""
    few = collected(pytester, "--quick", "-k", "three_parameters and not 0")
    assert len(few) == 4 and all(any(f"-{b}-" in name for name in few) for b in "xyz"), few
