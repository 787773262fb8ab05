"""The throughput of a network and a sampler on this machine: ulam beside plain PyTorch, and what bounds both.

`measure` runs it, `measured` holds what was found and its verdict, `page` writes it as one HTML file."""

from ..lazily import suggests
from .measure import measure
from .measured import Measured, Part, Way
from .work import Work

__all__ = ["Measured", "Part", "Way", "Work", "measure"]

suggests(__name__)
