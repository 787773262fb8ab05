"""The fused reductions of a variational bound against their eager formulas on the CPU: `python -m bench.likelihood`.

Prints tables and writes bench/results/likelihood-DATE.json. The eager formulas are those of openai/guided-diffusion.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from bench.timing import Timing, interleaved, table, write

from ulam_kernels import _cpu
from ulam_kernels.likelihood import discretised_log_likelihood, gaussian_kl

SHAPE = (256, 3, 64, 64)
Call = Callable[[], object]


def eager_kl(
    mean_a: torch.Tensor, log_var_a: torch.Tensor, mean_b: torch.Tensor, log_var_b: torch.Tensor
) -> torch.Tensor:
    terms = -1.0 + log_var_b - log_var_a + (log_var_a - log_var_b).exp() + (mean_a - mean_b) ** 2 * (-log_var_b).exp()
    return 0.5 * terms.flatten(1).sum(1)


def tanh_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def exact_cdf(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def eager_likelihood(
    x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor, cdf: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    centred, inverse = x - mean, (-log_scale).exp()
    above, below = cdf(inverse * (centred + 1 / 255)), cdf(inverse * (centred - 1 / 255))
    last = (1 - below).clamp(min=1e-12).log()
    inside = (above - below).clamp(min=1e-12).log()
    terms = torch.where(x < -0.999, above.clamp(min=1e-12).log(), torch.where(x > 0.999, last, inside))
    return terms.flatten(1).sum(1)


def candidates(per_chain: bool) -> dict[str, dict[str, Call]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, SHAPE, generator=generator) / 127.5 - 1
    mean_a, mean_b = (x + 0.02 * torch.randn(SHAPE, generator=generator) for _ in range(2))
    sizes = SHAPE[:1] if per_chain else SHAPE
    log_var_a, log_var_b = (torch.randn(sizes, generator=generator) / 10 - 7 for _ in range(2))
    log_scale = log_var_b / 2
    wide = [values.view(-1, 1, 1, 1) if per_chain else values for values in (log_var_a, log_var_b, log_scale)]
    with_scale = (x, mean_b, log_scale)
    kind = "a chain" if per_chain else "an element"
    found = {
        f"gaussian_kl, a log-variance {kind}": {
            "ulam": lambda: gaussian_kl(mean_a, log_var_a, mean_b, log_var_b),
            "eager": lambda: eager_kl(mean_a, wide[0], mean_b, wide[1]),
        },
        f"discretised likelihood, exact, a scale {kind}": {
            "ulam": lambda: discretised_log_likelihood(*with_scale),
            "eager": lambda: eager_likelihood(x, mean_b, wide[2], exact_cdf),
        },
        f"discretised likelihood, tanh, a scale {kind}": {
            "ulam": lambda: discretised_log_likelihood(*with_scale, cdf="tanh"),
            "eager": lambda: eager_likelihood(x, mean_b, wide[2], tanh_cdf),
        },
    }
    return {title: {**rows, **_other_sets(rows["ulam"])} for title, rows in found.items()}


def _other_sets(call: Call) -> dict[str, Call]:
    """The same with the instruction sets that this machine would not choose."""
    fastest, *others = _cpu.instruction_sets()

    def with_set(name: str) -> None:
        _cpu.use_instruction_set(name)
        try:
            call()
        finally:
            _cpu.use_instruction_set(fastest)

    return {f"ulam, {name}": lambda name=name: with_set(name) for name in others}  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    figures: dict[str, dict[str, Timing]] = {}
    for per_chain in (False, True):
        for title, rows in candidates(per_chain).items():
            title = f"{title}, {'x'.join(map(str, SHAPE))}"
            figures[title] = interleaved(rows)
            print(table(title, figures[title], ours="ulam"), flush=True)
    print(f"wrote {write('likelihood', figures)}")


if __name__ == "__main__":
    main()
