"""The plan: jobs cut into units, each with a key, the hash of all that its bytes depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy.typing as npt
import torch

from ulam_kernels import dispatch
from ulam_kernels.arguments import choice, described, switch, whole
from ulam_kernels.reprs import short_repr
from ulam_kernels.validation import check_data

from ..arguments import MAX_CHAINS, check_device, check_shape, resolve_device
from ..conditioning import Blend, Cond, Shared, as_tensor
from ..denoiser import Denoiser, Sampler
from ..engine import job as engine_job
from ..engine.arguments import check_options, check_slots, default_slots
from ..engine.network import NetworkOptions
from ..engine.submission import job_of
from ..engine.tuned import Tuned
from ..guidance import GuidanceSchedule, Rule
from ..programs.program import Program
from ..tuning.tune import tune
from .fingerprints.fingerprint import fingerprint
from .record import Record
from .units import PARTS, PlannedUnit, units_of

DEVICES = ("cpu", "cuda")
FORMATS = ("safetensors", "npz")
SLOTS_STEP = 32  # at multiples of it a chain's bits do not depend on its slot, see ulam.Engine
UNIT_BYTES = 1 << 20  # of samples in a unit, at least, where nobody says how many chains
PER_CHAIN = ("chains", "cond", "guidance", "x_init", "known", "labels")  # a unit's key holds its own chains' values


@dataclass(frozen=True, eq=False)
class Job:
    """What one job of a plan samples; the arguments are those of :func:`ulam.sample`.

    finish: maps final states ``[n, *shape]`` to what is stored ``[n, ...]``, as a latent decoder does; it gets at most
        ``slots`` chains a call. Its code and weights are part of the keys, as the network's are.
    labels: int64 ``[chains]``, stored beside the samples; by default the one tensor of ``cond`` that holds whole
        numbers ``[chains]``, if there is just one. labelled: False for none.
    """

    denoiser: Denoiser
    sampler: Sampler | Program
    shape: Sequence[int]
    chains: int | range | Sequence[int] | torch.Tensor
    seed: int = 0
    cond: Cond | None = None
    guidance: float | Sequence[float] | torch.Tensor | None = None
    uncond: Cond | None = None
    x_init: torch.Tensor | Shared | None = None
    known: torch.Tensor | Shared | None = None
    mask: torch.Tensor | Shared | None = None
    first_row: int = 0
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    guidance_rule: Rule | None = None
    guidance_schedule: GuidanceSchedule | None = None
    finish: engine_job.Finish | None = None
    labels: torch.Tensor | Sequence[int] | npt.NDArray[Any] | None = None
    labelled: bool = True
    blend: Blend | None = None

    __repr__ = short_repr

    @property
    def branches(self) -> int:
        """How many further conditionings it blends in."""
        return len(self.blend) if isinstance(self.blend, Sequence) else 0


@dataclass(frozen=True, eq=False)
class PlannedJob:
    """A job, checked: what the engine needs, the hash of each of its parts, and its units' keys."""

    job: Job
    checked: engine_job.Job
    labels: torch.Tensor | None
    parts: dict[str, str] = field(repr=False)
    keys: list[str] = field(repr=False)

    @cached_property
    def inputs(self) -> list[tuple[str, str, str]]:
        """Names, types and shapes of the conditioning, and what is shared of it: jobs of one engine have the same."""
        return [
            (branch, name, f"{value.dtype} {list(value.shape[1:])}")
            if isinstance(value, torch.Tensor)
            else (branch, name, fingerprint(value, name))
            for branch, values in (
                ("cond", self.checked.cond),
                ("uncond", self.checked.uncond),
                *((f"blend[{at}]", values) for at, (values, _) in enumerate(self.checked.branches)),
            )
            for name, value in sorted(values.items())
        ]

    def submit(self, begin: int, end: int) -> dict[str, Any]:
        """The arguments of :meth:`ulam.Engine.submit` for the chains of a unit."""
        job, checked, at = self.job, self.checked, slice(begin, end)
        known = {} if checked.known is None else {"known": checked.known.image, "mask": checked.known.mask}
        blend = [
            ({name: _of(value, at) for name, value in values.items()}, weights[at])
            for values, weights in checked.branches
        ]
        guided: dict[str, Any] = {"blend": blend} if blend else {}
        if checked.guidance is not None:
            guided |= {
                "guidance": checked.guidance[at],
                "uncond": {name: _of(value, at) for name, value in checked.uncond.items()},
                "guidance_interval": job.guidance_interval,
                "guidance_rescale": job.guidance_rescale,
                "guidance_rule": job.guidance_rule,  # the schedule is in the program
            }
        return {
            "sampler": checked.program,
            "chains": checked.chains[at],
            "seed": checked.seed,
            "cond": {name: _of(value, at) for name, value in checked.cond.items()} or None,
            "first_row": job.first_row,
            **{name: _of(value, at) for name, value in {"x_init": checked.x_init, **known}.items()},
            **guided,
        }


class Plan:
    """Jobs cut into units of consecutive chains, to be sampled by any number of workers (:func:`ulam.bulk.run`).

    A unit's key is the SHA-256 of all that its bytes depend on. Doing a unit twice gives the same bytes.

    Args:
        jobs: one, or several; each :class:`Job` has its own denoiser, sampler and conditioning.
        slots: chains in one batch (256, or as tuned), a multiple of 32, so that a chain's bits do not depend on its
            slot.
        unit: chains in a unit; by default as many slots as fill 1 MiB with samples, at least one filling.
        device: "cpu", or "cuda": each worker takes a GPU of its own. backend, dtype, options: of :class:`ulam.Engine`.
        format: of the units' files, safetensors or npz.

    Raises:
        TypeError, ValueError: an invalid argument, named in the message.
    """

    def __init__(
        self,
        jobs: Job | Sequence[Job],
        *,
        slots: int | None = None,
        unit: int | None = None,
        device: torch.device | str = "cpu",
        backend: str | None = None,
        dtype: torch.dtype = torch.float32,
        options: NetworkOptions | Tuned | None = None,
        format: str = "safetensors",
    ) -> None:
        given = [jobs] if isinstance(jobs, Job) else list(jobs) if isinstance(jobs, Sequence) else None
        if not given or not all(isinstance(job, Job) for job in given):
            raise TypeError(f"jobs: got {described(jobs)}, expected an ulam.bulk.Job, or several")
        for job in given:
            self.options = check_options(job.denoiser, dtype, options)
        self.slots = check_slots(default_slots(options) if slots is None else slots)
        self.device = choice(str(check_device(device)), "device", DEVICES)
        self.backend, self.dtype = backend, dtype
        dispatch.select(backend, self.device, dtype)
        if self.slots % SLOTS_STEP:
            raise ValueError(
                f"slots: got {self.slots}, expected a multiple of {SLOTS_STEP}: at others, a chain's bits depend on "
                "its slot"
            )
        if self.options.doubled:
            raise ValueError(
                "options: got doubled=True, under which a chain's bits depend on its batch, expected False"
            )
        choice(format, "format", FORMATS)
        if format == "npz" and dtype == torch.bfloat16:
            raise ValueError("format: got npz for bfloat16, which NumPy lacks, expected safetensors")
        self.format = format
        shapes = [check_shape(job.shape) for job in given]
        self.unit = self._default_unit(shapes) if unit is None else whole(unit, "unit", 1, MAX_CHAINS)
        self.recipe: dict[str, Any] | None = None  # how a new process makes this plan again, if not by pickle
        self.rebuilt_by: Callable[[dict[str, Any]], Plan] | None = None
        networks: dict[int, str] = {}
        self.jobs = [self._planned(job, shape, networks) for job, shape in zip(given, shapes, strict=True)]

    def _default_unit(self, shapes: list[tuple[int, ...]]) -> int:
        chain = max(torch.Size(shape).numel() for shape in shapes) * self.dtype.itemsize
        return max(1, UNIT_BYTES // (chain * self.slots)) * self.slots

    def tuned(self, accuracy: str | float) -> Tuned:
        """The fastest way to run the first job's network that is accurate enough, see :func:`ulam.tune`."""
        job = self.jobs[0].job
        device = resolve_device(self.device)
        for net in job.denoiser.nets:
            if isinstance(net, torch.nn.Module):
                net.to(device)
        checked = self.jobs[0].checked
        weight = None if checked.guidance is None else float(checked.guidance[0])
        return tune(
            job.denoiser, job.shape, sampler=job.sampler, slots=self.slots, accuracy=accuracy,
            cond=checked.cond or None, guidance=weight, uncond=checked.uncond or None, device=device,
            backend=self.backend, dtype=self.dtype, options=self.options, doubled=False,
        )  # fmt: skip

    def __reduce__(self) -> Any:
        if self.rebuilt_by is not None:  # workers load the weights themselves
            return self.rebuilt_by, (self.recipe,)
        return super().__reduce__()

    def units(self) -> Iterator[PlannedUnit]:
        """All units in the order of jobs and chains."""
        return units_of([(len(job.checked.chains), job.keys) for job in self.jobs], self.unit)

    def record(self, environment: dict[str, Any]) -> Record:
        """What it looks like on disk, once workers of this environment begin it."""
        jobs = [
            {
                "sampler": job.checked.program.sampler,
                "seed": job.checked.seed,
                "chains": len(job.checked.chains),
                "shape": list(job.job.shape),
                "parts": job.parts,
                "keys": job.keys,
            }
            for job in self.jobs
        ]
        return Record(jobs, self.unit, self.format, self.recipe, environment)

    def __len__(self) -> int:
        """The number of units."""
        return sum(len(job.keys) for job in self.jobs)

    @property
    def chains(self) -> int:
        """The number of samples."""
        return sum(len(job.checked.chains) for job in self.jobs)

    def __repr__(self) -> str:
        return f"Plan({len(self.jobs)} jobs, {self.chains} chains, {len(self)} units of {self.unit})"

    def _planned(self, job: Job, shape: tuple[int, ...], networks: dict[int, str]) -> PlannedJob:
        checked = job_of(
            job.denoiser, shape, job.sampler, job.chains, job.seed, job.cond, job.guidance, job.uncond, job.x_init,
            None, job.known, job.mask, job.first_row, job.guidance_interval, job.guidance_rescale, finish=job.finish,
            guidance_rule=job.guidance_rule, guidance_schedule=job.guidance_schedule,
            blend=job.blend, branches=job.branches,
        )  # fmt: skip
        labels = _labels(job, checked)
        if id(job.denoiser) not in networks:  # jobs that share a network share its hash
            networks[id(job.denoiser)] = fingerprint(job.denoiser, "denoiser")
        known = None if checked.known is None else (checked.known.image, checked.known.mask)
        of_parts = {
            "sampler": checked.program,
            "seed": (checked.seed, job.first_row),
            "chains": checked.chains,
            "cond": (checked.cond, checked.branches) if checked.branches else checked.cond,
            "guidance": (
                checked.guidance,
                checked.uncond,
                job.guidance_interval,
                job.guidance_rescale,
                checked.rule,
            ),
            "x_init": checked.x_init,
            "known": known,
            "labels": labels,
            "finish": job.finish,
            "shape": shape,
            "dtype": self.dtype,
            "slots": self.slots,
            "options": self.options,
        }
        parts = {"weights": networks[id(job.denoiser)]}
        parts |= {name: fingerprint(value, name) for name, value in of_parts.items()}
        return PlannedJob(job, checked, labels, parts, list(self._keys(checked, labels, parts)))

    def check_unchanged(self) -> None:
        """Raise ValueError where a network was trained on, or a tensor written to, since the plan was made."""
        networks: dict[int, str] = {}
        for number, job in enumerate(self.jobs, 1):
            now = self._planned(job.job, tuple(job.job.shape), networks)
            for name in PARTS:
                if now.parts[name] != job.parts[name]:
                    got = f"{name}: got others in job {number} than when the plan was made"
                    raise ValueError(f"{got}, expected the same or a new plan")

    def _keys(self, job: engine_job.Job, labels: torch.Tensor | None, parts: dict[str, str]) -> Iterator[str]:
        """The key of each unit: its own chains' values, and the parts that all chains of the job share."""
        per_chain = {"chains": job.chains, "labels": labels, "guidance": job.guidance, "x_init": job.x_init}
        per_chain |= {f"cond.{name}": value for name, value in job.cond.items()}
        per_chain |= {f"uncond.{name}": value for name, value in job.uncond.items()}
        if job.known is not None:
            per_chain |= {"known": job.known.image, "mask": job.known.mask}
        for at, (values, weights) in enumerate(job.branches):
            per_chain |= {f"blend[{at}].{name}": value for name, value in values.items()}
            per_chain[f"blend[{at}]"] = weights
        shared = {name: value for name, value in per_chain.items() if not isinstance(value, torch.Tensor)}
        own = {name: value for name, value in per_chain.items() if isinstance(value, torch.Tensor)}
        kept = {name: part for name, part in parts.items() if name not in PER_CHAIN}
        others = (
            job.interval,
            job.rescale,
            job.rule,
            sorted((name, str(v.dtype), v.shape[1:]) for name, v in own.items()),
        )
        common = hashlib.sha256(fingerprint((kept, shared, others), "job").encode())
        flat = [_bytes(own[name]) for name in sorted(own)]
        for begin in range(0, len(job.chains), self.unit):
            key = common.copy()
            for values in flat:
                key.update(values[begin : begin + self.unit])
            yield key.hexdigest()


def _bytes(values: torch.Tensor) -> Any:
    """``[n, bytes]`` uint8, the values of each chain."""
    plain = values.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return plain.reshape(len(plain), plain[:1].numel()).view(torch.uint8).numpy()


def _of(value: Any, at: slice) -> Any:
    return value[at] if isinstance(value, torch.Tensor) else value


def _labels(job: Job, checked: engine_job.Job) -> torch.Tensor | None:
    count = len(checked.chains)
    if not switch(job.labelled, "labelled"):
        return None
    if job.labels is not None:
        labels = as_tensor("labels", job.labels)
        if not isinstance(labels, torch.Tensor) or labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
            raise ValueError(f"labels: got {described(labels)}, expected an int64 tensor [{count}]")
        check_data(labels, "labels")
        return labels.detach().to("cpu", copy=True)
    found = [
        value
        for value in checked.cond.values()
        if isinstance(value, torch.Tensor) and value.dtype in (torch.int64, torch.int32) and value.dim() == 1
    ]
    return found[0].to("cpu", torch.int64) if len(found) == 1 else None
