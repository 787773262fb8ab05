"""Plans: the keys of units tell apart whatever changes their bytes, and equal those of equal jobs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import ulam
from bulk_cases import CHAINS, DENOISER, IDS, SCHEDULE, SHAPE, Decoder, Net, job, labelled, values
from ulam import bulk
from ulam.bulk.recipes import plan_of
from ulam.guidance import APG, CFGZero
from ulam.samplers import DDIM, DDPM, RePaint

NULL = {"y": torch.zeros(CHAINS, dtype=torch.int64)}
GUIDED: dict[str, Any] = {"cond": labelled(), "uncond": NULL, "guidance": 2.0}
BLENDED: dict[str, Any] = {"cond": labelled(), "blend": [({"y": labelled()["y"]}, 0.5)]}
PAINTED: dict[str, Any] = {
    "sampler": RePaint(4), "known": values(CHAINS, *SHAPE), "mask": (values(CHAINS, *SHAPE) > 0).float(),
}  # fmt: skip


def changed(x: torch.Tensor, place: int = 5) -> torch.Tensor:
    """The same but for one number of one chain."""
    x = x.clone()
    x[place] = x[place] + 1 if x.dtype == torch.int64 else 1 - x[place]
    return x


def keys(arguments: dict[str, Any], **plan: Any) -> list[str]:
    return [unit.key for unit in bulk.Plan(job(**arguments), **{"slots": 32, "unit": 32} | plan).units()]


# For each argument: those of the job, and what is changed of them.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "weights": ({}, {"denoiser": ulam.Denoiser(Net(0.31), SCHEDULE)}),
    "predicts": ({}, {"denoiser": ulam.Denoiser(Net(), SCHEDULE, predicts="x0")}),
    "schedule": ({}, {"denoiser": ulam.Denoiser(Net(), ulam.schedules.vp_linear(21))}),
    "sampler": ({}, {"sampler": DDPM(5)}),
    "steps": ({}, {"sampler": DDIM(6)}),
    "eta": ({}, {"sampler": DDIM(5, eta=0.5)}),
    "shape": ({}, {"shape": (4, 3)}),
    "seed": ({}, {"seed": 1}),
    "negative seed": ({}, {"seed": -1}),
    "first row": ({"sampler": DDPM(5)}, {"first_row": 1}),
    "ids": ({}, {"chains": IDS}),
    "order": ({"chains": [*range(CHAINS)]}, {"chains": [*range(CHAINS)][::-1]}),
    "cond": ({"cond": labelled()}, {"cond": {"y": labelled()["y"].flip(0)}}),
    "no cond": ({}, {"cond": labelled()}),
    "type of cond": ({"cond": labelled()}, {"cond": {"y": labelled()["y"].float()}}),
    "name of cond": (
        {"cond": {**labelled(), "context": values(CHAINS, *SHAPE)}}, {"cond": {"y": labelled()["y"]}}
    ),
    "shared cond": (
        {"cond": {"context": ulam.shared(values(*SHAPE))}}, {"cond": {"context": ulam.shared(values(*SHAPE, seed=1))}}
    ),
    "guidance": (GUIDED, {"guidance": 3.0}),
    "uncond": (GUIDED, {"uncond": {"y": NULL["y"] + 1}}),
    "interval": (GUIDED, {"guidance_interval": (3.0, 9.0)}),
    "rescale": (GUIDED, {"guidance_rescale": 0.5}),
    "rule": (GUIDED | {"guidance_rule": APG()}, {"guidance_rule": APG(eta=0.5)}),
    "no rule": (GUIDED, {"guidance_rule": CFGZero()}),
    "blend": (BLENDED, {"blend": [({"y": labelled()["y"] + 1}, 0.5)]}),
    "weight of a blend": (BLENDED, {"blend": [({"y": labelled()["y"]}, 0.25)]}),
    "no blend": (BLENDED, {"blend": None}),
    "two blends": (BLENDED, {"blend": BLENDED["blend"] * 2}),
    "scheduled": (GUIDED, {"guidance_schedule": lambda t: t / 10}),
    "x_init": ({"x_init": values(CHAINS, *SHAPE), "seed": 1}, {"x_init": values(CHAINS, *SHAPE, seed=1)}),
    "shared x_init": (
        {"x_init": ulam.shared(values(*SHAPE)), "seed": 1}, {"x_init": ulam.shared(values(*SHAPE, seed=1))}
    ),
    "known": (PAINTED, {"known": values(CHAINS, *SHAPE, seed=1)}),
    "mask": (PAINTED, {"mask": (values(CHAINS, *SHAPE, seed=1) > 0).float()}),
    "shared known": (
        PAINTED | {"known": ulam.shared(values(*SHAPE))}, {"known": ulam.shared(values(*SHAPE, seed=1))}
    ),
    "finish": ({}, {"finish": Decoder()}),
    "weights of finish": ({"finish": Decoder()}, {"finish": Decoder(41.0)}),
    "labels": ({"labels": torch.arange(CHAINS)}, {"labels": torch.arange(CHAINS).flip(0)}),
    "labelled": ({"cond": labelled()}, {"labelled": False}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_each_argument_of_a_job_changes_the_keys_of_all_units(name):
    before, change = CHANGES[name]
    assert not set(keys(before)) & set(keys(before | change))
    assert keys(before) == keys(dict(before))


PER_CHAIN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cond": ({"cond": labelled()}, {"cond": {"y": changed(labelled()["y"])}}),
    "guidance": (GUIDED | {"guidance": torch.full((CHAINS,), 2.0)}, {"guidance": changed(torch.full((CHAINS,), 2.0))}),
    "uncond": (GUIDED, {"uncond": {"y": changed(NULL["y"])}}),
    "blend": (BLENDED, {"blend": [({"y": changed(labelled()["y"])}, 0.5)]}),
    "weight of a blend": (
        BLENDED | {"blend": [({}, torch.full((CHAINS,), 2.0))]}, {"blend": [({}, changed(torch.full((CHAINS,), 2.0)))]}
    ),
    "x_init": (
        {"x_init": values(CHAINS, *SHAPE), "seed": 1}, {"x_init": changed(values(CHAINS, *SHAPE))}
    ),
    "known": (PAINTED, {"known": changed(PAINTED["known"])}),
    "mask": (PAINTED, {"mask": changed(PAINTED["mask"])}),
    "ids": ({"chains": IDS * 2}, {"chains": changed(IDS * 2)}),
    "labels": ({"labels": torch.arange(CHAINS)}, {"labels": changed(torch.arange(CHAINS))}),
}  # fmt: skip


@pytest.mark.parametrize("name", PER_CHAIN)
def test_the_value_of_one_chain_changes_the_key_of_its_unit_alone(name):
    before, change = PER_CHAIN[name]
    same = [a == b for a, b in zip(keys(before), keys(before | change), strict=True)]
    assert same == [False, True, True]


@pytest.mark.parametrize(
    "change",
    [{"slots": 64}, {"dtype": torch.bfloat16}, {"options": ulam.NetworkOptions(autocast=torch.bfloat16)}],
    ids=lambda change: next(iter(change)),
)
def test_each_argument_of_a_plan_that_bytes_depend_on_changes_all_keys(change):
    assert not set(keys({})) & set(keys({}, **change))


def test_equal_jobs_have_equal_keys_however_they_are_written():
    assert keys({}) == keys({"chains": range(CHAINS)}) == keys({"chains": [*range(CHAINS)]})
    assert keys({"seed": -1}) == keys({"seed": (1 << 64) - 1})
    assert keys(GUIDED) == keys(GUIDED | {"guidance": [2.0] * CHAINS})
    x = values(CHAINS, *SHAPE)
    given = [x, x.transpose(0, 1).contiguous().transpose(0, 1), torch._neg_view(-x), torch.complex(x, -x).conj().imag]
    assert len({tuple(keys({"x_init": view, "seed": 1})) for view in given}) == 1
    assert keys({}) == keys({"denoiser": ulam.Denoiser(Net(), SCHEDULE)})


def test_conditioning_without_numbers_has_a_key():
    assert len(keys({"cond": {"y": torch.zeros(CHAINS, 0)}})) == 3


def test_units_cover_each_job_in_order():
    plan = bulk.Plan([job(), job(chains=3), job(chains=range(5, 500, 2))], slots=32, unit=50)
    assert [(unit.job, unit.begin, unit.end) for unit in plan.units()] == [
        (0, 0, 50), (0, 50, 70), (1, 0, 3), *((2, i, min(i + 50, 248)) for i in range(0, 248, 50)),
    ]  # fmt: skip
    assert len(plan) == 8
    assert plan.chains == 321


def test_a_unit_holds_a_mebibyte_by_default_and_whole_fillings_of_the_slots():
    assert bulk.Plan(job(), slots=32).unit == (1 << 20) // (24 * 32) * 32
    assert bulk.Plan(job(shape=(3, 1024, 1024)), slots=32).unit == 32


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"jobs": []}, "jobs: got [], expected an ulam.bulk.Job, or several"),
    ({"slots": 33}, "slots: got 33, expected a multiple of 32"),
    ({"unit": 0}, "unit: got 0, expected 1 to"),
    ({"unit": 1.5}, "unit: got 1.5, expected a whole number"),
    ({"device": "cuda:1"}, "device: got 'cuda:1', expected one of cpu, cuda"),
    ({"backend": "metal"}, "backend: got 'metal', expected"),
    ({"format": "png"}, "format: got 'png', expected one of safetensors, npz"),
    ({"format": "npz", "dtype": torch.bfloat16}, "format: got npz for bfloat16"),
    ({"options": ulam.NetworkOptions(doubled=True)}, "options: got doubled=True"),
    ({"jobs": bulk.Job(Net(), DDIM(5), SHAPE, 3)}, "denoiser: got Net, expected a ulam.Denoiser"),
    ({"jobs": job(labels=torch.zeros(3))}, "labels: got a tensor of torch.float32 [3], expected an int64 tensor [70]"),
    ({"jobs": job(labelled=1)}, "labelled: got 1, expected True or False"),
    ({"jobs": job(chains=[1, 1])}, "chains: got an id twice"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message.split(",")[0] for _, message in WRONG])
def test_what_is_wrong_is_named_in_one_line(arguments, message):
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)) as caught:
        bulk.Plan(**{"jobs": job()} | arguments)
    assert "\n" not in str(caught.value)


def test_labels_are_copied_and_found_in_the_conditioning():
    labels = torch.arange(CHAINS)
    plan = bulk.Plan([job(labels=labels), job(cond=labelled()), job(cond=labelled(), labelled=False), job()])
    labels.zero_()
    assert [None if planned.labels is None else planned.labels.tolist() for planned in plan.jobs] == [
        [*range(CHAINS)], labelled()["y"].tolist(), None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("what", ["denoiser", "finish", "x_init"])
def test_what_changed_after_the_plan_was_made_is_refused_by_run(tmp_path, what):
    net, finish, x = Net(), Decoder(), values(CHAINS, *SHAPE)
    plan = bulk.Plan(job(denoiser=ulam.Denoiser(net, SCHEDULE), finish=finish, x_init=x, seed=1))
    with torch.no_grad():
        {"denoiser": net.linear.weight, "finish": finish.gain, "x_init": x}[what].mul_(2)
    name = {"denoiser": "weights"}.get(what, what)
    with pytest.raises(ValueError, match=f"^{name}: got others in job 1 than when the plan was made, expected"):
        bulk.run(plan, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_a_denoiser_that_has_sampled_has_the_same_key():
    ulam.sample(DENOISER, DDIM(3), SHAPE, 3, progress=False)
    assert keys({}) == keys({"denoiser": ulam.Denoiser(Net(), SCHEDULE)})


def test_a_recipe_takes_samplers_names_from_elsewhere():
    def units(**table: Any) -> list[str]:
        recipe = {"settings": {"model": "digits"}, "jobs": [{"chains": 3, "labels": "0-9", "steps": 4} | table]}
        return [unit.key for unit in plan_of(recipe).units()]

    ours = units(sampler="dpmsolverpp", lower_order_final=False, sigmas="karras")
    assert units(sampler="DPM++ 2M Karras") == units(sampler="dpmpp_2m", sigmas="karras") == ours
    with pytest.raises(ValueError, match=r"^job 1: sampler: got 'dpmpp_2n', expected a known sampler, .*dpmpp_2m"):
        units(sampler="dpmpp_2n")
