"""A worker's share: where in the list of units it begins, and which GPU it takes.

torchrun, srun and Slurm arrays tell each process its place. Nothing depends on it but which unit a worker takes first:
whoever is free takes the next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Worker ``rank`` of ``world``, the ``local_rank``-th on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def share_of_environment(variables: Mapping[str, str]) -> Share:
    """The share that torchrun's variables say, or srun's, times the place in a Slurm array; of one worker without any.

    Raises ValueError for a variable that is no whole number, a rank beyond the world, or RANK or WORLD_SIZE alone.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not (variables.get("RANK") or variables.get("WORLD_SIZE")):
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    rank, world, local = (_whole(variables, name) for name in names)
    if names[0] == "RANK" and (rank is None or world is None):
        missing, there = names[:2] if rank is None else (names[1], names[0])
        raise ValueError(f"{missing}: got none beside {there}={variables[there]}, expected both, as torchrun sets them")
    if rank is None:  # SLURM_NTASKS alone is that of an allocation, in whose shell no task runs
        rank, world = 0, 1
    world = 1 if world is None else world  # of a batch script
    if not 0 <= rank < world:
        raise ValueError(f"{names[0]}: got {rank} of {names[1]} {world}, expected 0 to {names[1]} - 1")
    if local is not None and local < 0:
        raise ValueError(f"{names[2]}: got {local} in the environment, expected at least 0")
    if (task := _whole(variables, "SLURM_ARRAY_TASK_ID")) is not None:
        count = max(1, _whole(variables, "SLURM_ARRAY_TASK_COUNT") or 1)
        step = max(1, _whole(variables, "SLURM_ARRAY_TASK_STEP") or 1)
        index = (task - (_whole(variables, "SLURM_ARRAY_TASK_MIN") or 0)) // step % count  # arrays may have holes
        rank, world = index * world + rank, count * world
    return Share(rank, world, local or 0)


def _whole(variables: Mapping[str, str], name: str) -> int | None:
    text = variables.get(name, "")
    if not text:
        return None
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError(f"{name}: got {text!r} in the environment, expected a whole number")
    return int(text)
