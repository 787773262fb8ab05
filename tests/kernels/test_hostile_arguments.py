"""Every argument of every operation of the kernels, replaced by invalid values: right, or one line that names it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import ulam_kernels
from hostile_arguments import Given, failures
from kernel_arguments import blend_arguments, reduce_arguments, step_arguments, table_of
from tracing_cases import DENSITY, B, N, operations
from ulam_kernels import Table, densities, networks


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def ids() -> Given:
    return {"seed": torch.arange(B), "chain": torch.arange(B) + 3, "draw": 16 * torch.arange(B)}


def run_arguments() -> Given:
    return {
        "density": DENSITY, "x": normal(B, N), "sampler": "mala", "coef": normal(B, 4).abs() * 0.1, "steps": 4, **ids(),
        "v": None, "leapfrog": 1, "scale": normal(N).abs(), "lo": -float("inf"), "hi": float("inf"), "thin": 2,
        "draws": torch.zeros(B, 2, N), "energies": torch.zeros(B, 2).double(),
        "moments": torch.zeros(B, 2, N).double(), "accepted": torch.zeros(B, dtype=torch.int64),
        "diverged": torch.zeros(B, dtype=torch.int64), "backend": None,
    }  # fmt: skip


def mala_arguments() -> Given:
    return {
        "x": normal(B, N), "proposal": normal(B, N) + 1, "score": normal(B, N), "proposal_score": normal(B, N),
        "energy": normal(B).double(), "proposal_energy": normal(B).double() + 1, "step": normal(B).abs(),
        "inverse_temperature": torch.ones(B), "scale": torch.ones(N), **ids(), "backend": None,
    }  # fmt: skip


def langevin_arguments() -> Given:
    return {
        "x": normal(B, N), "score": normal(B, N) + 1, "step": torch.ones(B), "noise_scale": normal(B).abs(),
        "scale": torch.ones(N), "lo": -1.0, "hi": 1.0, **ids(), "noise": normal(B, N), "out": torch.zeros(B, N),
        "backend": None,
    }  # fmt: skip


def kick_arguments() -> Given:
    return {
        "x": normal(B, N), "v": normal(B, N) + 1, "score": normal(B, N), "kick": torch.ones(B), "drift": torch.ones(B),
        "keep": torch.ones(B), "noise_scale": torch.ones(B), "scale": torch.ones(N), **ids(), "noise": normal(B, N),
        "backend": None,
    }  # fmt: skip


def look_up_arguments() -> Given:
    return {
        "times": torch.arange(5.0), "row": torch.tensor([0, 1, 0]), "out": torch.zeros(B), "guidance": torch.ones(B),
        "interval": torch.zeros(2, B), "weight": torch.zeros(B), "backend": None,
    }  # fmt: skip


def pack_arguments() -> Given:
    one, zero = np.ones(2), np.zeros(2)
    return {
        "kx": one, "km": one, "lo": zero, "hi": one, "lv_m": zero, "lv_b": zero, "c_next": one,
        "A": np.ones((2, 1, 4)), "writes": np.ones((2, 1), dtype=bool), "learned": zero > 0, "threshold": zero > 0,
        "normalise": zero > 0, "dtype": torch.float32, "device": "cpu",
    }  # fmt: skip


def walk_arguments() -> Given:
    matrix, operand = torch.eye(N), networks.Operand("chain", 1)
    linear = networks.Linear(1, (0,), (matrix,), (networks.Operand("row", 0), operand))
    network = networks.Network(N, (N, N), (linear,), row_width=N, chain_width=N + 1)
    cursor = torch.zeros(6, B, dtype=torch.int64)
    cursor[0] = 1
    return {
        "states": normal(1, B, N), "table": Table.cat([table_of()] * 2), "cursor": cursor, "network": network,
        "steps": 2, "net_in": normal(B, N) + 1, "seed": torch.arange(B), "chain": torch.arange(B) + 3,
        "row_vectors": normal(2, N), "chain_vectors": normal(B, N + 1), "uncond_vectors": normal(B, N + 1) + 1,
        "guidance": torch.full((B,), 2.0), "known": normal(B, N) + 2, "mask": torch.tensor([True] + [False] * (N - 1)),
        "backend": None,
    }  # fmt: skip


def call_arguments() -> Given:
    linear = networks.Linear(1, (0,), (torch.eye(N),), (networks.Operand("row", 0), networks.Operand("chain", 1)))
    network = networks.Network(N, (N, N), (linear,), row_width=N, chain_width=N + 1)
    return {"network": network, "x": normal(B, N), "row_vector": normal(N), "chain_vectors": normal(B, N + 1),
            "backend": None}  # fmt: skip


VALID: dict[str, Callable[[], Given]] = {
    "step": lambda: step_arguments() | {"backend": None},
    "reduce": lambda: reduce_arguments() | {"backend": None},
    "blend": lambda: blend_arguments() | {"row": torch.zeros(4, dtype=torch.int64), "stage": 1, "backend": None},
    "fill_normal": lambda: {"out": torch.zeros(B, N), **ids(), "tag": 1, "scale": 1.0, "offset": 2, "backend": None},
    "affine": lambda: {"x": normal(B, N), "m": normal(B, N) + 1, "a": torch.ones(B), "b": torch.ones(B),
                       "out": torch.zeros(B, N), "backend": None},
    "moments": lambda: {"x": normal(B, N), "y": normal(B, N), "backend": None},
    "look_up": look_up_arguments,
    "advance": lambda: {"cursor": torch.ones(6, B, dtype=torch.int64), "now": torch.zeros(2, B, dtype=torch.int64),
                        "model": normal(B, N), "uncond": normal(B, N), "guidance": torch.ones(B), "backend": None},
    "torch_normal": lambda: {"out": torch.zeros(4, 5), "generator": torch.Generator().manual_seed(1)},
    "langevin": langevin_arguments,
    "mala_accept": mala_arguments,
    "kick_drift": kick_arguments,
    "squared_norm": lambda: {"x": normal(B, N), "backend": None},
    "accept": lambda: {"log_ratio": normal(B).double(), "pairs": [(normal(B, N), normal(B, N))], **ids(),
                       "backend": None},
    "evaluate": lambda: {"density": DENSITY, "x": normal(B, N), "energy": True, "backend": None},
    "run": run_arguments,
    "gaussian_kl": lambda: {"mean_a": normal(B, N), "log_var_a": torch.zeros(B, N), "mean_b": normal(B, N) + 1,
                            "log_var_b": torch.zeros(B), "backend": None},
    "discretised_log_likelihood": lambda: {"x": normal(B, N), "mean": normal(B, N), "log_scale": torch.zeros(B),
                                           "bins": 8, "cdf": "exact", "backend": None},
    "walk": walk_arguments,
    "evaluate_network": call_arguments,
    "Operand": lambda: {"kind": "row", "index": 3},
    "Linear": lambda: {"out": 1, "inputs": (0,), "weights": (torch.eye(3),), "start": ()},
    "Unary": lambda: {"out": 1, "function": "elu", "value": 0, "parameter": 0.5},
    "Binary": lambda: {"out": 1, "function": "add", "a": networks.Operand("row", 0), "b": networks.Operand("row", 1)},
    "LayerNorm": lambda: {"out": 1, "value": 0, "weight": None, "bias": networks.Operand("constant", 0), "eps": 1e-5},
    "LayerNormGradient": lambda: {"out": 1, "value": 0, "gradient": networks.Operand("constant", 0), "weight": None,
                                  "eps": 1e-5},
    "Network": lambda: {"inputs": 3, "widths": (3, 3), "instructions": (networks.Unary(1, "silu", 0),),
                        "constants": torch.ones(2), "row_width": 2, "chain_width": 1, "output": 1, "output_width": 3,
                        "precision": "float32", "energy": None},
    "Table": lambda: {"coef": torch.zeros(2, 11), "flags": torch.zeros(2, dtype=torch.int32), "registers": 1,
                      "uses": -1},
    "pack": pack_arguments,
    "gaussian": lambda: {"mean": normal(3), "precision": torch.ones(3)},
    "mixture": lambda: {"weights": torch.ones(2), "means": normal(2, 3), "stds": torch.ones(2)},
    "double_well": lambda: {"dimension": 3, "height": 1.0, "separation": 1.0},
    "rosenbrock": lambda: {"dimension": 4, "a": 5.0, "b": 0.05},
    "funnel": lambda: {"dimension": 3, "std": 3.0},
    "ring": lambda: {"dimension": 2, "radius": 3.0, "std": 0.3},
}  # fmt: skip


def public() -> dict[str, Callable[..., Any]]:
    made = {
        name: function
        for name, function in vars(densities).items()
        if inspect.isfunction(function) and function.__module__ == densities.__name__ and name[0] != "_"
    }
    kinds = (networks.Operand, networks.Linear, networks.Unary, networks.Binary, networks.LayerNorm,
             networks.LayerNormGradient, networks.Network)  # fmt: skip
    others = {"Table": Table, "pack": Table.pack, "walk": ulam_kernels.walk}
    others["evaluate_network"] = ulam_kernels.evaluate_network
    return operations() | made | others | {kind.__name__: kind for kind in kinds}


# Names in front of a message that are no argument's: of what is made of several.
EXTRA = (
    "device",
    "ULAM_BACKEND",
    "1 / std^2",
    "kept",
    "proposed",
    *operations(),
    "walk",
    "evaluate_network",
)


def test_no_operation_is_forgotten() -> None:
    assert set(VALID) == set(public())


@pytest.mark.parametrize(("name", "argument"), [(name, a) for name, make in VALID.items() for a in make()])
def test_a_hostile_argument_is_right_or_named(name: str, argument: str) -> None:
    found = failures(public()[name], VALID[name], argument, EXTRA)
    if name == "torch_normal":  # which draws as torch does, in another order where a tensor is not contiguous
        found = [what for what in found if not what.startswith(("out = every second", "out = transposed"))]
    assert not found, "\n".join(found)
