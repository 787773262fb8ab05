"""Models in folders that diffusers saved, as a command line can sample them: told the time, and a label at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ulam_kernels.arguments import described

from ..denoiser import Denoiser
from ..integrations.diffusers.loading import clip_of, has_scheduler
from ..integrations.diffusers.networks import LABEL
from ..integrations.diffusers.trained_schedule import declared
from ..models.built_in import Model
from ..schedules import Schedule


def brings_schedule(folder: str) -> bool:
    """Whether a folder has a scheduler, or a model's one beside it. Raises OSError, ValueError."""
    try:
        return has_scheduler(Path(folder))
    except (OSError, ValueError) as error:
        raise _of_option(error) from error


def saved_model(
    folder: str,
    shape: tuple[int, ...] | None = None,
    schedule: Schedule | None = None,
    predicts: str | None = None,
    null_class: int | None = None,
) -> Model:
    """The model of a pipeline, or the model alone, that diffusers saved in a folder.

    shape: in place of the one in its configuration. schedule, predicts: of a model without a scheduler, see
    :func:`ulam.integrations.diffusers.trained_schedule.declared`. null_class: by default that of DiT.

    Raises ValueError for a model conditioned on more than a label, and for a null_class that it has not; else as
    :meth:`Denoiser.from_diffusers`.
    """
    scheduler, beside = (None, "") if schedule is None else (declared(schedule, predicts), ", scheduler=...")
    try:
        denoiser = Denoiser.from_diffusers(folder, scheduler=scheduler)
    except (OSError, TypeError, ValueError) as error:
        raise _of_option(error) from error
    net: Any = denoiser.net
    config, trained = net.config, _trained_shape(net.config)
    more = [name for name in net.needs if name != LABEL]
    vectors = LABEL in net.needs and config.get("class_embed_type") not in (None, "timestep")
    if more or vectors:
        wants, cond = more or ["labels that are vectors"], ", ".join(f"'{name}': ..." for name in net.needs)
        raise ValueError(
            f"model: got the {net.kind} in {folder}, which needs {', '.join(wants)}, expected one told a label at "
            f"most: sample it from Python, denoiser = ulam.Denoiser.from_diffusers({folder!r}{beside}) and "
            f"ulam.sample(denoiser, sampler, shape={trained or '(C, H, W)'}, chains=..., cond={{{cond}}})"
        )
    if (taken := shape or trained) is None:
        size = config.get("sample_size")
        raise ValueError(f"shape: got none for a model whose sample_size is {size!r}, expected --shape 3,32,32 or so")
    classes, rows = _classes(config)
    if null_class is None and rows != classes:
        null_class = classes  # DiT's row behind the classes
    elif null_class is not None and rows is not None and not 0 <= null_class < rows:
        raise ValueError(f"null-class: got {described(null_class)}, expected 0 to {rows - 1}, the labels of {folder}")
    clip = clip_of(Path(folder)) if schedule is None else None
    return Model(folder, denoiser, taken, classes, null_class, label=LABEL, labelled=LABEL in net.needs, clip=clip)


def _classes(config: Any) -> tuple[int | None, int | None]:
    """(classes, labels) of a model: how many, None where any number is one."""
    if (classes := config.get("num_embeds_ada_norm")) is not None:
        return classes, classes + 1
    classes = config.get("num_class_embeds") if config.get("class_embed_type") is None else None
    return classes, classes


def _trained_shape(config: Any) -> tuple[int, ...] | None:
    """[C, H, W] as a model was trained, None where its configuration does not say."""
    size = config.get("sample_size")
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        return None
    return (config["in_channels"], *sides)


def _of_option(error: Exception) -> Exception:
    """An error about ``source`` as one about the option ``model``."""
    said = str(error)
    return type(error)(f"model: {said.removeprefix('source: ')}") if said.startswith("source: ") else error
