"""Shares: what torchrun, srun and Slurm arrays tell a worker."""

from __future__ import annotations

import pytest
import torch

from bulk_cases import job
from ulam.bulk import Plan
from ulam.bulk.store.store import Store
from ulam.bulk.workers import worker
from ulam.bulk.workers.shares import Share, share_of_environment


def slurm(rank: int, world: int, local: int = 0) -> dict[str, str]:
    return {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world), "SLURM_LOCALID": str(local)}


def array(task: int, least: int, count: int, step: int = 1) -> dict[str, str]:
    values = {"ID": task, "MIN": least, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@pytest.mark.parametrize(
    "variables, share",
    [
        ({}, Share(0, 1, 0)),
        ({"RANK": "", "WORLD_SIZE": ""}, Share(0, 1, 0)),
        ({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}, Share(9, 16, 1)),
        (slurm(9, 16, 1), Share(9, 16, 1)),
        ({"RANK": "", "WORLD_SIZE": "", **slurm(9, 16, 1)}, Share(9, 16, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Share(1, 2, 0)),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, Share(0, 1, 0)),  # a batch script
        ({"SLURM_NTASKS": "4"}, Share(0, 1, 0)),  # the shell of an allocation
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **slurm(0, 1)}, Share(1, 2, 1)),  # torchrun inside srun
        (array(3, 0, 8), Share(3, 8, 0)),
        (array(10, 10, 4), Share(0, 4, 0)),
        (array(9, 1, 4, step=4), Share(2, 4, 0)),
        ({**slurm(1, 2, 1), **array(3, 0, 8)}, Share(7, 16, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **slurm(0, 1), **array(3, 0, 8)}, Share(7, 16, 1)),
        (array(7, 1, 3), Share(0, 3, 0)),  # --array=1,3,7
    ],
)
def test_share_of_each_launcher(variables, share):
    assert share_of_environment(variables) == share


def test_workers_of_a_whole_array_have_all_shares():
    places = [
        share_of_environment({**slurm(i, 2, i), **array(task, 5, 4, 3)}) for task in (5, 8, 11, 14) for i in (0, 1)
    ]
    assert sorted(place.rank for place in places) == list(range(8))
    assert {place.world for place in places} == {8}


@pytest.mark.parametrize("task", [0, 5, 9, 40])
def test_an_array_with_holes_stays_within_its_world(task):
    share = share_of_environment(array(task, 0, 4))
    assert 0 <= share.rank < share.world == 4


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
@pytest.mark.parametrize("text", ["one", "1.5", "--1", "-", " 1", "1e3", "٣", "9" * 5000])
def test_malformed_variables_are_named(name, text):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", name: text}
    with pytest.raises(ValueError, match=rf"^{name}: got .*, expected a whole number$"):
        share_of_environment(variables)


@pytest.mark.parametrize(
    "variables, name",
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK"),
        (slurm(4, 4), "SLURM_PROCID"),
        ({"SLURM_PROCID": "3"}, "SLURM_PROCID"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"}, "LOCAL_RANK"),
    ],
)
def test_a_rank_beyond_the_world_is_refused(variables, name):
    with pytest.raises(ValueError, match=f"^{name}: got "):
        share_of_environment(variables)


@pytest.mark.parametrize("there, missing", [("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")])
def test_one_of_torchruns_variables_alone_is_refused(there, missing):
    """Also inside Slurm, whose variables would say another share."""
    with pytest.raises(ValueError, match=f"^{missing}: got none beside {there}=1, expected both"):
        share_of_environment({there: "1", **slurm(0, 4)})


@pytest.mark.parametrize("visible, gpu", [(1, "cuda:0"), (4, "cuda:3")])
def test_the_gpu_of_a_share_is_the_only_one_where_slurm_shows_no_other(visible, gpu, tmp_path, monkeypatch):
    def asked(device):
        raise ValueError(f"asked for {device}")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(worker, "resolve_device", asked)
    with pytest.raises(ValueError, match=f"asked for {gpu}$"):
        worker.work(Plan(job(), device="cuda"), Store(tmp_path), Share(3, 4, 3), threads=1)
