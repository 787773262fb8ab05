"""Spellings of names: those that mean one sampler, those that mean two, and names that end in a schedule."""

from __future__ import annotations

import re

import pytest

from ulam.samplers import named
from ulam.samplers.names import COMFYUI


@pytest.mark.parametrize(
    "name, meant",
    [
        ("DPM++ 2M SDE KARRAS", "DPM++ 2M SDE Karras"),
        ("dpm++_2m_sde_karras", "DPM++ 2M SDE Karras"),
        ("  Euler A ", "Euler a"),
        ("ddim cfg++", "DDIM CFG++"),
        ("a1111 dpm2", "DPM2"),
        ("DPM_2", "dpm_2"),
        ("UNI_PC", "uni_pc"),
        ("dpm++_2m", "DPM++ 2M"),
        ("Euler Ancestral", "Euler a"),
        ("DPM++ 2S Ancestral Karras", "DPM++ 2S a Karras"),
        ("Euler Automatic", "Euler"),
        ("DPMPP-2M-SDE", "dpmpp_2m_sde"),
        ("Res Multistep", "res_multistep"),
        ("er-sde", "er_sde"),
        ("SA_Solver_PECE", "sa_solver_pece"),
    ],
)
def test_case_and_punctuation_do_not_matter(name: str, meant: str) -> None:
    assert named(name, 8) == named(meant, 8)


@pytest.mark.parametrize("name", ["EULER", "dpm2", "UNIPC", "uni-pc", "Ddim", "Lcm", "HEUN", "uni pc", "DPM 2", "Lms"])
def test_a_spelling_of_two_names_is_refused_with_both(name: str) -> None:
    with pytest.raises(ValueError, match=f"^name: got '{name}', expected '.*', ComfyUI's, or '.*', A1111's") as told:
        named(name, 8)
    comfyui, a1111 = re.findall("'([^' ]*)'", str(told.value).partition("expected")[2])[:2]
    assert named(comfyui, 8) != named(a1111, 8)


@pytest.mark.parametrize("name", COMFYUI)
def test_a_schedule_may_end_the_name(name: str) -> None:
    for sigmas in ("karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta", "normal", "kl_optimal"):
        assert named(f"{name}_{sigmas}", 8) == named(name, 8, sigmas=sigmas)
    with pytest.raises(ValueError, match=r"^sigmas: got 'karras' with .*, which names a schedule"):
        named(f"{name}_karras", 8, sigmas="karras")
