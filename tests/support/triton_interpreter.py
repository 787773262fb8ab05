"""Triton's own interpreter, made exact, in a process of its own because it is chosen when kernels are defined."""

from __future__ import annotations

import os
import subprocess
import sys


def be_exact() -> None:
    """Mend where the interpreter departs from what is compiled, or fails.

    In some releases a fused multiply-add rounds twice; bf16 is rounded towards zero; comparisons of floats keep the
    floats' type when they are broadcast. A dot product sums in the order of NumPy's library, and takes the bits of bf16
    for whole numbers. Releases before 3.7 fail where a loop's bounds are arrays of one element,
    which NumPy 2.4 and later do not turn into numbers.
    """
    import numpy as np
    import torch
    import triton.language as tl
    from triton._C.libtriton import ir
    from triton.runtime import interpreter
    from triton.runtime.interpreter import InterpreterBuilder as Builder
    from triton.runtime.interpreter import TensorHandle

    from ulam_kernels.reference.arithmetic import fma

    def exact_fma(self, x, y, z):
        x, y, z = (np.ascontiguousarray(a) for a in np.broadcast_arrays(x.data, y.data, z.data))
        return TensorHandle(fma(x, y, z).reshape(x.shape), tl.float32)

    def truncate(self, x, kind, plain=Builder.create_fp_trunc):
        if kind.scalar != tl.bfloat16:
            return plain(self, x, kind)
        rounded = torch.from_numpy(np.ascontiguousarray(x.data)).to(torch.bfloat16)
        return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)

    def dot(self, a, b, total, precision, imprecise):
        a, b = (x.data if x.dtype != tl.bfloat16 else (x.data.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
        if precision == ir.INPUT_PRECISION.TF32:  # tensor cores take the upper 19 bits
            a, b = ((np.ascontiguousarray(x).view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
        sums = total.data
        for k in range(a.shape[1]):
            sums = fma(a[:, k, None], b[None, k, :], sums)
        return TensorHandle(sums, tl.float32)

    def splat(self, kind, x):
        return TensorHandle(np.full(kind.shape, x.data.reshape(-1)[0], x.data.dtype), x.dtype.scalar)

    def patch_tensor(tensor, scope, plain=interpreter._patch_lang_tensor):
        plain(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    Builder.create_fma, Builder.create_fp_trunc, Builder.create_splat = exact_fma, truncate, splat
    Builder.create_dot = dot
    interpreter._patch_lang_tensor = patch_tensor


def run(check: str) -> None:
    """Call this function of ``interpreted_checks`` there; what it raises fails the test."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["PYTHONWARNINGS"] = "ignore"
    ran = subprocess.run([sys.executable, __file__, check], env=environment, capture_output=True, text=True)
    assert ran.stdout.strip() == "agrees", ran.stderr[-3000:]


if __name__ == "__main__":
    be_exact()
    import interpreted_checks

    getattr(interpreted_checks, sys.argv[1])()
    print("agrees")
