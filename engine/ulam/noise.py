"""noise-v1, the noise that every sampler uses: a pure function of (seed, chain, row, stage, tag, element).

Its purpose determines tag and stage: all purposes are listed below, and no two of them share normals.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ulam_kernels.arguments import described
from ulam_kernels.new_normal import new_normal
from ulam_kernels.ops import MAX_ELEMENTS, fill_normal
from ulam_kernels.tracing import eager, plain_tensors, readable

from .arguments import (
    as_int64,
    chain_ids,
    check_device,
    check_ids,
    checked_seed,
    filled,
    seed_int64,
    training_step,
    whole_number,
    whole_numbers,
)
from .lazily import suggests

DRAWS_PER_ROW = 16  # stages of noise per row

RANK_BITS = 44  # below the rank, in the ids of examples

TREE_LEAVES = 1 << 20  # of one transition of NUTS

MOST_SAMPLES = 1 << 20  # of one training step
MOST_SAMPLED_STEPS = 1 << 40


@dataclass(frozen=True)
class Purpose:
    """What noise is for, with its tag and stage; ``rows``: what its rows count."""

    name: str
    tag: int
    stage: int
    rows: str

    def draw(self, row: int = 0) -> int:
        """noise-v1's draw of a row, as an int64."""
        return as_int64(whole_number("row", row) * DRAWS_PER_ROW + self.stage)

    def draws(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """:meth:`draw` of each of these rows."""
        return rows * DRAWS_PER_ROW + self.stage


ROW = Purpose("the noise of a row", 0, 0, "rows of a sampler's program, or steps of MCMC")
KNOWN_IMAGE = Purpose("the noise on a known image", 0, 1, "rows of a sampler's program")
HMC_PATH = Purpose("the length of an HMC path", 0, 2, "steps of MCMC")
MAMS_PATH = Purpose("the length of a path of MAMS", 0, 11, "steps of MCMC")
MALT_PATH = Purpose("refreshments on a path of MALT", 0, 12, "steps of MCMC; leap by leap in its elements")
TREE_DIRECTION = Purpose("the directions in which a NUTS path doubles", 0, 3, "steps of MCMC")
STEP_TRIAL = Purpose("momenta that try a first step size", 0, 10, "steps of MCMC")
LATENT = Purpose("a latent of a VAE that is sampled", 0, 13, "latents, from the top")
POSTERIOR = Purpose("draws from a VAE's posterior", 0, 14, "samples of training steps, see sample_row")
TRAINING = Purpose("the noise of training examples", 0, 15, "training steps")
TRAINING_TIMES = Purpose("the times of training examples", 4, 2, "training steps")
FIRST_STATE = Purpose("a chain's first state", 1, 0, "0 alone; where it starts anew, its steps")
FIRST_VELOCITY = Purpose("a chain's first velocity", 1, 1, "0 alone")
FIRST_EXAMPLE = Purpose("the example that a persistent chain starts from", 1, 2, "0; where it starts anew, its steps")
EXACT_DRAWS = Purpose("exact draws of a density", 1, 15, "0 alone")
ACCEPTANCE = Purpose("Metropolis tests", 2, 0, "steps of MCMC")
SWAP = Purpose("swaps of temperatures", 2, 1, "steps of MCMC")
RESTART = Purpose("restarts of persistent chains", 2, 2, "steps of MCMC")
TREE_LEAF = Purpose("which leaf of a doubling NUTS takes", 2, 3, "leaves: step TREE_LEAVES + the leaf's number")
TREE_DOUBLING = Purpose("whether NUTS takes what a doubling offers", 2, 4, "leaves, the last of each doubling")
PROBE = Purpose("directions for traces", 3, 0, "probes")
TRAINING_PROBE = Purpose("directions of a loss", 3, 1, "samples of training steps, see sample_row")
SAMPLED_STEPS = Purpose("which steps of a bound are evaluated", 4, 0, "repeats")
BOUND = Purpose("the noise of a bound's evaluations", 4, 1, "evaluations")
SEGMENT = Purpose("segments on which a derivative is held against differences", 3, 2, "segments")
PHOTON = Purpose("which counts are taken away", 3, 3, "samples")
TRAINING_PHOTON = Purpose("which counts a loss takes away", 3, 4, "samples of training steps, see sample_row")
RESAMPLING = Purpose("which particles are drawn again", 7, 1, "rows of a sampler's program, by group")
MINIBATCH = Purpose("which observations a minibatch holds", 7, 0, "steps of MCMC")
DEQUANTISATION = Purpose("where in its bin a quantised value lies", 5, 0, "0 alone")
CHECK = Purpose("the observations of a model's check", 6, 0, "noise levels")
X0_VARIANCE = Purpose("the noise under a measured error of x_0", 6, 1, "draws of each example")


def normal(
    shape: Sequence[int],
    *,
    seed: int,
    chains: int | range | Sequence[int] | torch.Tensor,
    row: int = 0,
    stage: int = 0,
    tag: int = 0,
    device: torch.device | str = "cpu",
    backend: str | None = None,
) -> torch.Tensor:
    """Standard normals ``[len(chains), *shape]`` float32 by Philox [Salmon 2011], equal on all backends and machines.

    Args:
        shape: of one chain's sample, at most 2^30 elements. device, backend: see :class:`ulam.Engine`.
        seed: an integer in [-2^63, 2^64), negative ones read as two's complement.
        chains: ids in [0, 2^63), a range, a sequence or an int64 tensor; an int n stands for 0..n-1.
        row: the row of the sampler's program, in [0, 2^60). stage: 0 to 15, for rows that draw more than once.
        tag: 0 for the noise of a row, 1 for the initial state, up to 14. stage and tag together say what the noise is
            for; ulam's own purposes are listed in this module.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """
    where = check_device(device)
    ids, seed = _ids(chains, where), checked_seed(seed)
    row, stage, tag = whole_number("row", row), whole_number("stage", stage), whole_number("tag", tag)
    if not isinstance(shape, Sequence):
        raise TypeError(f"shape: got {described(shape)}, expected the sizes of one sample, such as (3, 32, 32)")
    sizes = tuple(whole_number("shape", size) for size in shape)
    if not 0 <= row < 1 << 60:
        raise ValueError(f"row: got {row}, expected 0 to 2^60 - 1")
    if not 0 <= stage < DRAWS_PER_ROW:
        raise ValueError(f"stage: got {stage}, expected 0 to 15")
    if not 0 <= tag <= 14:
        raise ValueError(f"tag: got {tag}, expected 0 to 14")
    if any(size < 0 for size in sizes) or math.prod(sizes) > MAX_ELEMENTS:
        raise ValueError(f"shape: got {sizes}, expected sizes of at least 0 and at most 2^30 elements")
    seeds, draws = filled(ids, seed), filled(ids, row, DRAWS_PER_ROW, stage)
    return new_normal(sizes, seed=seeds, chain=ids, draw=draws, tag=tag, backend=backend)


def _ids(chains: int | range | Sequence[int] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """As :func:`ulam.arguments.chain_ids`, on the device; what the host cannot read at once goes unread."""
    if isinstance(chains, torch.Tensor) and not readable(chains):
        check_ids(chains)
        return chains.to(device, torch.int64)
    return chain_ids(chains).to(device)


def normal_for(purpose: Purpose, shape: Sequence[int], *, row: int = 0, **names: Any) -> torch.Tensor:
    """:func:`normal` for one purpose."""
    return normal(shape, row=row, stage=purpose.stage, tag=purpose.tag, **names)


def examples(count: int, *, rank: int | None = None, micro_batch: int = 0) -> torch.Tensor:
    """Ids for the examples of a training batch, ``[count]`` int64: rank 2^44 + micro_batch 2^32 + i.

    Losses number their noise by (seed, step, id); these are the ids they take by default. No two ranks or micro-batches
    share one, so none share noise. ``torch.cat([examples(B, rank=r) for r in range(world)])`` are the ids of the joint
    batch: one process that is given them has the noise of all ranks.

    Args:
        count: examples in this batch, up to 2^32.
        rank: of this process, below 2^19; by default that of ``torch.distributed``, 0 where it is not initialised.
        micro_batch: which of the batches whose gradients one step of the optimiser adds up, below 2^12.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """
    rank = rank_here() if rank is None else rank
    count, rank, micro_batch = whole_numbers(count=count, rank=rank, micro_batch=micro_batch)
    for name, value, bits in (("count", count, 32), ("rank", rank, 19), ("micro_batch", micro_batch, 12)):
        if not 0 <= value < 1 << bits:
            raise ValueError(f"{name}: got {value}, expected 0 to 2^{bits} - 1")
    return torch.arange(count) + (rank << RANK_BITS | micro_batch << 32)


def rank_here() -> int:
    """The rank of this process in ``torch.distributed``, 0 where that is not initialised."""
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if initialised else 0


def batch_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rank and the micro-batch in ids of :func:`examples`, each like them."""
    return ids >> RANK_BITS, ids >> 32 & (1 << 12) - 1


def for_examples(
    x: torch.Tensor,
    *,
    seed: int,
    step: int,
    chains: int | range | Sequence[int] | torch.Tensor | None,
    purpose: Purpose = TRAINING,
    backend: str | None = None,
) -> torch.Tensor:
    """The normals that a loss draws for its examples x ``[B, *shape]``: float64 where x is, else float32.

    noise-v1 of (seed, step, id). torch.compile takes it in one graph for every step, torch.func in all transforms.
    """
    return row_for_examples(
        x, x.shape[1:], seed=seed, row=training_step(step), chains=chains, purpose=purpose, backend=backend
    )


def row_for_examples(
    x: torch.Tensor,
    shape: Sequence[int],
    *,
    seed: int,
    row: int,
    chains: int | range | Sequence[int] | torch.Tensor | None,
    purpose: Purpose,
    backend: str | None = None,
) -> torch.Tensor:
    """As :func:`for_examples`, ``shape`` a chain, of a row that may number samples too (:func:`sample_row`)."""
    count = x.shape[0]
    if chains is None and not torch.compiler.is_compiling() and eager(x):
        seeds, ids, draws = training_keys(count, seed, row, x.device, purpose)
        z = torch.empty(count, *shape, device=x.device)
        fill_normal(z, seed=seeds, chain=ids, draw=draws, tag=purpose.tag, backend=backend)
    else:
        ids = example_ids(chains, count)
        z = normal_for(purpose, shape, seed=seed, chains=ids, row=row, device=x.device, backend=backend)
    return z.double() if x.dtype == torch.float64 else z


def training_keys(
    count: int, seed: int, row: int, device: torch.device, purpose: Purpose = TRAINING
) -> tuple[torch.Tensor, ...]:
    """Seeds, ids and draws ``[count]`` of a row's examples, not to be written to: they are kept for later steps."""
    seeds, ids = _kept_keys(count, seed_int64(seed), rank_here(), device)
    return seeds, ids, torch.full((count,), purpose.draw(row), device=device)


@lru_cache(maxsize=16)
def _kept_keys(count: int, seed: int, rank: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    with plain_tensors():
        return torch.full((count,), seed, device=device), examples(count, rank=rank).to(device)


def example_ids(chains: int | range | Sequence[int] | torch.Tensor | None, count: int) -> torch.Tensor:
    """The ids of a loss's ``count`` examples: ``chains``, or those of :func:`examples` if None."""
    if chains is None:
        return examples(count)
    ids = _ids(chains, chains.device if isinstance(chains, torch.Tensor) else torch.device("cpu"))
    if len(ids) != count:
        raise ValueError(f"chains: got {len(ids)} ids, expected {count}, one an example")
    return ids


def sample_row(step: int, sample: int) -> int:
    """The row of one of several samples of a training step: step 2^20 + sample, different for all of them."""
    if not 0 <= step < MOST_SAMPLED_STEPS:
        raise ValueError(f"step: got {operator.index(step)}, expected 0 to 2^40 - 1")
    if not 0 <= sample < MOST_SAMPLES:
        raise ValueError(f"samples: got {sample + 1}, expected at most 2^20")
    return step * MOST_SAMPLES + sample


suggests(__name__)
