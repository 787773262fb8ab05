"""`ulam.tune`: networks whose fastest way to run is known, what is refused, what is remembered."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

import tuning_cases
import ulam
from tuning_cases import EachCall, Float32Only, Slow
from ulam.bulk import Job, Plan
from ulam.bulk.recipes import settings_of
from ulam.samplers import DDIM
from ulam.tuning import search, trial

pytestmark = pytest.mark.filterwarnings("ignore:.*got a first noise level")

SCHEDULE = ulam.schedules.vp_linear(20)
SHAPE = (4,)
LABELS = torch.tensor([1, 2, 3])
GUIDED: dict[str, Any] = {"cond": {"y": LABELS}, "uncond": {"y": torch.zeros(3, dtype=torch.int64)}, "guidance": 2.0}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nothing is kept beyond a test, and what a network's way to run takes does not depend on the machine."""
    clock = tuning_cases.Clock()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module, name in ((tuning_cases, "clock"), (trial, "time")):
        monkeypatch.setattr(module, name, clock)
    return tmp_path


def tuned(net: Any, accuracy: str | float = "fp32", **options: Any) -> ulam.Tuned:
    given: dict[str, Any] = {"slots": 8, "sampler": DDIM(6), "progress": False, "cache": False} | options
    return ulam.tune(ulam.Denoiser(net, SCHEDULE), SHAPE, accuracy=accuracy, **given)


def verdicts(found: ulam.Tuned) -> dict[str, str]:
    return {str(one.options): one.verdict for one in found.candidates}


@pytest.mark.parametrize("accuracy", ["exact", "fp32", 1e-6])
def test_what_is_faster_and_the_same_is_taken(accuracy):
    found = tuned(Slow(), accuracy)
    assert found.options.compile and found.slots == 8
    assert found.chosen.speed > 2 and found.chosen.row_error == found.chosen.sample_error == 0
    assert found.chosen.warm_up > 0 and found.chosen.break_even >= 1
    assert found.candidates[0].options == ulam.NetworkOptions() and found.candidates[0].speed == 1


def test_what_is_not_as_accurate_as_asked_is_not():
    for accuracy, told in (("exact", "other bits than eager"), ("fp32", "against float64"), (1e-3, "above 0.001")):
        found = tuned(Slow(off=0.1), accuracy)
        assert found.options == ulam.NetworkOptions()
        assert told in verdicts(found)["compiled (frozen)"]
    assert tuned(Slow(off=0.001), 0.1).options.compile


def test_the_error_of_samples_is_what_it_says():
    """Root mean square, as a fraction of the range of eager's samples."""
    found = tuned(Slow(off=0.01), 0.9)
    job = (ulam.Denoiser(Slow(), SCHEDULE), DDIM(6), SHAPE, 8, 0)
    eager = ulam.sample(*job, slots=8, progress=False)
    ours = ulam.sample(ulam.Denoiser(Slow(off=0.01), SCHEDULE), *job[1:], options=found, progress=False)
    expected = float((ours - eager).square().mean().sqrt() / (eager.max() - eager.min()))
    assert found.options.compile and found.chosen.sample_error == pytest.approx(expected, rel=1e-5)


def test_what_fails_is_listed_with_its_reason():
    found = tuned(Float32Only(), 0.5)
    assert found.options.weights is None
    assert verdicts(found)["bf16 weights"] == "failed: not today"
    assert "failed: not today" in str(found)


def test_equal_ways_lose_to_eager():
    assert tuned(EachCall()).options == ulam.NetworkOptions()


@pytest.mark.parametrize("coupled", [True, pytest.param(False, marks=pytest.mark.long)])
def test_both_branches_in_one_batch_only_where_no_bit_moves(coupled):
    found = tuned(EachCall(coupled), **GUIDED)
    told = verdicts(found)["branches in one batch"]
    assert found.options.doubled == (not coupled)
    assert told == ("a chain's bits would depend on whether others are guided" if coupled else "chosen")
    assert not tuned(EachCall(), doubled=False, **GUIDED).options.doubled


def test_the_fastest_number_of_slots():
    found = tuned(EachCall(), slots=[2, 16])
    assert found.slots == 16 and found.chosen.speed > 4
    assert tuned(EachCall(coupled=True), "exact", slots=[2, 16]).slots == 2


def test_a_budget_that_is_spent_is_said():
    found = tuned(Slow(), budget=1e-3)
    assert found.options == ulam.NetworkOptions()
    assert verdicts(found)["compiled"] == "not tried: 0 s were left of 0"


def test_samples_are_compared_after_fewer_steps_where_time_is_short(monkeypatch):
    monkeypatch.setattr(search, "SAMPLED", 1e-9)
    assert tuned(EachCall(), sampler=DDIM(20)).sampler == repr(DDIM(5))
    assert tuned(EachCall(), sampler=ulam.Denoiser(Slow(), SCHEDULE).program(DDIM(20))).sampler == repr(DDIM(20))


@pytest.mark.parametrize("chains", [range(8), [7, 3], [100]])
def test_engines_run_as_tuned_and_neighbours_change_nothing(chains):
    found = tuned(Slow(), **GUIDED)
    assert found.options.compile
    denoiser = ulam.Denoiser(Slow(), SCHEDULE)
    engine = ulam.Engine(denoiser, SHAPE, options=found)
    assert engine.slots == 8 and str(found.options) == engine.report.network == engine.report.as_dict()["network"]
    engine.submit(DDIM(3), 5, seed=1)
    job = engine.submit(DDIM(6), chains)
    alone = ulam.sample(denoiser, DDIM(6), SHAPE, chains, options=found, progress=False)
    assert torch.equal(engine.run()[job], alone)


def test_a_result_is_kept_for_network_weights_and_arguments(home):
    net = Slow()
    first = tuned(net, cache=True)
    again = tuned(Slow(), cache=True)
    assert again == first and again.chosen.warm_up == first.chosen.warm_up, "not measured anew"
    assert tuned(net, "exact", cache=True).accuracy == "exact"
    with torch.no_grad():
        net.weight.fill_(0.25)
    assert tuned(net, cache=True) != first
    kept = json.loads((home / "ulam" / "tuned.json").read_text())
    assert len(kept) == 3


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": {"options": {}}}', "\x00"])
def test_a_damaged_file_is_ignored(home, text):
    (home / "ulam").mkdir()
    (home / "ulam" / "tuned.json").write_text(text)
    assert tuned(Slow(), cache=True, budget=1e-3).options == ulam.NetworkOptions()


def test_a_result_with_an_unknown_dtype_is_measured_anew(home):
    """Never read as one without a dtype, which would run the network in another way than was chosen."""
    tuned(Slow(), cache=True)
    file = home / "ulam" / "tuned.json"
    ((key, found),) = json.loads(file.read_text()).items()
    found["options"]["autocast"] = found["candidates"][0]["options"]["autocast"] = "torch.bfloat16"
    found["accuracy"] = "as it stands in the file"
    file.write_text(json.dumps({key: found}))
    again = tuned(Slow(), cache=True)
    assert again.accuracy != "as it stands in the file" and again.options.autocast is None


def test_given_options_hold_for_all():
    given = ulam.NetworkOptions(gradients=True)
    found = tuned(EachCall(), options=given)
    assert all(one.options.gradients and one.options.compile != "frozen" for one in found.candidates)
    assert tuned(EachCall(), options=found).options == found.options


def test_bulk_plans_take_what_was_found():
    found = replace(tuned(Slow()), slots=32)
    denoiser = ulam.Denoiser(Slow(), SCHEDULE)
    plan = Plan(Job(denoiser, DDIM(6), SHAPE, 8), options=found)
    assert (plan.slots, plan.options) == (32, found.options)
    assert settings_of(found) == {"compile": found.options.compile, "slots": 32}
    assert plan.units().__next__().key != Plan(Job(denoiser, DDIM(6), SHAPE, 8), slots=32).units().__next__().key


WRONG = {
    "accuracy": [("accuracy", value) for value in ("bf16", 0, 1.5, True, None, float("nan"))],
    "slots": [("slots", value) for value in (0, "auto", [], 1.5)],
    "others": [
        ("budget", 0), ("budget", "long"), ("guidance", "much"), ("cond", [1]), ("cond", {"y": 3}),
        ("cond", {"y": torch.tensor(3)}), ("options", {}), ("cache", 1), ("progress", None), ("doubled", 0),
        ("seed", 1.5), ("sampler", "ddim"), ("device", "moon"), ("dtype", torch.int8), ("backend", "gpu"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name, value", [case for cases in WRONG.values() for case in cases], ids=str)
def test_a_wrong_argument_is_one_line(name, value):
    with pytest.raises((TypeError, ValueError)) as told:
        tuned(Slow(), **{name: value}) if name != "accuracy" else tuned(Slow(), value)
    assert str(told.value).startswith(f"{name}: got ") and "\n" not in str(told.value)


def test_a_network_that_does_not_run_is_one_line():
    with pytest.raises(ValueError, match=r"^denoiser: got a network that fails \(.*\), expected one that runs"):
        tuned(torch.nn.Linear(3, 3))
    with pytest.raises(ValueError, match=r"^accuracy: got 'fp32' for a network that is no torch.nn.Module"):
        tuned(lambda x, t: x)
