"""Samplers by the names that they have in ComfyUI, k-diffusion and A1111's web interface."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from ode_cases import assert_law_of_a_point_is_kept
from sampler_cases import CONTINUOUS
from ulam import samplers, schedules
from ulam.samplers import named, names
from ulam.samplers.sigmas import SIGMAS

SD = schedules.vp_scaled_linear()
# The lists as they are there, written down here once more.
KSAMPLER = [
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "euler_ancestral_cfg_pp",
    "heun",
    "heunpp2",
    "exp_heun_2_x0",
    "exp_heun_2_x0_sde",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpm_fast",
    "dpm_adaptive",
    "dpmpp_2s_ancestral",
    "dpmpp_2s_ancestral_cfg_pp",
    "dpmpp_sde",
    "dpmpp_sde_gpu",
    "dpmpp_2m",
    "dpmpp_2m_cfg_pp",
    "dpmpp_2m_sde",
    "dpmpp_2m_sde_gpu",
    "dpmpp_2m_sde_heun",
    "dpmpp_2m_sde_heun_gpu",
    "dpmpp_3m_sde",
    "dpmpp_3m_sde_gpu",
    "ddpm",
    "lcm",
    "ipndm",
    "ipndm_v",
    "deis",
    "cfgpp_ud10_ab",
    "res_multistep",
    "res_multistep_cfg_pp",
    "res_multistep_ancestral",
    "res_multistep_ancestral_cfg_pp",
    "gradient_estimation",
    "gradient_estimation_cfg_pp",
    "er_sde",
    "seeds_2",
    "seeds_3",
    "sa_solver",
    "sa_solver_pece",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
]
K_DIFFUSION = [
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_lms",
    "sample_dpm_fast",
    "sample_dpm_adaptive",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_sde",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_3m_sde",
]
A1111 = [
    "DPM++ 2M",
    "DPM++ SDE",
    "DPM++ 2M SDE",
    "DPM++ 2M SDE Heun",
    "DPM++ 2S a",
    "DPM++ 3M SDE",
    "Euler a",
    "Euler",
    "LMS",
    "Heun",
    "DPM2",
    "DPM2 a",
    "DPM fast",
    "DPM adaptive",
    "Restart",
    "DDIM",
    "DDIM CFG++",
    "PLMS",
    "UniPC",
    "LCM",
]
ALIASES = {  # A1111's own, from its releases with and without a schedule of its own
    "k_euler_a": "Euler a",
    "k_euler_ancestral": "Euler a",
    "k_euler": "Euler",
    "k_lms": "LMS",
    "k_lms_ka": "LMS Karras",
    "k_heun": "Heun",
    "k_dpm_2": "DPM2",
    "k_dpm_2_ka": "DPM2 Karras",
    "k_dpm_2_a": "DPM2 a",
    "k_dpm_2_a_ka": "DPM2 a Karras",
    "k_dpmpp_2s_a": "DPM++ 2S a",
    "k_dpmpp_2s_a_ka": "DPM++ 2S a Karras",
    "k_dpmpp_2m": "DPM++ 2M",
    "k_dpmpp_2m_ka": "DPM++ 2M Karras",
    "k_dpmpp_sde": "DPM++ SDE",
    "k_dpmpp_sde_ka": "DPM++ SDE Karras",
    "k_dpmpp_2m_sde": "DPM++ 2M SDE",
    "k_dpmpp_2m_sde_ka": "DPM++ 2M SDE Karras",
    "k_dpmpp_2m_sde_exp": "DPM++ 2M SDE Exponential",
    "k_dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "k_dpmpp_2m_sde_heun_ka": "DPM++ 2M SDE Heun Karras",
    "k_dpmpp_2m_sde_heun_exp": "DPM++ 2M SDE Heun Exponential",
    "k_dpmpp_3m_sde": "DPM++ 3M SDE",
    "k_dpmpp_3m_sde_ka": "DPM++ 3M SDE Karras",
    "k_dpmpp_3m_sde_exp": "DPM++ 3M SDE Exponential",
    "k_dpm_fast": "DPM fast",
    "k_lcm": "LCM",
    "restart": "Restart",
    "plms": "PLMS",
    "unipc": "UniPC",
    "ddim_cfgpp": "DDIM CFG++",
}
REFUSED = ("dpm_adaptive", "sample_dpm_adaptive", "DPM adaptive")


@pytest.mark.parametrize("name", [*KSAMPLER, *K_DIFFUSION, *A1111])
def test_every_name_is_a_sampler_or_refused_by_name(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(ValueError, match=rf"^name: got {re.escape(repr(name))}, expected dpm_fast, or dpmpp_2m"):
            named(name, 5)
        return
    sampler = named(name, steps=8)
    assert sampler.steps == 8 and type(sampler) in samplers.catalogue().values()
    assert eval(repr(sampler), vars(samplers)) == sampler  # what it prints is what to write instead
    for schedule in (SD, CONTINUOUS["edm"], CONTINUOUS["flow"]):
        program = sampler.program(schedule, "x0")
        assert np.isfinite(program.A).all()


def test_the_lists_are_the_tables() -> None:
    assert {*KSAMPLER} == {*names.COMFYUI, *names.REFUSED} and {*A1111} == {*names.A1111, "DPM adaptive"}


@pytest.mark.parametrize("alias", ALIASES)
def test_an_alias_is_the_name_that_it_is_short_for(alias: str) -> None:
    assert named(alias, 8) == named(ALIASES[alias], 8)


def test_every_alias_leads_to_a_name() -> None:
    assert {*names.ALIASES.values()} <= {*A1111}
    with pytest.raises(ValueError, match=r"^name: got 'k_dpm_ad', expected dpm_fast, or dpmpp_2m with more steps"):
        named("k_dpm_ad", 8)


def test_a_class_lists_its_names() -> None:
    for cls in samplers.catalogue().values():
        listed = {name for name in cls.elsewhere if not name.endswith("Scheduler")}
        assert all(names.recipe(name).sampler is cls for name in listed), cls


SAME: dict[str, samplers.GridSampler] = {
    "dpmpp_2m_sde_heun": samplers.DPMSolverPP(8, sde=True, variant="heun", lower_order_final=False),
    "dpmpp_3m_sde_gpu": samplers.DPMSolverPP(8, sde=True, order=3, variant="heun", lower_order_final=False),
    "dpmpp_2m": samplers.DPMSolverPP(8, lower_order_final=False),
    "dpm_2_ancestral": samplers.DPM2(8, eta=1.0),
    "sample_euler_ancestral_RF": samplers.EulerAncestral(8, rectified=True),
    "ipndm": samplers.LMS(8, polynomial="index"),
    "lms": samplers.LMS(8, euler_at_final=True),
    "sample_lms": samplers.LMS(8),
    "LMS": samplers.LMS(8, sigmas="normal"),
    "Euler a": samplers.EulerAncestral(8, sigmas="normal"),
    "DPM++ 2M Karras": samplers.DPMSolverPP(8, lower_order_final=False, sigmas="karras"),
    "DPM++ 2M": samplers.DPMSolverPP(8, lower_order_final=False, sigmas="karras"),
    "DPM++ 2M SGM Uniform": samplers.DPMSolverPP(8, lower_order_final=False, sigmas="sgm_uniform"),
    "dpm++ 2m sde exponential": samplers.DPMSolverPP(8, sde=True, lower_order_final=False, sigmas="exponential"),
    "DPM++ 2S a Karras": samplers.DPMSolverPP2SAncestral(8, sigmas="karras"),
    "DPM2 a Karras": samplers.DPM2(8, eta=1.0, sigmas="karras", drop_last=True),
    "Euler KL Optimal": samplers.Euler(8, sigmas="kl_optimal", drop_last=True, final="sigma_min"),
    "Heun Beta": samplers.Heun(8, sigmas="beta"),
    "k_euler_a": samplers.EulerAncestral(8, sigmas="normal"),
    "k_dpmpp_2m_ka": samplers.DPMSolverPP(8, lower_order_final=False, sigmas="karras"),
    "k_dpm_2_a_ka": samplers.DPM2(8, eta=1.0, sigmas="karras", drop_last=True),
    "DDIM": samplers.DDIM(8, sigmas="ddim_uniform", final="sigma_min"),
    "DDIM CFG++": samplers.DDIM(8, sigmas="ddim_uniform", final="sigma_min", cfg_pp=True),
    "UniPC": samplers.UniPC(8, order=3, variant="bh1", sigmas="sgm_uniform", final="sigma_min"),
    "uni_pc_bh2": samplers.UniPC(8, order=3, variant="bh2", final=0.001),
    "LCM": samplers.LCM(8),
    "lcm": samplers.LCM(8, timestep_scaling=None),
    "PLMS": samplers.PNDM(8, skip_prk=True, sigmas="ddim_uniform"),
    "Restart": samplers.Restart(8, sigmas="karras"),
    "DPM++ 3M SDE Karras": samplers.DPMSolverPP(
        8, sde=True, order=3, variant="heun", lower_order_final=False, sigmas="karras", drop_last=True
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_a_name_means_a_call(name: str) -> None:
    assert named(name, 8) == SAME[name]


# Every schedule type of A1111 and Forge, and the levels that it means here.
TYPES: dict[str, str | None] = {
    "Automatic": "karras",
    "Uniform": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "Polyexponential": "polyexponential",
    "SGM Uniform": "sgm_uniform",
    "SGMUniform": "sgm_uniform",
    "KL Optimal": "kl_optimal",
    "Align Your Steps": None,
    "Simple": "simple",
    "Normal": "normal",
    "DDIM": "ddim_uniform",
    "Beta": "beta",
    "Turbo": "turbo",
    "Align Your Steps GITS": None,
    "Align Your Steps 11": None,
    "Align Your Steps 32": None,
}


@pytest.mark.parametrize("label", TYPES)
def test_every_schedule_type_is_a_grid_or_refused_with_a_way_out(label: str) -> None:
    meant = TYPES[label]
    if meant is not None:
        assert named("DPM++ 2M", 8, sigmas=label).sigmas == meant
        assert named("DPM++ 2M", 8, sigmas=label.lower().replace(" ", "_")).sigmas == meant
        assert label == "Automatic" or named(f"DPM++ 2M {label}", 8).sigmas == meant
        return
    for given in ({"name": f"DPM++ 2M {label}"}, {"name": "DPM++ 2M", "sigmas": label}):
        argument = "sigmas" if "sigmas" in given else "name"
        with pytest.raises(ValueError, match=f"^{argument}: got .*{label}', expected '.* SD1' or '.* SDXL'") as told:
            named(**given, steps=8)
        for way in re.findall("'([^']*)'", str(told.value).partition("expected")[2]):
            sampler = named(**given | {argument: way}, steps=8)
            assert sampler.sigmas in SIGMAS and np.isfinite(sampler.grid(SD).sigmas).all()


def test_tables_are_by_the_kind_of_checkpoint() -> None:
    assert named("DPM++ 2M AYS SD1", 8).sigmas == named("DPM++ 2M Align Your Steps 11 SD1", 8).sigmas == "ays_11_sd1"
    assert named("Euler a", 8, sigmas="AYS GITS SDXL").sigmas == named("euler a ays gits sdxl", 8).sigmas == "gits_sdxl"
    assert named("Euler", 8, sigmas="Align Your Steps 32 SDXL").sigmas == "ays_32_sdxl"
    for name in ("Euler", "euler"):  # ComfyUI's table by its name here
        assert named(name, 8, sigmas="ays_sdxl").sigmas == "ays_sdxl"


def test_schedules_are_those_of_where_the_name_is_from() -> None:
    def sigmas(name: str, asked: Any) -> Any:
        return named(name, 6, sigmas=asked).sigmas

    assert [sigmas("euler", name) for name in SIGMAS if name != "beta"] == [name for name in SIGMAS if name != "beta"]
    assert sigmas("euler", "beta") == "beta-time" and sigmas("sample_euler", "beta") == "beta-time"
    assert sigmas("Euler", "Beta") == "beta" and sigmas("Euler a", "DDIM") == "ddim_uniform"
    assert sigmas("Euler", "SGM Uniform") == "sgm_uniform" and sigmas("euler", "SGM Uniform") == "sgm_uniform"
    assert sigmas("euler", None) is None and sigmas("euler", [3, 2, 1, 0.5, 0.2, 0.1]) == (3, 2, 1, 0.5, 0.2, 0.1)
    assert sigmas("DPM++ 2M", [3.0, 2, 1, 0.5, 0.2, 0.1])[0] == 3 and sigmas("DPM++ 2M", "Simple") == "simple"
    assert sigmas("DPM++ 2M", "Automatic") == "karras"
    assert named("DPM++ 2M", 6, spacing="trailing").sigmas is None
    assert named("DPM2", timesteps=(900, 400, 10)).drop_last is False


def test_the_last_but_one_is_left_out_where_ksampler_does_so() -> None:
    ten = named("sample_dpm_2", 10, sigmas="karras").grid(SD).ratios
    for name in ("dpm_2", "dpm_2_ancestral"):
        np.testing.assert_array_equal(named(name, 9, sigmas="karras").grid(SD).ratios, np.delete(ten, -2))
        assert not named(name, 9).drop_last and not named(name, sigmas=(3.0, 1.0, 0.0)).drop_last
    ratios = named("uni_pc", 9, sigmas="karras").grid(SD).ratios
    np.testing.assert_allclose(ratios, [*ten[:9], 0.001], rtol=1e-12)
    for given in ((3.0, 1.0, 0.0), [3, 1, 0], np.array([3.0, 1.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])):
        np.testing.assert_allclose(named("uni_pc", sigmas=given).grid(SD).ratios, [3, 1, 0.001], rtol=1e-12)
    assert len(named("sample_heun", 10, sigmas="karras").grid(SD)) == 10


def test_options_are_over_those_of_the_name() -> None:
    assert named("dpmpp_2m_sde", 8, eta=0.5, s_noise=1.01).eta == 0.5  # type: ignore[attr-defined]
    assert named("dpmpp_2m_sde", 8, variant="heun") == named("dpmpp_2m_sde_heun", 8)
    assert named("DDIM", 8, eta=1.0) == samplers.DDIM(8, eta=1.0, sigmas="ddim_uniform", final="sigma_min")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a mistake": ({"name": "dpmp_2m_sde"}, r"name: got 'dpmp_2m_sde', expected a known sampler, such as dpmpp_2m_sde,"),
    "nothing like it": ({"name": "quantum"}, r"name: got 'quantum', expected a known sampler, such as \S.*, \S.* or "),
    "nothing": ({"name": ""}, r"name: got '', expected a known sampler, such as \S.*, \S.* or "),
    "none": ({"name": None}, r"name: got None, expected a sampler's name, such as dpmpp_2m"),
    "adaptive": ({"name": "DPM Adaptive"}, r"name: got 'DPM Adaptive', expected dpm_fast, or dpmpp_2m with more"),
    "adaptive with a schedule": ({"name": "k_dpm_ad_ka"}, r"name: got 'k_dpm_ad_ka', expected dpm_fast"),
    "diffusers": ({"name": "DDIMScheduler"}, r"name: got 'DDIMScheduler', expected ulam.integrations.diffusers.fuse"),
    "an option": ({"name": "euler", "chrun": 1}, r"chrun: got 1, expected an argument of Euler: .*did you mean churn"),
    "a schedule": ({"name": "euler", "sigmas": "karas"}, r"sigmas: got 'karas', expected one of .* mean karras"),
    "two schedules": (
        {"name": "Euler a Karras", "sigmas": "simple"},
        r"sigmas: got 'simple' with 'Euler a Karras', which names a schedule, expected None",
    ),
    "own levels": (
        {"name": "UniPC", "sigmas": "karras"}, r"sigmas: got 'karras' with 'UniPC', which has its own, expected None"
    ),
    "own levels, a list": ({"name": "LCM", "sigmas": (3.0, 1.0)}, r"sigmas: got .* with 'LCM', which has its own"),
    "own levels and a name": ({"name": "DDIM Karras"}, r"name: got 'DDIM Karras', expected DDIM, which has levels of"),
    "align your steps": (
        {"name": "Euler a", "sigmas": "Align Your Steps"},
        r"sigmas: got 'Align Your Steps', expected 'Align Your Steps SD1' or 'Align Your Steps SDXL': which",
    ),
    "align your steps in the name": (
        {"name": "DPM++ 2M AYS 32"}, r"name: got .*, expected 'DPM\+\+ 2M AYS 32 SD1' or 'DPM\+\+ 2M AYS 32 SDXL'"
    ),
    "a fork's": (
        {"name": "Euler", "sigmas": "Karras Exponential"},
        r"sigmas: got 'Karras Exponential', expected 'Karras' or 'Exponential': it begins above",
    ),
    "two levels": ({"name": "DPM2 KL Optimal"}, r"sigmas: got 'DPM2 KL Optimal', expected another: A1111 leaves two"),
    "steps": ({"name": "euler", "steps": 0}, r"steps: got 0, expected a whole number of at least 1"),
    "no steps": ({"name": "euler", "steps": None}, r"steps: got None, expected a number of steps"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_names_are_told_in_one_line(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        named(**{"steps": 8} | given)
    assert "\n" not in str(caught.value)


def test_three_names_are_near() -> None:
    text = names.nearest("dpmpp2msde")
    assert re.split(", | or ", text)[0] == "dpmpp_2m_sde" and len(re.split(", | or ", text)) == 3
    assert all(name in (*KSAMPLER, *A1111) for name in re.split(", | or ", text))


@pytest.mark.long
@pytest.mark.parametrize("on", ["vp", "flow", "ve", "edm"])
def test_every_name_keeps_the_law_of_a_point_on_every_grid(on: str) -> None:
    """At few steps too; LCM is left out, whose boundary condition is that of a distilled network."""
    schedule, predicts = {
        "vp": (schedules.vp_cosine(1000), "v"),
        "flow": (schedules.flow(1.15), "flow"),
        "ve": (schedules.ve(0.01, 50.0), "eps"),
        "edm": (schedules.edm(), "raw"),
    }[on]
    kept = 0
    for name in (*names.COMFYUI, *names.A1111, *names.FUNCTIONS):
        for sigmas in (None, "karras", "kl_optimal", "beta", "simple", "sgm_uniform"):
            for steps in (1, 2, 5):
                try:
                    sampler = named(name, steps, sigmas=sigmas)
                    sampler.program(schedule, predicts)
                except ValueError as refused:
                    assert str(refused).count("\n") == 0
                    continue
                if name != "LCM":
                    assert_law_of_a_point_is_kept(sampler, schedule, predicts, 1e-5)
                    kept += 1
    assert kept > 500
