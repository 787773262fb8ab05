"""Native CPU operations of ulam_kernels, on raw pointers: see csrc/cpu/kernels.h."""

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
    threads: int,
    /,
) -> None: ...
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
