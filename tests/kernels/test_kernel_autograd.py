"""Autograd and the operations: the derivative of affine, refusals where there is none, and what counts as changed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import ulam
import ulam_kernels
from ulam_kernels import Table, mcmc
from ulam_kernels.densities import double_well
from ulam_kernels.likelihood import discretised_log_likelihood, gaussian_kl
from ulam_kernels.networks import Linear, Network, Operand

B, N = 3, 4
ROW = torch.zeros(B, dtype=torch.int64)
IDS = {"seed": ROW, "chain": torch.arange(B), "draw": ROW}
LOST = "got a tensor that asks for a derivative, but"


def table(registers: int = 1) -> Table:
    A = np.zeros((1, registers, registers + 3))
    A[0, 0, 0] = A[0, 0, registers + 1] = 0.5
    zero = np.zeros(1)
    writes, learned = np.ones((1, registers), dtype=bool), np.zeros(1, dtype=bool)
    return Table.pack(zero, zero, zero - np.inf, zero + np.inf, zero, zero, zero + 1, A, writes, learned)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -------------------------------------------------------------------------------------------------- affine


def operands(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    tensors = drawn(B, N, 2, dtype=dtype), drawn(B, N, 2, dtype=dtype, seed=1), drawn(B, seed=2), drawn(B, seed=3)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return [tensor.to(wide if tensor.dim() == 1 else dtype).requires_grad_() for tensor in tensors]


def test_affine_has_derivatives_of_both_orders() -> None:
    assert gradcheck(ulam_kernels.affine, operands()) and gradgradcheck(ulam_kernels.affine, operands())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_gradient_of_affine_is_that_of_its_formula(dtype) -> None:
    given, plain = operands(dtype), operands(dtype)
    out = ulam_kernels.affine(*given)
    assert torch.equal(out, ulam_kernels.affine(*(tensor.detach() for tensor in given))) and out.dtype == dtype
    x, m, a, b = plain
    weights = drawn(B, N, 2, seed=5)
    (out.float() * weights).sum().backward()
    ((a.view(-1, 1, 1) * x.float() + b.view(-1, 1, 1) * m.float()) * weights).sum().backward()
    for ours, theirs in zip(given, plain, strict=True):
        assert ours.grad is not None and ours.grad.dtype == ours.dtype
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-2)


def test_affine_keeps_its_gradient_under_compile() -> None:
    x, m, a, b = (tensor.detach() for tensor in operands(torch.float32))
    eager, compiled = (x.clone().requires_grad_() for _ in range(2))
    ulam_kernels.affine(eager, m, a, b).square().sum().backward()
    torch.compile(ulam_kernels.affine, backend="aot_eager")(compiled, m, a, b).square().sum().backward()
    assert torch.equal(eager.grad, compiled.grad)


def test_affine_without_a_derivative_is_refused() -> None:
    x, m, a, b = operands(torch.float32)
    with pytest.raises(RuntimeError, match=f"^x: {LOST} affine with out"):
        ulam_kernels.affine(x, m, a, b, torch.empty_like(x))
    plain = [tensor.detach() for tensor in (x, m, a, b)]
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=f"^x: {LOST} affine .* forward mode"):
        ulam_kernels.affine(forward_ad.make_dual(plain[0], plain[1]), *plain[1:])
    with torch.no_grad():
        assert not ulam_kernels.affine(x, m, a, b).requires_grad


def test_conversions_have_derivatives_in_both_modes() -> None:
    schedule, x, m = ulam.schedules.vp_linear(), drawn(B, N), drawn(B, N, seed=1)

    def convert(x: torch.Tensor) -> torch.Tensor:
        return ulam.ops.predict_x0(x, m, 500, schedule)

    alpha = float(schedule.alpha(500.0))
    tangent = torch.func.jvp(convert, (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(tangent, torch.full_like(x, 1 / alpha))
    torch.testing.assert_close(torch.func.grad(lambda x: convert(x).sum())(x), torch.full_like(x, 1 / alpha))
    with pytest.raises(RuntimeError, match=r"^t: got a tensor that requires grad"):
        ulam.ops.predict_x0(x, m, torch.full((B,), 500.0, requires_grad=True), schedule)


# ------------------------------------------------------------------------------------- what has no derivative


IDENTITY = Network(N, (N, N), (Linear(1, (0,), (torch.eye(N),)),))


def walk_call() -> tuple[dict[str, torch.Tensor], object, list[str]]:
    network = Network(N, (N, N), (Linear(1, (0,), (torch.eye(N),), (Operand("row", 0),)),), row_width=N)
    cursor = torch.tensor([1, 0, 0, 0, 0, 0])[:, None].repeat(1, B)
    rows = Table.cat([table(), table()])
    given = {"states": drawn(1, B, N, seed=3), "net_in": drawn(B, N, seed=4), "row_vectors": drawn(2, N, seed=5)}
    return given, partial(ulam_kernels.walk, table=rows, cursor=cursor, network=network, steps=1), ["states", "net_in"]


def calls() -> dict[str, tuple[dict[str, torch.Tensor], object, list[str]]]:
    """By operation: its float tensors, how it is called with them, and which of them it writes."""
    state, model, chain = drawn(1, B, N), drawn(B, N, seed=1), torch.ones(B)
    x, score = drawn(B, N), drawn(B, N, seed=2)
    energy = torch.zeros(B, dtype=torch.float64)
    step = {"state": state, "model": model, "net_in": model.clone()}
    guided = {"uncond": model.clone(), "guidance": chain.clone(), "noise": model.clone(), "source": model.clone()}
    return {
        "step": (
            step | guided,
            lambda state, **given: ulam_kernels.step(state, table(), ROW, **given),
            ["state", "net_in"],
        ),
        "reduce": (
            {"state": state, "model": model, "out": torch.zeros(B, 4)},
            lambda state, **given: ulam_kernels.reduce(state, table(), ROW, **given),
            ["out"],
        ),
        "blend": (
            {"state": state, "known": model, "mask": chain.new_ones(B, N), "a": chain, "b": chain.clone()}
            | {"net_in": model.clone(), "c_next": chain.clone()},
            lambda **given: ulam_kernels.blend(**given, **IDS),
            ["state", "net_in"],
        ),
        "fill_normal": ({"out": x}, lambda out: ulam_kernels.fill_normal(out, **IDS), ["out"]),
        "affine": (
            {"x": x, "m": score, "a": chain, "b": chain.clone(), "out": x.clone()},
            ulam_kernels.affine,
            ["out"],
        ),
        "look_up": (
            {"times": torch.ones(2), "out": torch.zeros(B), "guidance": chain, "weight": torch.zeros(B)}
            | {"interval": torch.ones(2, B)},
            lambda times, out, **given: ulam_kernels.look_up(times, ROW, out, **given),
            ["out", "weight"],
        ),
        "langevin": (
            {"x": x, "score": score, "step": chain, "noise_scale": chain.clone(), "out": x.clone()},
            lambda **given: mcmc.langevin(**given, **IDS),
            ["out"],
        ),
        "mala_accept": (
            {"x": x, "proposal": x + 1e-6, "score": score, "proposal_score": score.clone()}
            | {"energy": energy, "proposal_energy": energy.clone(), "step": chain},
            lambda **given: mcmc.mala_accept(**given, **IDS),
            ["x", "score", "energy"],
        ),
        "kick_drift": (
            {"x": x, "v": x.clone(), "score": score, "kick": chain, "drift": chain.clone()},
            mcmc.kick_drift,
            ["x", "v"],
        ),
        "squared_norm": ({"x": x}, mcmc.squared_norm, []),
        "accept": (
            {"kept": x, "proposed": x.clone()},
            lambda kept, proposed: mcmc.accept(energy, [(kept, proposed)], **IDS),
            ["kept"],
        ),
        "evaluate": ({"x": x}, lambda x: mcmc.evaluate(double_well(N), x), []),
        "run": (
            {"x": x, "coef": torch.full((B, 4), 0.01)},
            lambda x, coef: mcmc.run(double_well(N), x, "ula", coef, 2, **IDS),
            ["x"],
        ),
        "walk": walk_call(),
        "evaluate_network": ({"x": x}, partial(ulam_kernels.evaluate_network, IDENTITY), []),
        "moments": ({"x": x, "y": x.clone()}, ulam_kernels.moments, []),
        "gaussian_kl": (
            {"mean_a": x, "log_var_a": chain, "mean_b": x.clone(), "log_var_b": chain.clone()},
            gaussian_kl,
            [],
        ),
        "discretised_log_likelihood": (
            {"x": x, "mean": x.clone(), "log_scale": chain},
            discretised_log_likelihood,
            [],
        ),
    }


OPERATIONS = calls()


@pytest.mark.parametrize("name", OPERATIONS)
def test_inputs_that_require_grad_are_refused(name) -> None:
    for wanted in OPERATIONS[name][0]:
        if wanted in ("net_in", "c_next", "interval"):
            continue  # written, or of the network's next input
        given, call, _ = calls()[name]
        given[wanted].requires_grad_()
        before = {key: tensor.detach().clone() for key, tensor in given.items()}
        with pytest.raises(RuntimeError, match=f"^{wanted}: {LOST} .*{name}.*expected {wanted}.detach"):
            call(**given)
        assert all(torch.equal(before[key], tensor) for key, tensor in given.items())
        with torch.no_grad():
            call(**given)


@pytest.mark.parametrize("name", ["step", "fill_normal", "langevin", "gaussian_kl", "squared_norm"])
def test_tangents_are_refused(name) -> None:
    given, call, _ = calls()[name]
    first = next(iter(given))
    with forward_ad.dual_level(), torch.no_grad():
        given[first] = forward_ad.make_dual(given[first], torch.ones_like(given[first]))
        with pytest.raises(RuntimeError, match=f"^{first}: {LOST}"):
            call(**given)


@pytest.mark.parametrize("name", [name for name, (_, _, written) in OPERATIONS.items() if written])
def test_what_is_written_counts_as_changed(name) -> None:
    """A graph that saved it refuses to go back, as after torch's own operations in place."""
    given, call, written = calls()[name]
    leaf = torch.ones((), requires_grad=True)
    graphs = {key: (tensor * leaf).sum() for key, tensor in given.items()}  # the gradient of leaf needs the tensor
    versions = {key: tensor._version for key, tensor in given.items()}
    with torch.no_grad():
        call(**given)
    for key, graph in graphs.items():
        assert (given[key]._version > versions[key]) == (key in written)
        if key in written:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                graph.backward()
        else:
            graph.backward()


def test_counters_and_normals_count_as_changed() -> None:
    cursor, now = torch.zeros(6, B, dtype=torch.int64), torch.zeros(2, B, dtype=torch.int64)
    ulam_kernels.advance(cursor, now)
    out = torch.empty(64)
    ulam_kernels.torch_normal(out, torch.Generator().manual_seed(0))
    assert cursor._version and now._version and out._version


def test_tensors_of_inference_mode_are_written_without_versions() -> None:
    with torch.inference_mode():
        given, call, written = calls()["step"]
        expected = calls()["step"]
        call(**given)
    expected[1](**{key: tensor.clone() if key not in written else tensor for key, tensor in expected[0].items()})
    assert torch.equal(given["state"], expected[0]["state"])
