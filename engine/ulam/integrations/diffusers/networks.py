"""Models of diffusers as networks ``net(x, t, **cond)``: the names of their conditioning, and what they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MODELS = {
    "UNet2DModel": ("class_labels",),
    "UNet2DConditionModel": (
        "encoder_hidden_states",
        "class_labels",
        "timestep_cond",
        "attention_mask",
        "encoder_attention_mask",
        "mid_block_additional_residual",
    ),
    "DiTTransformer2DModel": ("class_labels",),
    "SD3Transformer2DModel": ("encoder_hidden_states", "pooled_projections"),
    "FluxTransformer2DModel": ("encoder_hidden_states", "pooled_projections", "guidance"),
}
LABEL, LABEL_OF_ULAM = "class_labels", "y"  # two names for the same
STATES = ("encoder_hidden_states", "pooled_projections", "text_embeds", "image_embeds")  # meet the model's weights
ADDED = ("text_embeds", "time_ids", "image_embeds", "hint")  # of UNet2DConditionModel, by its addition_embed_type
NEEDS_ADDED = {
    "text_time": ("text_embeds", "time_ids"),
    "text_image": ("text_embeds", "image_embeds"),
    "image": ("image_embeds",),
    "image_hint": ("image_embeds", "hint"),
}

Clock = Callable[[torch.Tensor], torch.Tensor]


def known(part: object, names: Any) -> str | None:
    """The name of the first of a part's classes that is one of `names`, or None."""
    return next((kind.__name__ for kind in type(part).__mro__ if kind.__name__ in names), None)


def unwrapped(model: Any) -> Any:
    """The model inside of torch.compile, AveragedModel, DataParallel or DistributedDataParallel."""
    parts = model._modules if isinstance(model, torch.nn.Module) else {}
    inner = parts.get("_orig_mod", parts.get("module"))
    return model if inner is None else unwrapped(inner)


def takes(model: Any) -> tuple[str, ...]:
    """The names in cond that a model knows: those of `MODELS`, labels where it has an embedding of them."""
    kind = str(known(model, MODELS))
    labelled = kind == "DiTTransformer2DModel" or getattr(model, "class_embedding", None) is not None
    return tuple(name for name in MODELS[kind] if name != LABEL or labelled)


def needs(model: Any) -> tuple[str, ...]:
    """The names in cond that a model requires, by its class and configuration."""
    name, config = known(model, MODELS), model.config
    if name == "DiTTransformer2DModel":
        return ("class_labels",)
    if name == "SD3Transformer2DModel":
        return MODELS[name]
    if name == "FluxTransformer2DModel":
        return MODELS[name] if config["guidance_embeds"] else MODELS[name][:2]
    labels = ("class_labels",) if getattr(model, "class_embedding", None) is not None else ()
    if name == "UNet2DModel":
        return labels
    added = NEEDS_ADDED.get(str(config.get("addition_embed_type")), ())
    alone = "image_embeds" in added  # then the text states may be missing
    return (*(() if alone else ("encoder_hidden_states",)), *labels, *added)


class DiffusersNetwork(torch.nn.Module):
    """A model of diffusers, called as ``net(x, t, **cond)``: its output tensor ``[slots, C or 2C, H, W]``.

    cond: the tensors that the model's own forward takes by these names; those of ``added_cond_kwargs`` are given flat
    (``text_embeds``, ``time_ids``, ``image_embeds``, ``hint``). ``y`` is another name of ``class_labels``. What
    encoders made (`STATES`) is cast to the type of x, which is the model's. model: of a class in `MODELS`, which
    torch.compile or DataParallel may wrap. clock: from ulam's t to what the model is told. negated: whether the output
    changes sign. Raises TypeError for other names in cond, and for one that is missing.
    """

    def __init__(self, model: torch.nn.Module, clock: Clock, negated: bool) -> None:
        super().__init__()
        self.model, self.clock, self.negated = model, clock, negated
        inner = unwrapped(model)
        self.takes, self.needs = takes(inner), needs(inner)
        self.takes_added = known(inner, MODELS) == "UNet2DConditionModel"

    def forward(self, x: torch.Tensor, t: torch.Tensor, **cond: torch.Tensor) -> torch.Tensor:
        """The prediction [slots, C or 2C, H, W] for x [slots, C, H, W] at ulam's t [slots]."""
        if LABEL_OF_ULAM in cond and LABEL in self.takes:
            if LABEL in cond:
                raise TypeError(f"cond: got {LABEL} and {LABEL_OF_ULAM}, expected one of them")
            cond[LABEL] = cond.pop(LABEL_OF_ULAM)
        if missing := [name for name in self.needs if name not in cond]:
            came = ", ".join(sorted(cond)) or "none"
            raise TypeError(f"cond: got {came}, expected also {', '.join(missing)}, which {self.kind} needs")
        cond |= {name: cond[name].to(x.dtype) for name in STATES if name in cond}
        given: dict[str, Any] = {name: cond.pop(name) for name in self.takes if name in cond}
        if self.takes_added:
            added = {name: cond.pop(name) for name in ADDED if name in cond}
            if "image_embeds" in added:
                given.setdefault("encoder_hidden_states", None)  # models conditioned on an image alone
            given["added_cond_kwargs"] = added or None
        if cond:
            taken = ", ".join(self.takes + (ADDED if self.takes_added else ())) or "nothing"
            raise TypeError(f"cond: got {', '.join(sorted(cond))}, expected only what {self.kind} takes: {taken}")
        m = self.evaluate(x, self.clock(t), given)
        return -m if self.negated else m

    def evaluate(self, x: torch.Tensor, t: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        """The model's output; t: what the model is told of the time."""
        return self.model(x, timestep=t, return_dict=False, **given)[0]  # type: ignore[no-any-return]

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return unwrapped(self.model).config

    @property
    def kind(self) -> str:
        """The name of the model's class."""
        return type(unwrapped(self.model)).__name__


class FluxNetwork(DiffusersNetwork):
    """Flux on latents ``[slots, C, H, W]``, H and W even: packed two by two into ``[slots, H W / 4, 4C]``, and back.

    The model is told t in [0, 1], and the position of every token as in diffusers' pipeline: text at 0, images by row
    and column. Raises ValueError for odd sizes.
    """

    def evaluate(self, x: torch.Tensor, t: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        slots, channels, height, width = x.shape
        if height % 2 or width % 2:
            raise ValueError(f"shape: got {list(x.shape[1:])}, expected even height and width for {self.kind}")
        rows, columns = height // 2, width // 2
        packed = x.reshape(slots, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
        packed = packed.reshape(slots, rows * columns, 4 * channels)
        positions = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
        positions[..., 1] = torch.arange(rows, device=x.device, dtype=x.dtype)[:, None]
        positions[..., 2] = torch.arange(columns, device=x.device, dtype=x.dtype)
        text = torch.zeros(given["encoder_hidden_states"].shape[1], 3, device=x.device, dtype=x.dtype)
        ids = {"img_ids": positions.flatten(0, 1), "txt_ids": text}
        m = self.model(packed, timestep=t, return_dict=False, **ids, **given)[0]
        m = m.reshape(slots, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return m.reshape(slots, channels, height, width)  # type: ignore[no-any-return]
