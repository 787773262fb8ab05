"""Denoisers from diffusers: a saved pipeline, or one in memory, as a network with its schedule and prediction."""

from __future__ import annotations

import inspect
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ulam_kernels.arguments import described

from ... import schedules
from ...cli.models import kinds_of_weights
from ...denoiser import Denoiser
from ...files import each_key_once, one_line
from ...schedules import Schedule
from .arguments import FLOATS
from .configuration import check_complete, check_config, short
from .networks import MODELS, Clock, DiffusersNetwork, FluxNetwork, known

VP = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "LCMScheduler",
    "TCDScheduler",
    "RePaintScheduler",
)
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
VE = ("ScoreSdeVeScheduler",)
PREDICTS = {
    "epsilon": "eps",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def denoiser_from_diffusers(
    source: object, *, scheduler: object = None, variant: str | None = None, dtype: torch.dtype | None = None
) -> Denoiser:
    """The denoiser in `source`: a model of `networks.MODELS` with the schedule that it was trained on.

    source: the folder of a saved pipeline (``model_index.json``, ``unet/`` or ``transformer/``, ``scheduler/``), the
    folder of a saved model beside a folder ``scheduler/``, a pipeline in memory, whose model is then shared, or a model
    in memory. scheduler: a scheduler of diffusers to read in place of the source's own; a model in memory has none.
    variant, dtype: which of a folder's weights (``"fp16"``), and the dtype to load them in; default float32.

    Nothing is fetched, and weights are read from safetensors only. The schedule is computed in float64 from the
    scheduler's configuration, not from its float32 arrays; a scheduler's choices for sampling (spacing, offset,
    clipping, Karras sigmas, ...) belong to the samplers and are not read.

    | scheduler | schedule | the model is told |
    |---|---|---|
    | DDPM, DDIM, Euler, DPM-Solver, ... | vp_linear, vp_scaled_linear, vp_cosine, vp_sigmoid or from_betas | index |
    | the same with ``rescale_betas_zero_snr`` | zero_terminal_snr(...) | index |
    | flow matching, and ``use_flow_sigmas`` | flow(shift) | num_train_timesteps t (Flux: t) |
    | EDM [Karras 2022, table 1] | edm(...), predicts="raw" | log(sigma) / 4 |
    | ScoreSdeVe [Song 2021b] | ve(...), predicts="score" | sigma |

    Sampling is `ulam.sample(denoiser, ..., cond={"encoder_hidden_states": ...})`, on latents [C, H, W]: see
    `networks.MODELS` for the names, `networks.FluxNetwork` for Flux. The text encoder and the VAE stay outside.
    A learned variance (2C output channels) is read by `samplers.DDPM(variance=...)` and ignored by the others.

    Raises TypeError, ValueError, OSError or ImportError, in one line: no such folder, a model or scheduler that is not
    in this list, weights that are missing, incomplete or pickled, a configuration with a value that is none (the key is
    named), no diffusers.
    """
    if scheduler is not None and not isinstance(scheduler, _diffusers().SchedulerMixin):
        raise TypeError(f"scheduler: got {type(scheduler).__name__}, expected a scheduler of diffusers")
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w.-]{1,100}", variant)):
        kind = ValueError if isinstance(variant, str) else TypeError
        raise kind(f"variant: got {described(variant)}, expected a name such as 'fp16', or None")
    if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype not in FLOATS):
        raise TypeError(f"dtype: got {described(dtype)}, expected torch.float32, bfloat16, float16, float64, or None")
    if isinstance(source, (str, os.PathLike)):
        model, scheduler = _from_folder(Path(source), scheduler, variant, dtype)
    else:
        if variant is not None or dtype is not None:
            raise ValueError("variant, dtype: only for folders; a pipeline in memory brings its weights")
        model, scheduler = _from_memory(source, scheduler)
    name = known(model, MODELS)
    if name is None:
        raise ValueError(f"source: the model is a {type(model).__name__}, expected one of {', '.join(MODELS)}")
    channels, out = model.config["in_channels"], model.config["out_channels"] or model.config["in_channels"]
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"source: the {name} reads {channels} channels and returns {out}, expected as many or twice as many"
        )
    schedule, predicts, clock, negated = _read_scheduler(scheduler)
    if name == "FluxTransformer2DModel":
        if schedule.kind != "flow":
            raise ValueError(f"scheduler: got {type(scheduler).__name__}, expected one of flow matching for {name}")
        return Denoiser(FluxNetwork(model, MODELS[name], _same, negated), schedule, predicts)
    return Denoiser(DiffusersNetwork(model, MODELS[name], clock, negated), schedule, predicts)


# ------------------------------------------------------------------------------------------------- the source


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError:
        raise ImportError("from_diffusers needs diffusers: pip install 'ulam[diffusers]'") from None
    return diffusers


def _from_memory(source: object, scheduler: Any) -> tuple[Any, Any]:
    """(model, scheduler) of a pipeline, or of a model beside a scheduler."""
    if isinstance(source, _diffusers().ModelMixin):
        if scheduler is None:
            came = type(source).__name__
            raise TypeError(
                f"source: got {came} alone, expected a pipeline, or also scheduler=, the one that it was trained with"
            )
        return source, scheduler
    if not isinstance(source, _diffusers().DiffusionPipeline):
        raise TypeError(f"source: got {type(source).__name__}, expected a folder or a pipeline or model of diffusers")
    parts = (getattr(source, name, None) for name in ("unet", "transformer"))
    model = next((part for part in parts if part is not None), None)
    scheduler = getattr(source, "scheduler", None) if scheduler is None else scheduler
    if model is None or scheduler is None:
        came = type(source).__name__
        raise ValueError(f"source: {came} lacks a {'unet or transformer' if model is None else 'scheduler'}")
    return model, scheduler


def _from_folder(folder: Path, scheduler: Any, variant: str | None, dtype: torch.dtype | None) -> tuple[Any, Any]:
    if not folder.is_dir():
        came = str(folder) if str(folder).isprintable() else short(str(folder))
        raise NotADirectoryError(f"source: {came} is not a folder (nothing is fetched from the network)")
    if (folder / "model_index.json").is_file():
        index = _json(folder / "model_index.json")
        present = [name for name in ("unet", "transformer") if index.get(name) not in (None, [None, None])]
        if not present:
            raise ValueError(f"source: {folder / 'model_index.json'} lists neither unet nor transformer")
        model, beside = folder / present[0], folder / "scheduler"
    elif (folder / "config.json").is_file():
        model, beside = folder, folder.resolve().parent / "scheduler"
    else:
        raise FileNotFoundError(f"source: {folder} holds no model_index.json (a pipeline) and no config.json (a model)")
    if scheduler is None:
        scheduler = _load_scheduler(beside)
    return _load_model(model, variant, dtype), scheduler


def _load_scheduler(folder: Path) -> Any:
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"source: no file {path}, expected one, or scheduler= beside the folder of a model")
    made = _class(path, (*VP, *FLOW, *EDM, *VE))
    check_config(_json(path), made.__name__, f"source: {path}: ")
    try:
        return made.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the configuration provokes
        raise ValueError(f"source: cannot make a {made.__name__} of {path}: {one_line(error)}") from error


def _load_model(folder: Path, variant: str | None, dtype: torch.dtype | None) -> Any:
    made = _class(folder / "config.json", MODELS)
    kinds = _kinds(folder, variant)
    try:
        model, report = made.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever the files provoke
        raise ValueError(f"source: cannot load {folder}: {one_line(error)}") from error
    if lost := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(f"source: the weights in {folder} lack {len(lost)} of the model's, such as {lost[0]}")
    if more := sorted(report["unexpected_keys"]):
        raise ValueError(
            f"source: {folder}: got {len(more)} weights that the model of its config.json does not have, such as "
            f"{more[0]:.80}, expected those of the model alone"
        )
    _check_kinds(folder, kinds, model.state_dict())
    return model


def _check_kinds(folder: Path, kinds: dict[str, str], own: dict[str, torch.Tensor]) -> None:
    """Raises ValueError for codes or flags in place of the model's numbers; old names, which change, are of numbers."""
    for name, kind in kinds.items():
        wanted = "float" if name not in own or own[name].is_floating_point() else kind
        if kind != wanted:
            raise ValueError(
                f"source: {folder}: {name:.80} got {kind} weights, expected {wanted} ones like the model's"
            )


def _kinds(folder: Path, variant: str | None) -> dict[str, str]:
    """The model's weights by name, as they lie in its files, see :func:`ulam.cli.models.kinds_of_weights`.

    Raises FileNotFoundError or ValueError unless they are all there, in safetensors throughout, and none is complex.
    """
    infix = "" if variant is None else f".{variant}"
    whole = folder / f"diffusion_pytorch_model{infix}.safetensors"
    index = folder / f"diffusion_pytorch_model.safetensors.index{infix}.json"
    if index.is_file():
        files = _shards(folder, index)
    elif whole.is_file():
        files = {whole: []}
    else:
        raise _without_weights(folder, whole)
    found: dict[str, str] = {}
    for path, names in files.items():
        kinds: dict[str, str] = {}
        with suppress(OSError, SafetensorError):  # which the loading tells
            kinds = kinds_of_weights(path)
        for name, kind in kinds.items():
            if kind == "complex":
                raise ValueError(f"source: {path}: {name} got complex numbers, expected real ones like the model's")
        if kinds and (lost := [name for name in names if name not in kinds]):
            raise ValueError(f"source: {index}: got {lost[0]:.80} in {path.name}, which does not hold it")
        if twice := sorted(kinds.keys() & found.keys()):
            raise ValueError(f"source: {folder}: got {twice[0]:.80} in two files, expected it in one")
        found |= kinds
    return found


def _shards(folder: Path, index: Path) -> dict[Path, list[str]]:
    """The files of sharded weights, and the names that the index finds in each."""
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"source: {index}: weight_map: got {short(shards)}, expected names of files by weight")
    if pickled := sorted({shard for shard in shards.values() if not shard.endswith(".safetensors")}):
        raise ValueError(f"source: {index} names {pickled[0]}, which is not safetensors; pickles are not opened")
    files: dict[Path, list[str]] = {}
    for name, shard in sorted(shards.items()):
        files.setdefault(folder / shard, []).append(name)
    return files


def _without_weights(folder: Path, whole: Path) -> Exception:
    if pickled := sorted(path.name for path in folder.glob("*.bin")):
        return ValueError(
            f"source: {folder} holds pickled weights ({pickled[0]}), which are not opened: save them as safetensors"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    there = f", only {', '.join(others)} (see variant=)" if others else ""
    return FileNotFoundError(f"source: no weights {whole}{there}")


def _class(path: Path, allowed: Any) -> Any:
    """The class of diffusers that this configuration names, if it is an allowed one."""
    if not path.is_file():
        raise FileNotFoundError(f"source: no file {path}")
    config = _json(path)
    name = str(config.get("_class_name"))
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"  # as DiT was saved before it had a class of its own
    if name not in allowed:
        name = name if name.isidentifier() and len(name) < 100 else short(name)
        raise ValueError(f"source: {path} is of class {name}, expected one of {', '.join(allowed)} (_class_name)")
    return getattr(_diffusers(), name)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=each_key_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"source: cannot read {path}: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise ValueError(f"source: {path} is not a JSON object")
    return content


# ---------------------------------------------------------------------------------------------- the scheduler


def _read_scheduler(scheduler: Any) -> tuple[Schedule, str, Clock, bool]:
    """(schedule, predicts, clock, negated) of a scheduler of diffusers."""
    name, config = known(scheduler, (*VP, *FLOW, *EDM, *VE)), scheduler.config
    if name is None:
        expected = ", ".join((*VP, *FLOW, *EDM, *VE))
        raise ValueError(f"source: the scheduler is a {type(scheduler).__name__}, expected one of {expected}")
    check_complete(config, inspect.signature(getattr(_diffusers(), name)).parameters, "source: scheduler: ")
    check_config(config, name, "source: scheduler: ")
    try:
        return _in_terms_of_ulam(scheduler, name, config)
    except ValueError as error:
        said = str(error)
        raise ValueError(said if said.startswith("source: ") else f"source: scheduler: {said}") from None


def _in_terms_of_ulam(scheduler: Any, name: str, config: Any) -> tuple[Schedule, str, Clock, bool]:
    if name in EDM:
        keys = ("sigma_min", "sigma_max", "sigma_data", "rho")
        negated = _predicts(config) == "v"  # the output of these networks is -F
        return schedules.edm(**{key: config[key] for key in keys}), "raw", _c_noise, negated
    if name in VE:
        return schedules.ve(config["sigma_min"], config["sigma_max"]), "score", _same, False
    if name in FLOW or config.get("use_flow_sigmas"):
        if config.get("use_dynamic_shifting"):
            rather = "pass scheduler=FlowMatchEulerDiscreteScheduler(shift=...), exp(mu) for the size that you sample"
            raise ValueError(
                f"source: {name} has use_dynamic_shifting=True, expected one shift for all sizes: {rather}"
            )
        shift = config["shift"] if name in FLOW else config["flow_shift"]
        predicts = "flow" if name in FLOW else _predicts(config)
        return schedules.flow(shift), predicts, _Scaled(config["num_train_timesteps"]), False
    if config.get("timestep_type", "discrete") != "discrete":
        raise ValueError(f"source: {name} has timestep_type={config['timestep_type']!r}, expected 'discrete'")
    return _variance_preserving(scheduler), _predicts(config), _same, False


def _variance_preserving(scheduler: Any) -> Schedule:
    config = scheduler.config
    ends = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    if config.get("trained_betas") is not None:
        schedule = schedules.from_betas(config["trained_betas"])
    elif config["beta_schedule"] == "linear":
        schedule = schedules.vp_linear(*ends)
    elif config["beta_schedule"] == "scaled_linear":
        schedule = schedules.vp_scaled_linear(*ends)
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        schedule = schedules.vp_cosine(ends[0])
    elif config["beta_schedule"] == "sigmoid":
        schedule = schedules.vp_sigmoid(*ends)
    else:
        schedule = schedules.from_betas(scheduler.betas)
    return schedules.zero_terminal_snr(schedule) if config.get("rescale_betas_zero_snr") else schedule


def _predicts(config: Any) -> str:
    name = config.get("prediction_type", "epsilon")
    if name not in PREDICTS:
        raise ValueError(f"source: the scheduler has prediction_type={name!r}, expected one of {', '.join(PREDICTS)}")
    return PREDICTS[name]


def _same(t: torch.Tensor) -> torch.Tensor:
    return t


def _c_noise(sigma: torch.Tensor) -> torch.Tensor:
    return sigma.log() / 4


class _Scaled:
    """t in [0, 1] to an index among training steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        return t * self.steps
