"""The models that a name chooses: a denoiser with the shape of its samples and the labels that it takes."""

from __future__ import annotations

from dataclasses import dataclass

from .. import schedules
from ..denoiser import Denoiser
from .digits import BETA_END, BETA_START, NULL_CLASS, TRAIN_STEPS, load_digits


@dataclass(frozen=True)
class Model:
    """A denoiser ready to sample, and the ``[C, H, W]`` of its samples.

    ``label`` is the name in cond of its class label; ``classes`` and ``null_class`` are None where it takes none.
    ``labelled``: whether it cannot do without a label. ``clip``: to which size its own scheduler clips the data.
    """

    name: str
    denoiser: Denoiser
    shape: tuple[int, ...]
    classes: int | None = None
    null_class: int | None = None
    label: str = "y"
    labelled: bool = False
    clip: float | None = None


def digits() -> Model:
    """The class-conditional digits U-Net: labels 0 to 9, and 10 for none."""
    denoiser = Denoiser(load_digits(), schedules.vp_linear(TRAIN_STEPS, BETA_START, BETA_END), predicts="eps")
    return Model("digits", denoiser, (1, 28, 28), classes=NULL_CLASS, null_class=NULL_CLASS)


BUILT_IN = {"digits": digits}
