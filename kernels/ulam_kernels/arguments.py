"""Checks of numbers, switches and choices: what came and what would be right, in one line, before any work is done."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import torch

LARGEST_FLOAT32 = float(torch.finfo(torch.float32).max)
FEW = 3  # members of a sequence in a message
LONGEST = 60  # characters of a value in a message
# What names are called in diffusers, k-diffusion and papers, in small letters without - and _, and our names for them.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("epsilon", "noise", "epsprediction", "noiseprediction"), ("eps",)),
    **dict.fromkeys(("sample", "xstart", "xzero", "xprediction", "startx", "data"), ("x0",)),
    **dict.fromkeys(("vprediction", "vpred"), ("v",)),
    "velocity": ("v", "flow"),
    **dict.fromkeys(("flowprediction", "rectifiedflow", "flowmatching", "vectorfield", "rf"), ("flow",)),
    **dict.fromkeys(("edm", "f"), ("raw", "heun")),
    **dict.fromkeys(("previoussample", "mu"), ("mean",)),
    **dict.fromkeys(("dpm++", "dpmpp", "dpm++2m", "dpmpp2m", "dpmsolver++", "dpmmultistep"), ("dpmsolverpp",)),
    **dict.fromkeys(("eulera", "ancestral"), ("eulerancestral",)),
    **dict.fromkeys(("plms", "ipndm"), ("pndm",)),
    **dict.fromkeys(("linear", "ddpm"), ("vplinear",)),
    **dict.fromkeys(("cosine", "squaredcoscapv2"), ("vpcosine",)),
    "scaledlinear": ("vpscaledlinear",),
    "sigmoid": ("vpsigmoid",),
    **dict.fromkeys(("uniform", "even"), ("linspace",)),
    **dict.fromkeys(("fixedsmall", "fixedsmalllog", "small"), ("posterior",)),
    **dict.fromkeys(("fixedlarge", "fixedlargelog", "large"), ("beta",)),
    **dict.fromkeys(("long", "int", "int64", "discrete", "steps"), ("index",)),
    **dict.fromkeys(("bfloat16", "bf"), ("bf16",)),
    **dict.fromkeys(("float16", "half"), ("fp16",)),
    "gpu": ("cuda",),
}


def described(value: object) -> str:
    """A value in a few words, on one line."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} {list(value.shape)}"
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, type):
        return f"the class {value.__name__} itself, not {value.__name__}(...)"
    if isinstance(value, int) and value.bit_length() > 4 * LONGEST:  # Python prints no number of thousands of digits
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, (int, float, complex, str)):
        text = repr(value)
        return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if isinstance(value, (tuple, list)) and len(value) <= FEW and not any(isinstance(v, (tuple, list)) for v in value):
        return ", ".join(map(described, value)).join("()" if isinstance(value, tuple) else "[]")
    return type(value).__name__


def is_real(value: object) -> bool:
    """Whether it is one real number, of Python or NumPy; a bool is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def as_float(value: Any) -> float:
    """A real number as a float, infinite where floats end."""
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value > 0 or -1)


def whole(value: object, name: str, least: int, most: int) -> int:
    """The value as an int; a bool, a tensor and a float are none.

    Raises:
        TypeError, ValueError: not a whole number, or outside [least, most].
    """
    if type(value) is int and least <= value <= most:  # the common case, at a tenth of the time
        return value
    right = f"expected a whole number from {least} to {most}"
    if isinstance(value, (bool, torch.Tensor)) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: got {described(value)}, {right}")
    try:
        number = operator.index(value)
    except TypeError:  # an array of several
        raise TypeError(f"{name}: got {described(value)}, {right}") from None
    if not least <= number <= most:
        raise ValueError(f"{name}: got {described(number)}, expected {least} to {most}")
    return number


def real(value: object, name: str, right: str = "a finite number", most: float = LARGEST_FLOAT32) -> float:
    """The value as a float of at most ``most`` in size.

    Raises:
        TypeError, ValueError: not a real number (a bool and a tensor are none), NaN, or too large.
    """
    if type(value) is float and -most <= value <= most:
        return value
    number = _float(value, name, right)
    if not abs(number) <= most:
        raise ValueError(f"{name}: got {described(value)}, expected {right}")
    return number


def positive(value: object, name: str) -> float:
    """As :func:`real`, above 0."""
    right = "positive finite numbers"
    number = real(value, name, right)
    if not number > 0:
        raise ValueError(f"{name}: got {described(value)}, expected {right}")
    return number


def bounds(lo: object, hi: object) -> tuple[float, float]:
    """lo <= hi, each a number or infinite."""
    if type(lo) is float and type(hi) is float and lo <= hi:
        return lo, hi
    low, high = (_float(value, name, "a number or an infinity") for name, value in (("lo", lo), ("hi", hi)))
    if not low <= high:
        raise ValueError(f"lo, hi: got {described(lo)}, {described(hi)}, expected lo <= hi")
    return low, high


def switch(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {described(value)}, expected True or False")
    return value


def choice(value: object, name: str, choices: Iterable[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name}: got {described(value)}, expected {one_of(value, choices)}")
    return value


def one_of(value: object, choices: Iterable[str]) -> str:
    """ "one of a, b, c" for an error about ``value``, with the one that a name most likely means."""
    names = list(choices)
    meant = _either(value, names) or likely(value, names)
    return f"one of {', '.join(names)}" + (f" (did you mean {meant}?)" if meant is not None else "")


def _either(value: object, choices: list[str]) -> str | None:
    """The choices that a name from elsewhere may mean, where there are several."""
    if not isinstance(value, str) or len(value) > LONGEST or _spelling(value) in choices:
        return None
    found = [choice for choice in choices if _spelling(choice) in ELSEWHERE.get(_spelling(value), ())]
    return " or ".join(found) if len(found) > 1 else None


def likely(value: object, choices: Iterable[str]) -> str | None:
    """The choice that a name most likely means: spelled otherwise, called so elsewhere (`ELSEWHERE`), or mistyped."""
    if not isinstance(value, str) or not value or len(value) > LONGEST:
        return None
    spelled = {_spelling(choice): choice for choice in choices}
    name = _spelling(value)
    for known in (name, *ELSEWHERE.get(name, ())):
        if known in spelled:
            return spelled[known]
    from difflib import get_close_matches  # for errors alone

    near = get_close_matches(name, spelled, 1, 0.7)
    return spelled[near[0]] if near else None


def _spelling(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter not in "-_ .")


def _float(value: Any, name: str, right: str) -> float:
    if not is_real(value):
        raise TypeError(f"{name}: got {described(value)}, expected {right}")
    try:
        number = float(value)
    except OverflowError:
        raise OverflowError(f"{name}: got {described(value)}, expected {right}") from None
    if math.isnan(number):
        raise ValueError(f"{name}: got nan, expected {right}")
    return number
