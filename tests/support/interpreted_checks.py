"""What Triton's interpreter must make of each operation; called by ``triton_interpreter`` in a process of its own."""

from __future__ import annotations

import numpy as np
import torch

import guidance_cases
import layout_cases
import moments_cases
import program_cases
import triton_engine_cases
import triton_reduce_cases
import triton_tick_cases
import triton_walk_cases
from bit_comparison import same_bits
from mcmc_cases import Cases, agree, evaluated, replace_backends
from squares_cases import start
from tick_cases import OUTPUTS, looked_up, random_look_up, random_tick
from triton_cases import FLOATS, VARIANTS, copy_of, fill_case, normal
from triton_reduce_cases import BLENDS, FP32, REDUCTIONS, blending, by_row, reduction
from ulam_kernels import cpu, densities, mcmc, reference, triton
from ulam_kernels.triton.tick import TILE


def check_steps() -> None:
    """Steps, fills and affine."""
    rng = np.random.default_rng(7)
    for variant in VARIANTS:
        for chains, n in ((3, 1100), (5, 7), (40, 32)):
            case = variant.case(rng, chains, n)
            expected = copy_of(case)
            cpu.step(**expected)
            triton.step(**case)
            for name in ("state", "net_in"):
                assert same_bits(case[name], expected[name]), (variant, name)
    for dtype in FLOATS:
        for chains, n, offset in ((2, 1100, 5), (5, 7, 1022), (40, 32, 8)):
            case = fill_case(rng, chains, n, dtype, offset=offset, scale=0.7, tag=2)
            expected = copy_of(case)
            cpu.fill_normal(**expected)
            triton.fill_normal(**case)
            assert same_bits(case["out"], expected["out"]), dtype
            x, m = (normal(rng, (chains, n), dtype) for _ in range(2))
            a, b = (torch.from_numpy(rng.normal(size=chains)).float() for _ in range(2))
            outs = [torch.empty(chains, n, dtype=dtype) for _ in range(2)]
            cpu.affine(x, m, a, b, outs[0])
            triton.affine(x, m, a, b, outs[1])
            assert same_bits(*outs), dtype


def check_squares() -> None:
    """The squares of a step's noise."""
    rng = np.random.default_rng(8)
    for variant in VARIANTS:
        for chains, n in ((2, 1100), (5, 7), (40, 1), (9, 33), (2, 512)):
            case, squares = variant.case(rng, chains, n), start(chains)
            if case["noise"] is not None:
                case["noise"][1, 0, n // 2] = float("nan")
            expected = copy_of(case) | {"squares": squares.clone()}
            cpu.step(**expected)
            triton.step(**case, squares=squares)
            assert torch.equal(squares, expected["squares"]) and same_bits(case["state"], expected["state"]), variant


def check_reductions() -> None:
    """Reductions and blends."""
    rng, agrees = np.random.default_rng(3), triton_reduce_cases.agrees
    for case in (*REDUCTIONS[:4], (2, 5000, FP32, FP32, False, False), (1, 17_000, FP32, FP32, False, False)):
        assert agrees(triton.reduce, cpu.reduce, reduction(rng, *case), "out"), case
    for case in BLENDS:
        assert agrees(triton.blend, cpu.blend, blending(rng, *case), "x", "net_in"), case


def check_guidance() -> None:
    """Sums over chains, and the rules of guidance that are made of them."""
    for shape in ((1,), (2, 3), (1025,), (3001,)):
        x, y = moments_cases.arguments((3, *shape))
        assert torch.equal(moments_cases.result(triton, x, y), moments_cases.result(reference, x, y)), shape
    for shape in ((2,), (3, 4, 5)):
        found = []
        for module in (triton, reference):
            with guidance_cases.backend_of(module):
                found.append(guidance_cases.check(shape))
        assert torch.equal(*found), shape


def check_ticks() -> None:
    """Ticks, look-ups and blends by row."""
    rng, agrees = np.random.default_rng(11), triton_tick_cases.agrees
    for dtype in OUTPUTS:
        for chains, n in ((5, 2), (40, 100), (3, 2 * TILE + 3)):
            for guided in (False, True):
                assert agrees(random_tick(rng, chains, (n,), dtype, guided, bad=0.4)), (dtype, chains, n)
    assert agrees(random_tick(rng, 30, (1,), torch.float32, False) | {"model": None})
    for dtype in (torch.float32, torch.int64):
        given = random_look_up(rng, 300, 40, dtype, limited=True)
        expected, weights = looked_up(given)
        triton.look_up(*(given[name] for name in triton_tick_cases.LOOK_UP), given["weight"])
        assert torch.equal(given["out"].nan_to_num(8), expected.nan_to_num(8))
        assert weights is not None and torch.equal(given["weight"], weights)
    for case in BLENDS[1:4]:
        given = by_row(rng, case)
        expected = copy_of(given)
        cpu.blend(**expected)
        triton.blend(**given)
        assert same_bits(given["x"], expected["x"]) and same_bits(given["net_in"], expected["net_in"])


def check_layouts() -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        for shape, registers, types in layout_cases.cases(seed):
            start, table, row, given = layout_cases.random_case(rng, shape, 5, types, registers)
            for layout in layout_cases.LAYOUTS:
                state, expected, operands = start.clone(), start.clone(), layout_cases.laid_out(given, *layout)
                net = operands["net_in"].clone()
                reference.step(**layout_cases.arguments(expected, table, row, {**operands, "net_in": net}))
                triton.step(**layout_cases.arguments(state, table, row, operands))
                assert same_bits(state, expected), (shape, layout)
                assert same_bits(operands["net_in"], net), (shape, layout)


def check_programs() -> None:
    for name, program in program_cases.programs().items():
        expected, got = program_cases.execute(cpu, program), program_cases.execute(triton, program)
        assert torch.equal(expected.nan_to_num(9.0), got.nan_to_num(9.0)), name


def check_mcmc() -> None:
    from ulam_kernels.cpu import mcmc as on_cpu
    from ulam_kernels.triton import mcmc as in_triton

    replace_backends(lambda name: {"cpu": on_cpu, "triton": in_triton}[str(name)])
    cases = Cases(20)
    for number, density in enumerate(cases.densities()):
        assert agree(evaluated(density, cases.normal(5, density.dimension)), "cpu", "triton"), density
        sampler = mcmc.EVERYWHERE[number % 4]
        assert agree(cases.run(density, sampler, 5, scaled=number % 2 == 0), "cpu", "triton"), (density, sampler)
    assert agree(cases.run(densities.funnel(3), "mala", 130, scaled=True), "cpu", "triton")
    for chains, n in ((3, 5), (2, 600), (2, 1025)):
        for name, step in cases.steps(chains, n):
            assert agree(step, "cpu", "triton"), (name, chains, n)


def check_walks() -> None:
    triton_walk_cases.check_rules()
    triton_walk_cases.check_tensor_cores()
    triton_walk_cases.check_company()
    triton_walk_cases.check_stops()
    triton_walk_cases.check_reductions()
    triton_walk_cases.check_bound()
    triton_walk_cases.check_calls()


def check_engines() -> None:
    triton_engine_cases.check_engines()
