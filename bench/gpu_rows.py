"""The fused operations that are timed on a GPU: their tensors, the bytes they must move, and who else does the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from bench.gpu_stage import Function, Stage
from bench.naive import NaiveDDPM

import ulam
import ulam_kernels
from ulam.throughput.plain_rows import eager_row
from ulam_kernels import table as layout

FP32, BF16 = torch.float32, torch.bfloat16
SAME, MIXED = ((FP32, FP32), (BF16, BF16)), ((FP32, FP32), (BF16, BF16), (FP32, BF16))  # of the state, of the output
LARGE, SMALL = (4096, 3, 64, 64), (64, 3, 32, 32)
SHORT, FEW, MIDDLE = (1_000_000, 1, 1, 2), (8, 3, 256, 256), (256, 3, 64, 64)
T = 1  # the plain row that is repeated: it has noise, and on its own result it stays finite
SCHEDULE = ulam.schedules.vp_linear(1000)
S = ulam.samplers


@dataclass(frozen=True)
class Operation:
    """One of the operations: a row of a sampler's program, or one that has no row."""

    title: str
    sampler: Any = None
    row: int = 495
    guided: bool = False
    scaled: str = ""  # "step" of a row with a reduction, "reduce" for the reduction itself
    net_in: bool = False
    channels_last: bool = False
    corrector: bool = False  # its program has such rows, and one of them is meant


STEPS = 500
OPERATIONS = {
    "ddpm": Operation("DDPM row with noise", S.DDPM(), 999 - T),
    "guided": Operation("DDPM row with guidance", S.DDPM(), 999 - T, guided=True),
    "clip": Operation("DDPM row with clip", S.DDPM(clip=(-1.0, 1.0)), 999 - T),
    "ddim": Operation("DDIM row, without noise", S.DDIM(STEPS)),
    "net_in": Operation("DDPM row that writes the network's input", S.DDPM(), 999 - T, net_in=True),
    "channels_last": Operation("DDPM row, output channels-last", S.DDPM(), 999 - T, channels_last=True),
    "learned": Operation("DDPM row with a learned variance", S.DDPM(variance="learned_range"), 999 - T),
    "2m": Operation("DPM-Solver++ 2M row, 2 registers", S.DPMSolverPP(STEPS)),
    "unipc": Operation("UniPC-3 row, 4 registers", S.UniPC(STEPS, order=3)),
    "threshold": Operation("DDPM row with a threshold", S.DDPM(STEPS, clip=S.DynamicThreshold()), scaled="step"),
    "quantiles": Operation("quantile of every chain", S.DDPM(STEPS, clip=S.DynamicThreshold()), scaled="reduce"),
    "norms": Operation(
        "norms of every chain", S.PredictorCorrector(250, norms="chain"), scaled="reduce", corrector=True
    ),
    "corrector": Operation(
        "corrector row with norms", S.PredictorCorrector(250, norms="chain"), scaled="step", corrector=True
    ),
    "fill": Operation("noise fill"),
    "affine": Operation("affine conversion"),
}


@cache
def program(name: str) -> tuple[Any, int]:
    """The program of an operation, and the row that is executed."""
    operation = OPERATIONS[name]
    compiled = operation.sampler.program(SCHEDULE)
    if not operation.corrector:
        return compiled, operation.row
    rows = [int(row) for row in compiled.normalise.nonzero()[0]]
    return compiled, rows[len(rows) // 2]


def moved_bytes(name: str, size: tuple[int, ...], state: torch.dtype, model: torch.dtype) -> int:
    """Bytes that must be read and written: tensors once, and each chain's int64 names and float32 numbers."""
    elements, s, m = size[0] * size[1] * size[2] * size[3], state.itemsize, model.itemsize
    if name in ("fill", "affine"):
        element, chain = {"fill": (s, 3 * 8), "affine": (2 * s + m, 2 * 4)}[name]
        return elements * element + size[0] * chain
    operation, (compiled, row) = OPERATIONS[name], program(name)
    flags = int(compiled.table().flags[row])
    writes = compiled.writes[row]
    reads = (compiled.A[row][writes][:, : compiled.registers] != 0).any(axis=0)
    reads[0] |= bool(flags & layout.USES_D) and compiled.kx[row] != 0
    outputs = bool(flags & layout.READS_M) * (1 + bool(flags & layout.LEARNED) + operation.guided)
    noise = bool(flags & layout.READS_Z)
    chain = 8 * (1 + 3 * noise) + 4 * operation.guided + 16 * bool(operation.scaled)
    if operation.scaled == "reduce":
        return elements * (s * bool(compiled.kx[row] != 0) + m * outputs) + size[0] * chain
    element = s * (int(reads.sum()) + int(writes.sum())) + m * outputs + BF16.itemsize * operation.net_in
    return elements * element + size[0] * chain


@dataclass(frozen=True)
class Case:
    """An operation on chains of one size, ``[B, C, H, W]``."""

    operation: str
    size: tuple[int, ...]
    state: torch.dtype = FP32
    model: torch.dtype = FP32

    @property
    def bytes(self) -> int:
        return moved_bytes(self.operation, self.size, self.state, self.model)

    @property
    def elements(self) -> int:
        return self.size[0] * self.size[1] * self.size[2] * self.size[3]

    @property
    def dtypes(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in (self.state, self.model)]
        return names[0] if self.operation == "fill" or self.state == self.model else f"{names[0]}, {names[1]} output"

    @property
    def kernel(self) -> str | None:
        """Its name among the counted instructions (`bench.sass`), if it is one of those."""
        names = [str(dtype).removeprefix("torch.") for dtype in (self.state, self.model)]
        if self.size[1] * self.size[2] * self.size[3] % 1024:
            return None
        return {"ddpm": f"step {names[0]} {names[1]}", "fill": f"fill {names[0]}"}.get(self.operation)

    def __str__(self) -> str:
        return f"{OPERATIONS[self.operation].title}, {'x'.join(map(str, self.size))}, {self.dtypes}"


def cases() -> list[Case]:
    """What is timed, the most important first."""

    def over(names: Iterable[str], sizes: Iterable[tuple[int, ...]], dtypes: Iterable[Any]) -> list[Case]:
        return [Case(name, size, *pair) for name in names for size in sizes for pair in dtypes]

    return [
        *over(["ddpm"], [LARGE, SMALL], MIXED),
        *over(["ddpm"], [SHORT, FEW, MIDDLE], SAME),
        *over(["fill"], [LARGE, SHORT], SAME),
        *over(["ddim", "2m", "unipc", "net_in", "learned", "channels_last", "guided", "clip", "affine"], [LARGE], SAME),
        *over(["threshold", "quantiles", "norms", "corrector"], [MIDDLE, FEW], SAME),
        *over(["ddim", "quantiles"], [SHORT, SMALL], [SAME[0]]),
    ]


class Data:
    """The tensors of a case: everything that a candidate is given."""

    def __init__(self, case: Case, device: str) -> None:
        self.case, self.operation, chains = case, OPERATIONS[case.operation], case.size[0]
        self.program, at = (None, 0) if self.operation.sampler is None else program(case.operation)
        self.at = at
        generator = torch.Generator(device).manual_seed(0)
        normal = partial(torch.randn, generator=generator, device=device)
        learned = self.program is not None and bool(self.program.learned[at])
        doubled = (chains, case.size[1] * (1 + learned), *case.size[2:])
        registers = 1 if self.program is None else self.program.registers
        self.x = normal(case.size, dtype=case.state)
        self.history = [normal(case.size, dtype=case.state) for _ in range(registers - 1)]
        self.m = normal(doubled, dtype=case.model)
        if self.operation.channels_last:
            self.m = self.m.contiguous(memory_format=torch.channels_last)
        self.uncond = normal(doubled, dtype=case.model) if self.operation.guided else None
        self.weight = torch.full((chains,), 2.0, device=device)
        self.t = torch.full((chains,), T, device=device)
        self.chain = torch.arange(chains, device=device)
        self.zero = torch.zeros_like(self.chain)
        self.row = torch.full_like(self.chain, at)
        self.a, self.b = torch.full_like(self.weight, 1.01), torch.full_like(self.weight, -0.1)
        self.scales = torch.tensor([-1.0, 1.0, 0.9, 0.9], device=device).repeat(chains, 1)

    @property
    def names(self) -> dict[str, torch.Tensor]:
        return {"seed": self.zero, "chain": self.chain, "draw": self.row}

    def column(self, values: torch.Tensor) -> torch.Tensor:
        """One number a chain, as eager code broadcasts it over a state."""
        return values.view(-1, 1, 1, 1).to(self.case.state)


def ours(data: Data, backend: str) -> Function:
    """The fused operation, in place where it works in place."""
    case, operation = data.case, data.operation
    if case.operation == "affine":
        out = torch.empty_like(data.x)
        return lambda: ulam_kernels.affine(data.x, data.m, data.a, data.b, out, backend=backend)
    if data.program is None:
        filled = torch.empty_like(data.x)
        return lambda: ulam_kernels.fill_normal(filled, backend=backend, **data.names)
    state = torch.stack([data.x, *data.history])
    given: dict[str, Any] = {"model": data.m, **data.names, "backend": backend}
    table = data.program.table(device=data.x.device)
    if operation.scaled == "reduce":
        return lambda: ulam_kernels.reduce(state, table, data.row, out=data.scales, **given)
    if data.uncond is not None:
        given |= {"uncond": data.uncond, "guidance": data.weight}
    if operation.scaled:
        given["scales"] = data.scales
    if operation.net_in:
        given["net_in"] = torch.empty_like(data.x, dtype=BF16)
    return lambda: ulam_kernels.step(state, table, data.row, **given)


def reduction(data: Data) -> tuple[Callable[..., object], tuple[torch.Tensor, ...]]:
    """The chains' numbers as people reduce them."""
    kx, km, level = (float(getattr(data.program, name)[data.at]) for name in ("kx", "km", "lo"))
    if data.case.operation == "quantiles":
        return lambda x, m: torch.quantile((kx * x + km * m).abs().flatten(1).float(), level, dim=1), (data.x, data.m)

    def norms(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return torch.randn_like(x).flatten(1).norm(dim=1) / (kx * x + km * m).flatten(1).norm(dim=1)

    return norms, (data.x, data.m)


def naive(data: Data) -> tuple[Callable[..., object], tuple[Any, ...]]:
    """The function that people write, and its arguments."""
    name = data.case.operation
    if name == "fill":
        return lambda x: torch.randn_like(x), (data.x,)
    if name == "affine":
        return lambda x, m, a, b: a * x + b * m, (data.x, data.m, data.column(data.a), data.column(data.b))
    if data.operation.scaled == "reduce":
        return reduction(data)
    if name not in ("ddpm", "guided", "clip", "channels_last"):
        return eager_row(data.program, data.at), ([data.x, *data.history], data.m)
    model = NaiveDDPM(device=data.x.device, dtype=data.case.state)
    if data.uncond is None:
        return lambda x, m, t: model.step(x, m, t, clip=name == "clip"), (data.x, data.m, data.t)
    weight = data.weight.view(-1, 1, 1, 1).to(data.case.model)
    return lambda x, m, u, w, t: model.step(x, u + w * (m - u), t), (data.x, data.m, data.uncond, weight, data.t)


def eager(data: Data) -> Function:
    function, arguments = naive(data)
    return partial(function, *arguments)


def fewest_operations(data: Data) -> Function:
    model = NaiveDDPM(device=data.x.device, dtype=data.case.state)
    return lambda: model.algorithm_2(data.x, data.m, data.t)


def compiled(data: Data, stage: Stage) -> Function:
    torch.compiler.reset()  # else too many shapes of one function are given up on
    function, arguments = naive(data)
    return partial(stage.compiled(function), *arguments)


def diffusers_step(data: Data) -> Function:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(clip_sample=data.case.operation == "clip")
    scheduler.set_timesteps(1000)
    x, m, u = data.x, data.m, data.uncond
    if u is None:
        return lambda: scheduler.step(m, T, x).prev_sample
    return lambda: scheduler.step(u + 2.0 * (m - u), T, x).prev_sample


COMPILED = (Case("ddpm", LARGE), Case("ddpm", LARGE, BF16, BF16), Case("ddpm", SMALL), Case("guided", LARGE),
            Case("2m", LARGE), Case("affine", LARGE))  # fmt: skip
ON_TRITON = ("ddpm", "fill", "quantiles")  # each variant costs seconds of compiling


def builders(stage: Stage, case: Case, data: Data, absent: dict[str, str]) -> dict[str, Callable[[], Function]]:
    """What makes each candidate: making and first running it may fail, for one without the others."""
    found: dict[str, Callable[[], Function]] = {}
    for backend in ("cuda", "triton"):
        wanted = backend == "cuda" or "cuda" in absent or case.operation in ON_TRITON
        if backend not in absent and wanted:
            found[f"ulam {backend}"] = partial(ours, data, stage.backend(backend))
    found["naive eager"] = partial(eager, data)
    if case.operation == "ddpm":
        found["eager, fewest operations"] = partial(fewest_operations, data)
    if case in COMPILED:
        found["torch.compile of naive"] = partial(compiled, data, stage)
    if case.operation in ("ddpm", "guided", "clip") and "diffusers" not in absent:
        found["diffusers DDPMScheduler.step"] = partial(diffusers_step, data)
    return found
