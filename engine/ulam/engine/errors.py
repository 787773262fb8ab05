"""What an engine raises besides TypeError and ValueError for its arguments, and how it warns."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import Job


OURS = ("ulam", "ulam_kernels", "torch")  # packages whose frames a warning skips
GRADIENTS = "options=ulam.NetworkOptions(gradients=True)"


class NetworkError(RuntimeError):
    """The network raised ``__cause__``. The engine is as before the call; running on repeats it.

    ``chains``: the ids of the chains in the batch, by job. ``wants_gradients``: the network takes gradients inside,
    which works only with ``NetworkOptions(gradients=True)``. ``way_out``: what most likely helps, or nothing.
    """

    def __init__(
        self,
        cause: BaseException,
        chains: dict[Job, list[int]],
        wants_gradients: bool = False,
        way_out: str = "",
    ) -> None:
        from ..evaluation import shortened, without_remarks  # not above: a scheduler needs no torch

        ids = sorted(chain for of_job in chains.values() for chain in of_job)
        shown = ", ".join(map(str, ids[:8])) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
        detail = f"{type(cause).__name__}: {cause}"
        said = without_remarks(detail)
        if wants_gradients:
            detail = f"got one that takes gradients inside ({shortened(said, 80)}), expected {GRADIENTS}"
        elif way_out:
            detail = f"got an error ({shortened(said, 160)}), expected {way_out}"
        super().__init__(f"net: {detail} (chains {shown})")
        self.chains, self.wants_gradients, self.way_out = chains, wants_gradients, way_out


class QueueFull(RuntimeError):
    """A bounded queue has no room for a job; nothing has changed."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called into this package, however deep inside the warning arises, also by torch.compile."""
    frame, depth = sys._getframe(1), 3
    while frame.f_back is not None and frame.f_back.f_globals.get("__name__", "").split(".")[0] in OURS:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
