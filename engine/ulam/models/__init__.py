"""Trained networks that come with the package, the data of the digits, and how weights are loaded.

`built_in` names the models of the command line.
"""

from ..lazily import suggests
from .digits import DigitsUNet, load_digits

__all__ = ["DigitsUNet", "load_digits"]

suggests(__name__)
