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

    Raises ValueError for a variable that is no whole number, or a rank beyond the world.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in variables and "WORLD_SIZE" not in variables:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    rank, world, local = _whole(variables, names[0], 0), _whole(variables, names[1], 1), _whole(variables, names[2], 0)
    if not (0 <= rank < world and local >= 0):
        raise ValueError(f"{names[0]}: got {rank} of {names[1]} {world}, expected 0 to {names[1]} - 1")
    if "SLURM_ARRAY_TASK_ID" in variables:
        index = _whole(variables, "SLURM_ARRAY_TASK_ID", 0) - _whole(variables, "SLURM_ARRAY_TASK_MIN", 0)
        count = max(1, _whole(variables, "SLURM_ARRAY_TASK_COUNT", 1))
        index = index // max(1, _whole(variables, "SLURM_ARRAY_TASK_STEP", 1)) % count  # arrays may have holes
        rank, world = index * world + rank, count * world
    return Share(rank, world, local)


def _whole(variables: Mapping[str, str], name: str, default: int) -> int:
    text = variables.get(name, "")
    if not text:
        return default
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError(f"{name}: got {text!r} in the environment, expected a whole number")
    return int(text)
