"""The public operations on a batch of independent chains: validated once here, executed by one of the backends.

The leading dimension (the second of ``state``) counts chains; per-chain arguments are tensors of that length.
"""

from ulam_kernels.ops.elementwise import *  # noqa: F403
from ulam_kernels.ops.rows import *  # noqa: F403
from ulam_kernels.ops.sums import *  # noqa: F403
from ulam_kernels.validation import FLOATS as FLOATS
from ulam_kernels.validation import MAX_ELEMENTS as MAX_ELEMENTS
