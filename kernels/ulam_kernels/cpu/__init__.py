"""The native C++ backend: AVX-512, AVX2 or portable code, chosen when it runs.

`bound` has a step, and a tick, that are repeated many times, with little between Python and the loop over the elements.
"""

from __future__ import annotations

from typing import Any

import torch  # before the extension, so that one OpenMP runtime serves both

from ulam_kernels import _cpu, native
from ulam_kernels.mcmc import SAMPLERS
from ulam_kernels.native import likelihood as _likelihood
from ulam_kernels.native import mcmc as _mcmc
from ulam_kernels.native import rows as _rows

from .bound import BoundStep as BoundStep
from .bound import BoundTick as BoundTick
from .bound_trees import BoundTrees as BoundTrees
from .walk import bound_walk as bound_walk
from .walk import call_network as call_network

scalar, address = _cpu.scalar, _cpu.address
quick_look_up, quick_advance, quick_examples = _cpu.quick_look_up, _cpu.quick_advance, _cpu.quick_examples


def _bind(operation: native.Operation, make: native.Make) -> native.Operation:
    def run(*given: Any, **named: Any) -> None:
        operation(*make(*given, **named), torch.get_num_threads())

    return run


globals().update(vars(native.operations(_rows, _cpu, _bind)))
mcmc = native.operations(_mcmc, _cpu, _bind)
mcmc.SAMPLERS = SAMPLERS
likelihood = native.operations(_likelihood, _cpu, _bind)
