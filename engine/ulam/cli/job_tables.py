"""Sampling jobs as tables of plain values: what `ulam sample` is asked for in options, or in a TOML file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from ulam_kernels.arguments import described

from .. import samplers
from ..conditioning import Shared, shared
from ..denoiser import Sampler
from ..files import one_line, parse_toml
from ..models.built_in import Model
from ..programs.clip import DynamicThreshold

DEFAULT_CHAINS, DEFAULT_SAMPLER, DEFAULT_STEPS = 64, "ddim", 50
MOST_CHAINS, MOST_LABELS = 10**9, 100_000
# Keys of a job; all others are arguments of its sampler.
KEYS = (
    "sampler", "chains", "first", "labels", "guidance", "guidance_interval", "guidance_rescale", "seed", "priority",
    "weight", "deadline", "known", "mask",
)  # fmt: skip
PICTURES = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # none that runs another program
EIGHT_BITS, SIXTEEN_BITS = (
    ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"),
    ("I;16", "I;16B", "I;16L", "I"),
)
EXIF_ORIENTATION = 0x0112
SUBMITTED = ("guidance_interval", "guidance_rescale", "priority", "weight", "deadline")


@dataclass(frozen=True, eq=False)
class JobSpec:
    """One job, checked as far as that needs no engine. ``submit``: the arguments of :meth:`ulam.Engine.submit`."""

    sampler: Sampler
    chains: range
    labels: list[int] | None
    submit: dict[str, Any] = field(repr=False)

    @property
    def cond(self) -> dict[str, torch.Tensor]:
        """The network's further arguments, ``[chains, ...]``."""
        found: dict[str, torch.Tensor] = self.submit.get("cond", {})
        return found


def read_jobs(path: Path, defaults: Mapping[str, Any], model: Model, device: torch.device) -> list[JobSpec]:
    """The ``[[job]]`` tables of a TOML file, each over the ``defaults``.

    Raises:
        OSError, ValueError, TypeError: no such file, no TOML, or a job that cannot be, by its number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"jobs: no file {path}")
    try:
        data = parse_toml(f"jobs: {path}", path.read_bytes().decode())  # line ends as they are
    except UnicodeDecodeError as error:
        raise ValueError(f"jobs: {path}: got {error}, expected TOML") from None
    if unknown := data.keys() - {"job"}:
        raise ValueError(f"jobs: {path} has {sorted(unknown)[0]!r}, expected [[job]] tables only")
    tables = data.get("job")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"jobs: {path} has no [[job]] table")
    specs = []
    for number, table in enumerate(tables, 1):
        try:
            named = {key.replace("-", "_"): value for key, value in table.items()}
            if len(named) < len(table):
                raise ValueError("keys: got one spelled with - and with _, expected one of them")
            specs.append(make_job({**defaults, **named}, model, device))
        except (ValueError, TypeError) as error:
            raise type(error)(f"job {number}: {error}") from None
    return specs


def make_job(table: Mapping[str, Any], model: Model, device: torch.device) -> JobSpec:
    """A job from its keys; those of :data:`KEYS`, and the sampler's arguments.

    Raises:
        ValueError, TypeError, OSError: a value that cannot be, named.
    """
    count, first = _integer(table, "chains", DEFAULT_CHAINS), _integer(table, "first", 0)
    if not 1 <= count <= MOST_CHAINS:
        raise ValueError(f"chains: got {count}, expected 1 to 10^9")
    if first < 0:
        raise ValueError(f"first: got {first}, expected a chain's number, at least 0")
    labels = _chain_labels(table.get("labels"), model, count)
    submit = {name: table[name] for name in SUBMITTED if table.get(name) is not None}
    for name in ("weight", "deadline"):
        if name in submit:
            submit[name] = _number(name, submit[name])
    submit |= {"seed": _integer(table, "seed", 0), **_conditioning(table.get("guidance"), model, labels, count, device)}
    for name in ("known", "mask"):
        if table.get(name) is not None:
            submit[name] = _image(name, table[name], model.shape)
    sampler = make_sampler(
        table.get("sampler", DEFAULT_SAMPLER), {key: value for key, value in table.items() if key not in KEYS}
    )
    return JobSpec(sampler, range(first, first + count), labels, submit)


def _integer(table: Mapping[str, Any], name: str, default: int) -> int:
    value = table.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, expected a whole number")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**1000:
        raise TypeError(f"{name}: got {value!r:.60}, expected a finite number")
    return value


# ------------------------------------------------------------------------------------------------ samplers


def sampler_names() -> dict[str, Any]:
    """The samplers by their names in lower case."""
    found = {name.lower(): getattr(samplers, name) for name in samplers.__all__}
    return {name: make for name, make in found.items() if hasattr(make, "program") and name != "gridsampler"}


def make_sampler(name: object, arguments: Mapping[str, Any]) -> Sampler:
    """A sampler by name, with its arguments as plain values; 50 steps where nothing says how many.

    Lists become tuples. ``threshold`` (a quantile, or quantile and cap) is ``clip`` by
    :class:`ulam.samplers.DynamicThreshold`.

    Raises:
        ValueError, TypeError: no such sampler, an argument that it does not take, or a value that cannot be.
    """
    known = sampler_names()
    if not isinstance(name, str) or name.lower() not in known:
        raise ValueError(f"sampler: got {name!r}, expected one of {', '.join(sorted(known))}")
    make = known[name.lower()]
    given = {key: _plain(value) for key, value in arguments.items() if value is not None}
    if (threshold := given.pop("threshold", None)) is not None:
        if "clip" in given:
            raise ValueError("threshold: got one beside clip, expected one of them")
        numbers = threshold if isinstance(threshold, tuple) else (threshold,)
        if not 1 <= len(numbers) <= 2:
            raise ValueError(f"threshold: got {described(threshold)}, expected a quantile, or quantile and cap")
        given["clip"] = DynamicThreshold(*numbers)
    taken = {option.name: option for option in fields(make) if option.init}
    if strange := given.keys() - taken.keys():
        raise ValueError(f"{sorted(strange)[0]}: the sampler {name} does not take it")
    lists = any(isinstance(given.get(key), tuple) for key in ("timesteps", "sigmas", "levels"))
    says_how_many = lists or "steps" in given or "levels" in given
    if "steps" in taken and "levels" not in taken and not says_how_many and not getattr(make, "every_step", False):
        given["steps"] = DEFAULT_STEPS
    if missing := [n for n, o in taken.items() if o.default is o.default_factory is MISSING and n not in given]:
        raise ValueError(f"{missing[0]}: the sampler {name} needs it")
    made: Sampler = make(**given)
    return made


def parse_option(text: str) -> tuple[str, Any]:
    """``name=value`` with a number, true, false, none, numbers in a row (1,2,3) or a word. Raises ValueError."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"got {text!r}, expected name=value")
    return name, _value(value.strip())


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    if "," in text:
        return tuple(_value(part.strip()) for part in text.split(",") if part.strip())
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _plain(value: Any) -> Any:
    return tuple(_plain(part) for part in value) if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------------------------- labels, guidance, images


def parse_labels(text: str) -> list[int]:
    """`0-9`, `3,1,4` and mixtures of both. Raises ValueError."""
    labels: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if match is None or (match[2] and not 0 <= int(match[2]) - int(match[1]) < MOST_LABELS):
            raise ValueError(f"labels: got {text!r}, expected labels such as 0-9 or 3,1,4")
        labels += range(int(match[1]), int(match[2] or match[1]) + 1)
    return labels


def _chain_labels(given: object, model: Model, chains: int) -> list[int] | None:
    """One label a chain, the given ones over and over."""
    if given is None:
        return None
    labels: list[Any] = parse_labels(given) if isinstance(given, str) else given if isinstance(given, list) else [given]
    if not labels or not all(type(label) is int and -(1 << 63) <= label < 1 << 63 for label in labels):
        raise TypeError(f"labels: got {given!r:.60}, expected whole numbers of 64 bits, or text such as 0-9")
    if model.classes is not None and (unknown := [y for y in labels if not 0 <= y < model.classes]):
        raise ValueError(f"labels: {unknown[0]} is unknown to {model.name}, which knows 0 to {model.classes - 1}")
    return [labels[i % len(labels)] for i in range(chains)]


def _conditioning(
    guidance: Any, model: Model, labels: list[int] | None, chains: int, device: torch.device
) -> dict[str, Any]:
    """The arguments of `submit` for labels and guidance."""
    null = model.null_class
    if labels is None:
        if guidance is not None:
            raise ValueError("guidance: needs labels")
        if null is None:
            return {}
        labels = [null] * chains
    cond = {model.label: torch.tensor(labels, device=device)}
    if guidance is None:
        return {"cond": cond}
    if null is None:
        raise ValueError("guidance: needs null-class, the label that means no class")
    return {"cond": cond, "guidance": guidance, "uncond": {name: torch.full_like(y, null) for name, y in cond.items()}}


def _pixels(name: str, path: Path, shape: tuple[int, ...], grey: bool) -> npt.NDArray[np.float32]:
    """[H, W] or [H, W, 3] in [0, 1]. The size is looked at before anything is decoded."""
    with Image.open(path, formats=PICTURES) as picture:
        if picture.size != (shape[2], shape[1]):
            came, expected = f"{picture.width}x{picture.height}", f"{shape[2]}x{shape[1]}"
            raise ValueError(f"{name}: got {path} of {came} pixels, expected {expected} like the samples")
        if (strange := _not_as_it_lies(picture)) is not None:
            raise ValueError(f"{name}: got {path} {strange}")
        if picture.mode in SIXTEEN_BITS:
            wide = np.asarray(picture, dtype=np.float64) / 65535
            if not ((wide >= 0) & (wide <= 1)).all():
                raise ValueError(f"{name}: got {path} with values beyond 16 bits, expected 8 or 16 bits a pixel")
            return (wide if grey else np.repeat(wide[:, :, None], 3, axis=2)).astype(np.float32)
        if picture.mode not in EIGHT_BITS:
            raise ValueError(f"{name}: got {path} of mode {picture.mode}, expected 8 or 16 bits a pixel")
        return np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.float32) / np.float32(255)


def _not_as_it_lies(picture: Image.Image) -> str | None:
    """How a picture shows something else than the numbers that lie in it, and what is expected; None where it does not.

    Pillow hands over 16-bit numbers, and those of TIFFs with other widths or signs or with black and white changed
    about, as they lie in the file.
    """
    if picture.format != "MPO" and (frames := getattr(picture, "n_frames", 1)) > 1:  # JPEGs may hold previews
        return f"with {frames} pictures, expected one"
    if picture.mode in SIXTEEN_BITS and isinstance(picture, TiffImageFile):
        tags = picture.tag_v2
        bits, kind, photometric = (tags.get(tag, usual) for tag, usual in ((258, (1,)), (339, (1,)), (262, 1)))
        if (*bits, *kind) != (16, 1):
            return f"of {bits[0]} {'unsigned' if kind[0] == 1 else 'signed'} bits a pixel, expected 8, or 16 unsigned"
        if photometric != 1:
            return "of 16 bits a pixel where 0 is white, expected 0 to be black"
    if picture.has_transparency_data and picture.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        return "with transparent pixels, whose colours are not seen, expected an opaque picture"
    if (turned := picture.getexif().get(EXIF_ORIENTATION, 1)) != 1:
        return f"that its EXIF orientation {turned} turns or mirrors, expected one that is stored as it is seen"
    return None


def _image(name: str, path: object, shape: tuple[int, ...]) -> Shared:
    """A picture file for all chains: known in [-1, 1]; a mask in [0, 1], white where the image is known."""
    if not isinstance(path, (str, Path)) or not Path(path).is_file():
        raise FileNotFoundError(f"{name}: no file {path}")
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"{name}: samples of shape {shape} are no pictures")
    try:
        with warnings.catch_warnings():  # the size is looked at before anything is decoded
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            pixels = _pixels(name, Path(path), shape, grey=name == "mask" or shape[0] == 1)
    except Exception as error:  # a damaged picture raises what its reader happens to meet
        if str(error).startswith(f"{name}: "):
            raise
        raise ValueError(f"{name}: got {path}, which is no picture ({one_line(error)})") from None
    tensor = torch.from_numpy(pixels).reshape(*shape[1:], -1).permute(2, 0, 1).expand(shape).contiguous()
    return shared(tensor if name == "mask" else tensor * 2 - 1)
