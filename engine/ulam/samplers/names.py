"""Samplers by the names that ComfyUI, k-diffusion and A1111's web interface give them: the one table of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, NamedTuple

from ulam_kernels.arguments import described, likely

from .arguments import check_choice
from .cfg_pp_history import CFGPPHistory
from .ddim import DDIM
from .ddpm import DDPM
from .dpm2 import DPM2
from .dpm_fast import DPMFast
from .dpm_solver_pp import DPMSolverPP
from .dpm_solver_pp_ancestral import DPMSolverPP2SAncestral
from .dpm_solver_pp_sde import DPMSolverPPSDE
from .er_sde import ERSDE
from .euler import Euler, EulerAncestral
from .gradient_estimation import GradientEstimation
from .grid import GridSampler
from .heun import Heun
from .heun_pp import HeunPP
from .lcm import LCM
from .lms import LMS
from .pndm import PNDM
from .res_multistep import RESMultistep
from .restart import Restart
from .sa_solver import SASolver
from .seeds import SEEDS
from .sigmas import AYS, SIGMAS
from .unipc import UniPC

NEARLY_ZERO = 1e-3  # the level that ComfyUI's UniPC ends at instead of 0


class Recipe(NamedTuple):
    """The call that a name stands for: `sampler(steps, **options)`."""

    sampler: type[GridSampler]
    options: dict[str, Any]


def _recipe(sampler: type[GridSampler], **options: Any) -> Recipe:
    return Recipe(sampler, options)


_2M = {"order": 2, "lower_order_final": False}
_3M = {"order": 3, "variant": "heun", "lower_order_final": False}
_SA: dict[str, Any] = {"predictor_order": 3, "corrector_order": 4, "simple_order_2": False}
_UNIPC = {"order": 3, "final": NEARLY_ZERO}

# Names of ComfyUI's KSampler, in its order.
COMFYUI: dict[str, Recipe] = {
    "euler": _recipe(Euler),
    "euler_cfg_pp": _recipe(Euler, cfg_pp=True),
    "euler_ancestral": _recipe(EulerAncestral),
    "euler_ancestral_cfg_pp": _recipe(EulerAncestral, cfg_pp=True),
    "heun": _recipe(Heun),
    "heunpp2": _recipe(HeunPP),
    "exp_heun_2_x0": _recipe(SEEDS, eta=0.0, r=1.0, solver_type="phi_2"),
    "exp_heun_2_x0_sde": _recipe(SEEDS, r=1.0, solver_type="phi_2"),
    "dpm_2": _recipe(DPM2),
    "dpm_2_ancestral": _recipe(DPM2, eta=1.0),
    "lms": _recipe(LMS, euler_at_final=True),
    "dpm_fast": _recipe(DPMFast),
    "dpmpp_2s_ancestral": _recipe(DPMSolverPP2SAncestral),
    "dpmpp_2s_ancestral_cfg_pp": _recipe(DPMSolverPP2SAncestral, cfg_pp=True),
    "dpmpp_sde": _recipe(DPMSolverPPSDE),
    "dpmpp_2m": _recipe(DPMSolverPP, **_2M),
    "dpmpp_2m_cfg_pp": _recipe(DPMSolverPP, **_2M, cfg_pp=True),
    "dpmpp_2m_sde": _recipe(DPMSolverPP, **_2M, sde=True),
    "dpmpp_2m_sde_heun": _recipe(DPMSolverPP, **_2M, sde=True, variant="heun"),
    "dpmpp_3m_sde": _recipe(DPMSolverPP, **_3M, sde=True),
    "ddpm": _recipe(DDPM),
    "lcm": _recipe(LCM, timestep_scaling=None),
    "ipndm": _recipe(LMS, polynomial="index"),
    "ipndm_v": _recipe(LMS, euler_at_final=True),
    "deis": _recipe(LMS, order=3, polynomial="vp-time"),
    "cfgpp_ud10_ab": _recipe(CFGPPHistory),
    "res_multistep": _recipe(RESMultistep),
    "res_multistep_cfg_pp": _recipe(RESMultistep, cfg_pp=True),
    "res_multistep_ancestral": _recipe(RESMultistep, eta=1.0),
    "res_multistep_ancestral_cfg_pp": _recipe(RESMultistep, eta=1.0, cfg_pp=True),
    "gradient_estimation": _recipe(GradientEstimation),
    "gradient_estimation_cfg_pp": _recipe(GradientEstimation, cfg_pp=True),
    "er_sde": _recipe(ERSDE),
    "seeds_2": _recipe(SEEDS),
    "seeds_3": _recipe(SEEDS, stages=3),
    "sa_solver": _recipe(SASolver, **_SA),
    "sa_solver_pece": _recipe(SASolver, **_SA, pece=True),
    "ddim": _recipe(DDIM),
    "uni_pc": _recipe(UniPC, **_UNIPC, variant="bh1"),
    "uni_pc_bh2": _recipe(UniPC, **_UNIPC, variant="bh2"),
}
COMFYUI |= {f"{name}_gpu": COMFYUI[name] for name in COMFYUI if name.endswith(("_sde", "_sde_heun")) and "pp_" in name}
DROP_LAST = ("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2")  # named sigmas lose their last but one in KSampler

# Functions of k-diffusion's and ComfyUI's sampling.py are sample_NAME, but for these.
FUNCTIONS: dict[str, Recipe] = {
    "sample_lms": _recipe(LMS),  # k-diffusion's, which has order 4 in the last row too
    "sample_unipc": COMFYUI["uni_pc"],
    "sample_unipc_bh2": COMFYUI["uni_pc_bh2"],
    "sample_euler_ancestral_RF": _recipe(EulerAncestral, rectified=True),
    "sample_dpm_2_ancestral_RF": _recipe(DPM2, eta=1.0, rectified=True),
    "sample_dpmpp_2s_ancestral_RF": _recipe(DPMSolverPP2SAncestral, rectified=True),
}


def _a1111(name: str, sigmas: str | None, **options: Any) -> Recipe:
    sampler, known = COMFYUI[name]
    return Recipe(sampler, known | options | ({} if sigmas is None else {"sigmas": sigmas}))


# A1111's display names, with what it takes for the schedule type "Automatic".
A1111: dict[str, Recipe] = {
    "DPM++ 2M": _a1111("dpmpp_2m", "karras"),
    "DPM++ SDE": _a1111("dpmpp_sde", "karras"),
    "DPM++ 2M SDE": _a1111("dpmpp_2m_sde", "exponential"),
    "DPM++ 2M SDE Heun": _a1111("dpmpp_2m_sde_heun", "exponential"),
    "DPM++ 2S a": _a1111("dpmpp_2s_ancestral", "karras"),
    "DPM++ 3M SDE": _a1111("dpmpp_3m_sde", "exponential", drop_last=True),
    "Euler a": _a1111("euler_ancestral", "normal"),
    "Euler": _a1111("euler", "normal"),
    "LMS": _recipe(LMS, sigmas="normal"),
    "Heun": _a1111("heun", "normal"),
    "DPM2": _a1111("dpm_2", "karras", drop_last=True),
    "DPM2 a": _a1111("dpm_2_ancestral", "karras", drop_last=True),
    "DPM fast": _a1111("dpm_fast", None, eta=1.0),
    "Restart": _recipe(Restart, sigmas="karras"),
    "DDIM": _recipe(DDIM, sigmas="ddim_uniform", final="sigma_min"),
    "DDIM CFG++": _recipe(DDIM, sigmas="ddim_uniform", final="sigma_min", cfg_pp=True),
    "PLMS": _recipe(PNDM, skip_prk=True, sigmas="ddim_uniform"),
    "UniPC": _recipe(UniPC, order=3, variant="bh1", sigmas="sgm_uniform", final="sigma_min"),
    "LCM": _recipe(LCM),
}
OWN_LEVELS = ("DPM fast", "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM")  # take no schedule type
# Its older names: k_dpmpp_2m, with _ka and _exp for a schedule.
ALIASES = {f"k_{name.lower()}": name for name in ("Euler", "Heun", "LMS", "LCM")} | {
    "k_euler_a": "Euler a", "k_euler_ancestral": "Euler a", "k_dpm_2": "DPM2", "k_dpm_2_a": "DPM2 a",
    "k_dpmpp_2s_a": "DPM++ 2S a", "k_dpmpp_2m": "DPM++ 2M", "k_dpmpp_sde": "DPM++ SDE",
    "k_dpmpp_2m_sde": "DPM++ 2M SDE", "k_dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun", "k_dpmpp_3m_sde": "DPM++ 3M SDE",
    "k_dpm_fast": "DPM fast", "k_dpm_ad": "DPM adaptive", "ddim_cfgpp": "DDIM CFG++",
    "unipc": "UniPC",
}  # fmt: skip
# Schedule types of A1111 and Forge and what they are here. Its KL Optimal is a level finer, and ends at the last.
SCHEDULES: dict[str, dict[str, Any]] = {
    "Karras": {"sigmas": "karras"}, "Exponential": {"sigmas": "exponential"}, "Uniform": {"sigmas": "normal"},
    "Polyexponential": {"sigmas": "polyexponential"}, "SGM Uniform": {"sigmas": "sgm_uniform"},
    "KL Optimal": {"sigmas": "kl_optimal", "drop_last": True, "final": "sigma_min"}, "Simple": {"sigmas": "simple"},
    "Normal": {"sigmas": "normal"}, "DDIM": {"sigmas": "ddim_uniform"}, "Beta": {"sigmas": "beta"},
    "Turbo": {"sigmas": "turbo"},
}  # fmt: skip
# Those with a table for each kind of checkpoint, which A1111 and Forge ask; here the label says it: "AYS SDXL".
TABLES = {
    f"{label}{number}": grid
    for label in ("Align Your Steps", "AYS")
    for number, grid in {"": "ays_11", " 11": "ays_11", " 32": "ays_32", " GITS": "gits"}.items()
}
SCHEDULES |= {
    f"{label} {kind}": {"sigmas": f"{grid}_{kind.lower()}"}
    for label, grid in TABLES.items()
    for kind in ("SD1", "SDXL")
}

REFUSED = {
    "dpm_adaptive": "dpm_fast, or dpmpp_2m with more steps: how many steps it takes, and which, depends on the samples",
}
NO_SCHEDULES = {"karrasexponential": "'Karras' or 'Exponential': it begins above the largest level and ends above 0"}


def named(name: str, steps: int | None = None, *, sigmas: Any = None, **options: Any) -> GridSampler:
    """The sampler that ComfyUI, k-diffusion or A1111 calls `name`, with the options that make it the same.

    name: of ComfyUI's KSampler ("dpmpp_2m_sde_heun", also its _gpu twins), a function of k-diffusion's or ComfyUI's
    sampling.py ("sample_heun"), or a display name of A1111, in any case and punctuation, with or without its schedule
    ("DPM++ 2M SDE Karras", "Euler a", "dpmpp_2m_karras"). "euler" is ComfyUI's and "Euler" A1111's: what is spelled
    as neither ("EULER") is refused where it could be both. "A1111 DDIM" is A1111's in any spelling, where the command
    line takes "DDIM" for the class.
    steps: levels, as there. sigmas: a schedule by its name there, or a list of levels. ComfyUI's "beta" is
    "beta-time" here, A1111's is "beta". Align Your Steps of A1111 and Forge (also 11, 32 and GITS) has a table for each
    kind of checkpoint, which the name says: "Align Your Steps 32 SDXL", "DPM++ 2M AYS SD1". By default the levels are
    those of the class, with A1111's names those of its schedule type "Automatic". options: other arguments of the
    class, over those of the name.

    What KSampler and A1111 do beside the sampler is done too: the last but one of named sigmas is left out for dpm_2,
    dpm_2_ancestral, uni_pc, uni_pc_bh2 (not for sample_dpm_2, ...), DPM2, DPM2 a and DPM++ 3M SDE; UniPC ends above 0.
    The last row of ComfyUI's lms gives D; sample_lms and LMS, k-diffusion's, extrapolate there.
    On flow schedules ComfyUI's ancestral samplers have a lower level of their own, rectified=True, and its solvers in
    log-SNR take log t for it; ours take log-SNR, but where the class says otherwise.
    Noise is ulam's own: that of *_sde has the law of their Brownian trees, on these steps, but not their numbers.

    Raises ValueError in one line: an unknown name (with the three nearest), one that is refused (dpm_adaptive, whose
    steps are not known before it runs), an argument that the class does not take.
    """
    sampler, known = recipe(name, sigmas, free_levels="timesteps" not in options and "spacing" not in options)
    taken = {option.name: option for option in fields(sampler) if option.init}
    if strange := options.keys() - taken.keys():
        key = sorted(strange)[0]
        meant = likely(key, taken)
        right = ", ".join(taken) + (f" (did you mean {meant}?)" if meant is not None else "")
        raise ValueError(f"{key}: got {described(options[key])}, expected an argument of {sampler.__name__}: {right}")
    return sampler(**{"steps": steps} | known | options)


def recipe(
    name: object,
    sigmas: object = None,
    argument: str = "name",
    free_levels: bool = True,
    others: Iterable[str] = (),
) -> Recipe:
    """The class and options of a name, see `named`, with `sigmas` as the class takes them.

    argument: what an error calls the name. free_levels: whether no other levels are given, so that the name's own hold.
    others: names that would have done too, for the error about one that is not known.
    """
    sampler, options, schedule, ours = _found(name, argument, others)
    options = dict(options)
    if ours.a1111 and isinstance(sigmas, str) and _spelled(sigmas) == "automatic":
        sigmas = None
    if not free_levels or (sigmas is not None and not isinstance(sigmas, str)):
        if ours.own_levels and sigmas is not None:
            raise ValueError(f"sigmas: got {described(sigmas)} with {name!r}, which has its own, expected None")
        for key in ("sigmas", "drop_last"):
            options.pop(key, None)
        sigmas = sigmas.tolist() if hasattr(sigmas, "tolist") else sigmas  # an array of NumPy's, or a tensor
        if options.get("final") == NEARLY_ZERO and isinstance(sigmas, Sequence) and len(sigmas) and sigmas[-1] == 0:
            sigmas = sigmas[:-1]
        return Recipe(sampler, options if sigmas is None else options | {"sigmas": sigmas})
    if sigmas is not None and (schedule is not None or ours.own_levels):
        why = "which has its own" if ours.own_levels else "which names a schedule"
        raise ValueError(f"sigmas: got {described(sigmas)} with {name!r}, {why}, expected None")
    asked = _schedule(sigmas, ours.a1111) if isinstance(sigmas, str) else schedule or {}
    if asked.get("drop_last") and options.get("drop_last"):
        raise ValueError(
            f"sigmas: got {described(sigmas or name)}, expected another: A1111 leaves two levels out with it"
        )
    if ours.drops and asked:
        options["drop_last"] = True
    return Recipe(sampler, options | asked)


class _Kind(NamedTuple):
    a1111: bool = False
    drops: bool = False
    own_levels: bool = False


def _found(
    name: object, argument: str, others: Iterable[str]
) -> tuple[type[GridSampler], dict[str, Any], dict[str, Any] | None, _Kind]:
    """(class, options, the schedule in the name, what kind of name it is)."""
    if not isinstance(name, str):
        raise ValueError(f"{argument}: got {described(name)}, expected a sampler's name, such as dpmpp_2m")
    text = name.strip()
    theirs = text[:6].lower() == "a1111 "
    text = text[6:].strip() if theirs else text
    function = text.removeprefix("sample_")
    if text in COMFYUI and not theirs:
        return (*COMFYUI[text], None, _Kind(drops=text in DROP_LAST))
    if text in FUNCTIONS or (function != text and function in COMFYUI):
        return (*(FUNCTIONS.get(text) or COMFYUI[function]), None, _Kind())
    for ending in _COMFYUI_ENDINGS:
        if not theirs and text.endswith(ending) and (known := text.removesuffix(ending)) in COMFYUI:
            return (*COMFYUI[known], _schedule(ending[1:], False), _Kind(drops=known in DROP_LAST))
    label = _label(text)
    spelled = None if theirs else _COMFYUI_SPELLED.get(_spelled(function, pp=True))
    both = spelled in COMFYUI and label is not None and text not in {*A1111, *ALIASES}
    both = both and label is not None and not {*" +"} & {*text} & {*label[0]}  # which ComfyUI's names do not have
    if both and "_" not in text:
        expected = f"{spelled!r}, ComfyUI's, or {label and label[0]!r}, A1111's, whose levels differ"
        raise ValueError(f"{argument}: got {name!r}, expected {expected}")
    if label is not None and label[0] in A1111 and not both:
        own = label[0] in OWN_LEVELS
        if own and label[1] is not None:
            raise ValueError(f"{argument}: got {name!r}, expected {label[0]}, which has levels of its own")
        return (*A1111[label[0]], label[1], _Kind(a1111=True, own_levels=own))
    if spelled in COMFYUI:
        return (*COMFYUI[spelled], None, _Kind(drops=spelled in DROP_LAST))
    if spelled is not None or label is not None:
        raise ValueError(f"{argument}: got {name!r}, expected {REFUSED[spelled or 'dpm_adaptive']}")
    for ending in map(_spelled, TABLES):
        if _spelled(text).endswith(ending) and _label(_spelled(text).removesuffix(ending)) is not None:
            raise ValueError(f"{argument}: got {name!r}, expected {_of_checkpoints(text)}")
    if text.endswith("Scheduler"):
        raise ValueError(f"{argument}: got {name!r}, expected ulam.integrations.diffusers.fuse for diffusers' classes")
    raise ValueError(f"{argument}: got {described(name)}, expected a known sampler, such as {nearest(name, others)}")


def _label(text: str) -> tuple[str, dict[str, Any] | None] | None:
    """(A1111's display name, its schedule) in `text`."""
    spelled = _spelled(text)
    for ending, schedule in _ENDINGS:
        shown = _LABELS.get(spelled.removesuffix(ending)) if spelled.endswith(ending) else None
        if shown is not None:
            return shown, schedule
    return None


def _schedule(sigmas: str, a1111: bool) -> dict[str, Any]:
    """The arguments for a schedule by its name in ComfyUI or A1111, or ours. Raises ValueError for others."""
    spelled = _spelled(sigmas)
    if spelled in map(_spelled, TABLES):
        raise ValueError(f"sigmas: got {sigmas!r}, expected {_of_checkpoints(sigmas)}")
    if spelled in NO_SCHEDULES:
        raise ValueError(f"sigmas: got {sigmas!r}, expected {NO_SCHEDULES[spelled]}")
    if sigmas in AYS:  # ComfyUI's, which "AYS SD1" is not where the name is A1111's
        return {"sigmas": sigmas}
    if sigmas == "beta" and not a1111:
        return {"sigmas": "beta-time"}
    labels = {_spelled(label): asked for label, asked in SCHEDULES.items()}
    if spelled in labels and (a1111 or spelled not in map(_spelled, SIGMAS)):
        return labels[spelled]
    ours = {_spelled(known): known for known in SIGMAS}
    return {"sigmas": check_choice("sigmas", ours.get(spelled, sigmas), SIGMAS)}


def _of_checkpoints(text: str) -> str:
    return f"'{text.strip()} SD1' or '{text.strip()} SDXL': which, A1111 asks the checkpoint"


def nearest(name: object, others: Iterable[str] = ()) -> str:
    """The three known names that look most like `name`, of ours and `others`, as "a, b or c"."""
    others = list(others)
    known = {_spelled(key, pp=True): key for key in (*others, *A1111, *COMFYUI)}
    found = get_close_matches(_spelled(str(name)[:100], pp=True), known, 3, 0.0)
    meant = likely(name, others)
    first, second, third = list(dict.fromkeys([*([meant] if meant else []), *(known[key] for key in found)]))[:3]
    return f"{first}, {second} or {third}"


def names_of(sampler: type[GridSampler]) -> dict[str, dict[str, Any]]:
    """The names of a class in ComfyUI and A1111, with the options that each stands for."""
    return {
        name: recipe(name).options
        for name in (*COMFYUI, *A1111)
        if recipe(name).sampler is sampler and not name.endswith("_gpu")
    }


def _spelled(name: str, pp: bool = False) -> str:
    """In lower case, without punctuation but +; pp: p for +."""
    letters = name.lower().replace("+", "p") if pp else name.lower()
    return "".join(letter for letter in letters if letter.isalnum() or letter == "+")


_COMFYUI_SPELLED = {_spelled(name): name for name in (*COMFYUI, *REFUSED)}
_LABELS = {_spelled(label): label for label in (*A1111, "DPM adaptive")} | {
    _spelled(alias): label for alias, label in ALIASES.items()
}
_LABELS |= {_spelled(f"{label}ncestral"): label for label in A1111 if label.endswith(" a")}
_COMFYUI_ENDINGS = sorted((f"_{sigmas}" for sigmas in SIGMAS), key=len, reverse=True)  # dpmpp_2m_karras
_ENDINGS = [("", None), ("automatic", None), ("ka", SCHEDULES["Karras"]), ("exp", SCHEDULES["Exponential"])] + [
    (_spelled(label), asked) for label, asked in sorted(SCHEDULES.items(), key=lambda item: -len(item[0]))
]
