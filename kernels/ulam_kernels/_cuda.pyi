"""CUDA operations on raw device pointers and a stream of the current device; see bindings/cuda.cpp."""

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
    stream: int,
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
    stream: int,
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
    stream: int,
) -> None: ...
def device_count() -> int: ...
def unavailable_reason() -> str | None: ...
