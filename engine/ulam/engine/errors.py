"""What an engine raises beside TypeError and ValueError for its arguments, and how it warns."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .job import Job


OURS = ("ulam", "ulam_kernels", "torch")  # whose frames a warning is not about
GRADIENTS = "options=ulam.NetworkOptions(gradients=True)"


class NetworkError(RuntimeError):
    """The network raised; ``__cause__`` is what. The engine is as before the call, going on repeats it.

    ``chains`` are the ids of the chains that were in the batch, by job. ``wants_gradients``: it takes gradients inside,
    which it has with ``NetworkOptions(gradients=True)`` alone.
    """

    def __init__(self, cause: BaseException, chains: dict[Job, list[int]], wants_gradients: bool = False) -> None:
        ids = sorted(chain for of_job in chains.values() for chain in of_job)
        shown = ", ".join(map(str, ids[:8])) + (f", ... ({len(ids)} in all)" if len(ids) > 8 else "")
        told = f"{type(cause).__name__}: {cause}"
        if wants_gradients:
            told = f"got one that takes gradients inside ({' '.join(told.split()):.80}), expected {GRADIENTS}"
        super().__init__(f"net: {told} (chains {shown})")
        self.chains, self.wants_gradients = chains, wants_gradients


class QueueFull(RuntimeError):
    """A bounded queue has no room for a job; nothing has changed."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning at the line that called into this package, however deep inside it is given, and by torch.compile."""
    frame, depth = sys._getframe(1), 3
    while frame.f_back is not None and frame.f_back.f_globals.get("__name__", "").split(".")[0] in OURS:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth)
