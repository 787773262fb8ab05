"""Native CPU operations of ulam_kernels, on raw pointers: see csrc/cpu/kernels.h."""

from collections.abc import Callable, Sequence

import torch

def step(
    chains: int,
    elements: int,
    registers: int,
    state: int,
    state_type: int,
    coef: int,
    flags: int,
    rows: int,
    row: int,
    model: int,
    uncond: int,
    model_type: int,
    model_stride: int,
    guidance: int,
    seed: int,
    chain: int,
    draw: int,
    noise: int,
    net_in: int,
    net_type: int,
    scales: int,
    source: int,
    pixels: int,
    last: int,
    threads: int,
    /,
) -> None: ...
def bound_step(
    shape: Sequence[int], coef: int, flags: int, rows: int, /
) -> tuple[
    Callable[[torch.Tensor], bool],
    Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, int], None],
]: ...
def scalar(tensor: torch.Tensor, /) -> float | None: ...
def address(tensor: torch.Tensor, /) -> int | None: ...
def eager(*tensors: torch.Tensor | None) -> bool: ...
def separate(written: torch.Tensor, elementwise: int, /, *reads: torch.Tensor | None) -> bool: ...
def ready(state: torch.Tensor, net_in: torch.Tensor | None, /, *reads: torch.Tensor | None) -> bool: ...
def reduce(
    chains: int,
    elements: int,
    registers: int,
    state: int,
    state_type: int,
    coef: int,
    flags: int,
    rows: int,
    row: int,
    model: int,
    uncond: int,
    model_type: int,
    model_stride: int,
    guidance: int,
    seed: int,
    chain: int,
    draw: int,
    noise: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def blend(
    chains: int,
    elements: int,
    x: int,
    x_type: int,
    known: int,
    mask: int,
    a: int,
    b: int,
    seed: int,
    chain: int,
    draw: int,
    noise: int,
    net_in: int,
    net_type: int,
    c_next: int,
    row: int,
    rows: int,
    stage: int,
    threads: int,
    /,
) -> None: ...
def fill_normal(
    chains: int,
    elements: int,
    offset: int,
    out: int,
    type: int,
    seed: int,
    chain: int,
    draw: int,
    tag: int,
    scale: float,
    threads: int,
    /,
) -> None: ...
def affine(
    chains: int,
    elements: int,
    x: int,
    x_type: int,
    m: int,
    m_type: int,
    out: int,
    out_type: int,
    a: int,
    b: int,
    threads: int,
    /,
) -> None: ...
def look_up(
    chains: int,
    rows: int,
    times: int,
    whole: bool,
    row: int,
    out: int,
    guidance: int,
    interval: int,
    weight: int,
    threads: int,
    /,
) -> None: ...
def advance(
    chains: int,
    elements: int,
    cursor: int,
    now: int,
    model: int,
    uncond: int,
    type: int,
    model_stride: int,
    uncond_stride: int,
    guidance: int,
    threads: int,
    /,
) -> None: ...
def quick_look_up(
    times: torch.Tensor,
    row: torch.Tensor,
    out: torch.Tensor,
    guidance: torch.Tensor | None,
    interval: torch.Tensor | None,
    weight: torch.Tensor | None,
    backend: str | None,
    threads: int,
    /,
) -> bool:
    """Whether this was done: all tensors are plain and the CPU backend is wanted. Else nothing was."""

def quick_advance(
    cursor: torch.Tensor,
    now: torch.Tensor,
    model: torch.Tensor | None,
    uncond: torch.Tensor | None,
    guidance: torch.Tensor | None,
    backend: str | None,
    threads: int,
    /,
) -> bool:
    """As quick_look_up."""

def gaussian_kl(
    chains: int,
    elements: int,
    mean_a: int,
    log_var_a: int,
    mean_b: int,
    log_var_b: int,
    each_a: bool,
    each_b: bool,
    out: int,
    threads: int,
    /,
) -> None: ...
def discretised_log_likelihood(
    chains: int,
    elements: int,
    x: int,
    mean: int,
    log_scale: int,
    each: bool,
    half: float,
    edge: float,
    tanh: bool,
    out: int,
    threads: int,
    /,
) -> None: ...
def mcmc_langevin(
    chains: int,
    elements: int,
    x: int,
    score: int,
    step: int,
    noise_scale: int,
    scale: int,
    lo: float,
    hi: float,
    seed: int,
    chain: int,
    draw: int,
    noise: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def mcmc_kick_drift(
    chains: int,
    elements: int,
    x: int,
    v: int,
    score: int,
    kick: int,
    drift: int,
    keep: int,
    noise_scale: int,
    scale: int,
    seed: int,
    chain: int,
    draw: int,
    noise: int,
    threads: int,
    /,
) -> None: ...
def mcmc_mala_accept(
    chains: int,
    elements: int,
    x: int,
    proposal: int,
    score: int,
    proposal_score: int,
    energy: int,
    proposal_energy: int,
    step: int,
    inverse_temperature: int,
    scale: int,
    seed: int,
    chain: int,
    draw: int,
    accepted: int,
    log_ratio: int,
    threads: int,
    /,
) -> None: ...
def mcmc_squared_norm(
    chains: int,
    elements: int,
    x: int,
    out: int,
    threads: int,
    /,
) -> None: ...
def mcmc_accept(
    chains: int,
    log_ratio: int,
    pairs: tuple[int, ...],
    seed: int,
    chain: int,
    draw: int,
    accepted: int,
    threads: int,
    /,
) -> None: ...
def mcmc_evaluate(
    kind: int,
    dimension: int,
    components: int,
    params: int,
    chains: int,
    x: int,
    energy: int,
    score: int,
    threads: int,
    /,
) -> None: ...
def mcmc_run(
    kind: int,
    dimension: int,
    components: int,
    params: int,
    chains: int,
    x: int,
    sampler: int,
    coef: int,
    steps: int,
    seed: int,
    chain: int,
    draw: int,
    v: int,
    leapfrog: int,
    scale: int,
    lo: float,
    hi: float,
    thin: int,
    draws: int,
    energies: int,
    moments: int,
    accepted: int,
    diverged: int,
    threads: int,
    /,
) -> None: ...
def torch_normal(out: int, count: int, state: int, state_bytes: int, threads: int, /) -> bool:
    """Fill float32 out[0 .. count) as torch would and move the state on. False: untouched, see torch_normal.h."""

def instruction_sets() -> list[str]:
    """The instruction sets usable here, fastest first."""

def instruction_set() -> str:
    """The instruction set in use."""

def use_instruction_set(name: str, /) -> None:
    """Choose one of instruction_sets(), for tests and benchmarks."""

def noise_checksums(first: int, count: int, threads: int, /) -> tuple[int, int, int]:
    """Checksums of radius, cosine and sine over the words [first, first + count), as the noise standard defines."""
