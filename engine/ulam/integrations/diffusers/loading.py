"""`Denoiser.from_diffusers`: a saved pipeline, or one in memory, as a network with its schedule and prediction."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ulam_kernels.arguments import described

from ...files import each_key_once, one_line
from ...models.weights import kinds_in_file
from ...schedules import Schedule
from .arguments import FLOATS
from .configuration import check_config, short
from .networks import MODELS, DiffusersNetwork, FluxNetwork, known, unwrapped
from .trained_schedule import SCHEDULERS, Trained, same, trained_on

PARTS = ("unet", "transformer")  # of a pipeline, one of which is the model


def network_from_diffusers(
    source: object, *, scheduler: object = None, variant: str | None = None, dtype: torch.dtype | None = None
) -> tuple[DiffusersNetwork, Schedule, str]:
    """(network, schedule, predicts) of `source`: a model of `networks.MODELS` with the schedule that it was trained on.

    source: the folder of a saved pipeline (``model_index.json``, ``unet/`` or ``transformer/``, ``scheduler/``, or the
    files of both in the folder itself), the folder of a saved model beside a folder ``scheduler/``, a pipeline in
    memory, whose model is then shared, or a model in memory; models may be compiled, averaged or in DataParallel.
    scheduler: a scheduler of diffusers to read in place of the source's own, or what `declared` makes; a model in
    memory has none.
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
    in this list, weights that are missing, incomplete or pickled, an invalid value in a configuration (named by its
    key), no diffusers.
    """
    if scheduler is not None and not isinstance(scheduler, (_diffusers().SchedulerMixin, Trained)):
        if isinstance(scheduler, type):
            own = scheduler.__name__
            raise TypeError(f"scheduler: got the class {own}, expected an instance, such as {own}()")
        raise TypeError(f"scheduler: got {type(scheduler).__name__}, expected a scheduler of diffusers")
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w.-]{1,100}", variant)):
        kind = ValueError if isinstance(variant, str) else TypeError
        raise kind(f"variant: got {described(variant)}, expected a name such as 'fp16', or None")
    if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype not in FLOATS):
        raise TypeError(f"dtype: got {described(dtype)}, expected torch.float32, bfloat16, float16, float64, or None")
    argument = "source" if scheduler is None else "scheduler"  # which of them the schedule comes from
    if isinstance(source, (str, os.PathLike)):
        model, scheduler = _from_folder(Path(source), scheduler, variant, dtype)
    else:
        if variant is not None or dtype is not None:
            came = f"{described(variant)}, {described(dtype)}"
            raise ValueError(f"variant, dtype: got {came}, expected None but for folders: others bring their weights")
        model, scheduler = _from_memory(source, scheduler)
    inner = unwrapped(model)
    name = known(inner, MODELS)
    if name is None:
        raise ValueError(f"source: got a model {type(inner).__name__}, expected one of {', '.join(MODELS)}")
    channels, out = inner.config["in_channels"], inner.config["out_channels"] or inner.config["in_channels"]
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"source: got a {name} that reads {channels} channels and returns {out}, expected as many or twice as many"
        )
    trained = scheduler if isinstance(scheduler, Trained) else trained_on(scheduler, argument)
    schedule, predicts, clock, negated = trained
    if name == "FluxTransformer2DModel":
        if schedule.kind != "flow":
            came = repr(schedule) if isinstance(scheduler, Trained) else type(scheduler).__name__
            raise ValueError(f"scheduler: got {came}, expected one of flow matching for {name}")
        return FluxNetwork(model, same, negated), schedule, predicts
    return DiffusersNetwork(model, clock, negated), schedule, predicts


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError:
        raise ImportError(
            "diffusers: got no such package, expected it for from_diffusers: pip install 'ulam[diffusers]'"
        ) from None
    return diffusers


def _from_memory(source: object, scheduler: Any) -> tuple[Any, Any]:
    """(model, scheduler) of a pipeline, or of a model beside a scheduler."""
    came = type(source).__name__
    if isinstance(unwrapped(source), _diffusers().ModelMixin):
        if scheduler is None:
            raise TypeError(
                f"source: got {came} alone, expected a pipeline, or also scheduler=, the one that it was trained with"
            )
        return source, scheduler
    if not isinstance(source, _diffusers().DiffusionPipeline):
        rather = ": the model, after ema.copy_to(model.parameters())" if came == "EMAModel" else ""
        raise TypeError(f"source: got {came}, expected a folder or a pipeline or model of diffusers{rather}")
    model = next((part for part in (getattr(source, name, None) for name in PARTS) if part is not None), None)
    scheduler = getattr(source, "scheduler", None) if scheduler is None else scheduler
    if model is None or scheduler is None:
        missing = "unet or transformer" if model is None else "scheduler"
        raise ValueError(f"source: got a {came} without a {missing}, expected a pipeline with one")
    return model, scheduler


def _from_folder(folder: Path, scheduler: Any, variant: str | None, dtype: torch.dtype | None) -> tuple[Any, Any]:
    """(model, scheduler) of the folder of a saved pipeline, or of a model beside its scheduler's."""
    model, beside = _places(folder)
    if scheduler is None:
        scheduler = _load_scheduler(beside)
    return _load_model(model, variant, dtype), scheduler


def has_scheduler(folder: Path) -> bool:
    """Whether a folder brings the schedule of its model. Raises as `network_from_diffusers`."""
    return _places(folder)[1].is_dir()


def clip_of(folder: Path) -> float | None:
    """To which size the scheduler of a folder clips the data, None where it does not. Raises as for the network."""
    config = _load_scheduler(_places(folder)[1]).config
    return float(config.get("clip_sample_range", 1.0)) if config.get("clip_sample") else None


def _places(folder: Path) -> tuple[Path, Path]:
    """The folders of a model and of its scheduler in the folder of a pipeline, or for that of a model."""
    if not folder.is_dir():
        came = str(folder) if str(folder).isprintable() else short(str(folder))
        raise NotADirectoryError(f"source: got {came}, expected a folder: nothing is fetched from the network")
    if (folder / "model_index.json").is_file():
        index = _json(folder / "model_index.json")
        present = [name for name in PARTS if index.get(name) not in (None, [None, None])]
        if not present:
            path = folder / "model_index.json"
            raise ValueError(f"source: got {path} with neither unet nor transformer, expected one of them")
        return _place(folder, present[0], "config.json"), _place(folder, "scheduler", "scheduler_config.json")
    if (folder / "config.json").is_file():
        beside = (folder / "scheduler_config.json").is_file()
        return folder, folder if beside else folder.resolve().parent / "scheduler"
    raise FileNotFoundError(
        f"source: got {folder} with no model_index.json and no config.json, expected a saved pipeline or model, or a "
        "network of your own (--model file.py:factory --weights FILE; in Python ulam.Denoiser(net, ...))"
    )


def _place(folder: Path, part: str, config: str) -> Path:
    """Where a part of a pipeline lies: in a folder of its own, else, as diffusers reads it, beside model_index.json."""
    flat = not (folder / part).is_dir() and (folder / config).is_file()
    return folder if flat else folder / part


def _load_scheduler(folder: Path) -> Any:
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"source: got no file {path}, expected one, or scheduler= beside the folder of a model")
    made = _class(path, SCHEDULERS)
    check_config(_json(path), made.__name__, "source", f" in {path}")
    try:
        return made.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever the configuration provokes
        raise ValueError(f"source: got {path} ({one_line(error)}), expected a valid {made.__name__}") from error


def _load_model(folder: Path, variant: str | None, dtype: torch.dtype | None) -> Any:
    made = _class(folder / "config.json", MODELS)
    kinds = _kinds_in_folder(folder, variant)
    try:
        model, report = made.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=_diffusers().utils.is_accelerate_available(),  # its default, without a log of three lines
            output_loading_info=True,
        )
    except Exception as error:  # whatever the files provoke
        raise ValueError(f"source: got {folder} ({one_line(error)}), expected a model that diffusers loads") from error
    if lost := [*report["missing_keys"], *report["mismatched_keys"]]:
        raise ValueError(
            f"source: got weights in {folder} that lack {len(lost)} of the model's, such as {lost[0]}, expected all"
        )
    if more := sorted(report["unexpected_keys"]):
        raise ValueError(
            f"source: got {len(more)} weights in {folder} that the model of its config.json does not have, such as "
            f"{more[0]:.80}, expected those of the model alone"
        )
    _check_kinds(folder, kinds, model.state_dict())
    return model


# ------------------------------------------------------------------------------------------------ weights' files


def _check_kinds(folder: Path, kinds: dict[str, str], own: dict[str, torch.Tensor]) -> None:
    """Raise ValueError for codes or flags in place of the model's numbers; a name of old, which diffusers changes, is a
    number's.
    """
    for name, kind in kinds.items():
        wanted = "float" if name not in own or own[name].is_floating_point() else kind
        if kind != wanted:
            raise ValueError(
                f"source: got {kind} weights {name:.80} in {folder}, expected {wanted} ones like the model's"
            )


def _kinds_in_folder(folder: Path, variant: str | None) -> dict[str, str]:
    """The kinds of the model's weights by name, as they are in its files: see `models.weights.kinds_in_file`.

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
            kinds = kinds_in_file(path)
        for name, kind in kinds.items():
            if kind == "complex":
                raise ValueError(f"source: got complex weights {name} in {path}, expected real ones like the model's")
        if kinds and (lost := [name for name in names if name not in kinds]):
            raise ValueError(f"source: got {index} with {lost[0]:.80} in {path.name}, expected the file that holds it")
        if twice := sorted(kinds.keys() & found.keys()):
            raise ValueError(f"source: got {twice[0]:.80} in two files of {folder}, expected it in one")
        found |= kinds
    return found


def _shards(folder: Path, index: Path) -> dict[Path, list[str]]:
    """The files of sharded weights, and the names that the index finds in each."""
    shards = _json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError(f"source: got weight_map {short(shards)} in {index}, expected names of files by weight")
    if pickled := sorted({shard for shard in shards.values() if not shard.endswith(".safetensors")}):
        raise ValueError(f"source: got {pickled[0]} in {index}, expected safetensors: pickles are not opened")
    files: dict[Path, list[str]] = {}
    for name, shard in sorted(shards.items()):
        files.setdefault(folder / shard, []).append(name)
    return files


def _without_weights(folder: Path, whole: Path) -> Exception:
    if pickled := sorted(path.name for path in folder.glob("*.bin")):
        return ValueError(
            f"source: got pickled weights ({pickled[0]}) in {folder}, expected safetensors: pickles are not opened, "
            f"ulam convert {folder / pickled[0]} {whole} makes them safetensors"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    there = f"only {', '.join(others)}, expected variant= to name one" if others else "expected safetensors there"
    return FileNotFoundError(f"source: got no weights {whole}, {there}")


# ----------------------------------------------------------------------------------------------- configurations


def _class(path: Path, allowed: Any) -> Any:
    """The class of diffusers that this configuration names, if it is one of `allowed`."""
    if not path.is_file():
        raise FileNotFoundError(f"source: got no file {path}, expected a configuration there")
    config = _json(path)
    name = str(config.get("_class_name"))
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"  # as DiT was saved before it had a class of its own
    if name not in allowed:
        name = name if name.isidentifier() and len(name) < 100 else short(name)
        raise ValueError(f"source: got {path} of class {name}, expected one of {', '.join(allowed)} (_class_name)")
    return getattr(_diffusers(), name)


def _json(path: Path) -> dict[str, Any]:
    """A configuration. It may hold infinities, as diffusers writes them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=each_key_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"source: got {path} ({one_line(error)}), expected a JSON object") from None
    if not isinstance(content, dict):
        raise ValueError(f"source: got {path} with a {type(content).__name__}, expected a JSON object")
    return content
