"""The public operations: validated once here, executed by one of the backends.

Every operation works on a batch of independent chains: the leading dimension (the second of ``state``) counts
chains, and per-chain arguments are one-dimensional tensors of that length.
"""

from ulam_kernels.ops.elementwise import *  # noqa: F403
from ulam_kernels.ops.rows import *  # noqa: F403
from ulam_kernels.validation import FLOATS as FLOATS
from ulam_kernels.validation import MAX_ELEMENTS as MAX_ELEMENTS
