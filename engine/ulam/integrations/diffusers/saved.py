"""The pipelines of diffusers that the command line samples: those told by a class or by nothing."""

from __future__ import annotations

from typing import Any

from ...cli.models import Model
from .loading import denoiser_from_diffusers

LABEL = "class_labels"


def saved_model(folder: str, shape: tuple[int, ...] | None, null_class: int | None) -> Model:
    """The model in the folder of a saved pipeline; shape: instead of the one in its configuration.

    Raises ValueError for a model that needs more than a label, which a command line cannot give, and as
    :func:`denoiser_from_diffusers`, in one line.
    """
    denoiser = denoiser_from_diffusers(folder)
    net: Any = denoiser.net
    if more := [name for name in net.needs if name != LABEL]:
        raise ValueError(
            f"model: the {type(net.model).__name__} in {folder} needs {', '.join(more)}: sample it from Python, "
            "ulam.sample(ulam.Denoiser.from_diffusers(folder), ..., cond=...)"
        )
    config = net.model.config
    classes = config.get("num_embeds_ada_norm") or config.get("num_class_embeds") if LABEL in net.needs else None
    if "num_embeds_ada_norm" in config and null_class is None:
        null_class = classes  # DiT's row behind the classes
    return Model(folder, denoiser, shape or _shape(config), classes, null_class, label=LABEL)


def _shape(config: Any) -> tuple[int, ...]:
    """[C, H, W] as a model was trained. Raises ValueError where its configuration does not say."""
    size = config.get("sample_size")
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"shape: needed with a model whose sample_size is {size!r}, such as --shape 3,32,32")
    return (config["in_channels"], *sides)
