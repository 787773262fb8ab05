"""Small networks of every kind whose derivatives torch computes in its own way, and some that hide them.

Each is called as net(x, t) for x ``[B, *shape]`` and t ``[B]``. All have random weights, in eval mode.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

CHAINS = 3


class Embedding(nn.Module):
    """The usual sines and cosines of t, in its own float type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, t):
        rates = torch.exp(-torch.arange(self.linear.in_features // 2, device=t.device) * 0.5)
        angles = t[:, None] * rates
        return F.silu(self.linear(torch.cat([angles.sin(), angles.cos()], 1).to(self.linear.weight.dtype)))


class MLP(nn.Module):
    shape = (6,)

    def __init__(self, activation: Callable, width: int = 16) -> None:
        super().__init__()
        self.first, self.time = nn.Linear(6, width), Embedding(width)
        self.second, self.last = nn.Linear(width, width), nn.Linear(width, 6)
        self.activation = activation

    def forward(self, x, t):
        h = self.activation(self.first(x) + self.time(t))
        return self.last(self.activation(self.second(h)))


class UNet(nn.Module):
    shape = (2, 4, 4)

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm, self.time = nn.Conv2d(2, 8, 3, padding=1), norm(8), Embedding(8)
        self.down, self.low = nn.Conv2d(8, 8, 3, stride=2, padding=1), norm(8)
        self.up, self.last = nn.ConvTranspose2d(8, 8, 2, stride=2), nn.Conv2d(16, 2, 3, padding=1)

    def forward(self, x, t):
        h = F.silu(self.norm(self.first(x))) + self.time(t)[:, :, None, None]
        up = self.up(F.gelu(self.low(self.down(h))))
        up = up + F.interpolate(F.avg_pool2d(h, 2), scale_factor=2, mode="bilinear")
        return self.last(torch.cat([up, h], 1))


class Attention(nn.Module):
    """nn.MultiheadAttention, whose eval mode has a fast path; its weights rule out the fused kernels."""

    shape = (5, 2)

    def __init__(self, backend: SDPBackend | None = None, weights: bool = False) -> None:
        super().__init__()
        self.backend, self.weights = backend, weights
        self.first, self.time, self.last = nn.Linear(2, 8), Embedding(8), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, t):
        h = self.first(x) + self.time(t)[:, None]
        with nullcontext() if self.backend is None else sdpa_kernel(self.backend):
            return self.last(self.attention(h, h, h, need_weights=self.weights)[0])


class Fused(nn.Module):
    shape = (5, 2)

    def __init__(self, mask: str = "", backend: SDPBackend | None = None) -> None:
        super().__init__()
        self.first, self.last, self.mask, self.backend = nn.Linear(2, 24), nn.Linear(8, 2), mask, backend

    def forward(self, x, t):
        q, k, v = (part.view(len(x), -1, 2, 4).transpose(1, 2) for part in self.first(x).chunk(3, -1))
        n = x.shape[1]
        masks = {"float": torch.linspace(-1, 1, n * n).view(n, n).to(q), "bool": torch.eye(n).roll(1, 0) == 0}
        with nullcontext() if self.backend is None else sdpa_kernel(self.backend):
            y = F.scaled_dot_product_attention(q, k, v, masks.get(self.mask), is_causal=self.mask == "causal")
        return self.last(y.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """nn.TransformerEncoderLayer, whose eval mode is one operation without derivatives."""

    shape = (5, 2)

    def __init__(self, norm_first: bool, activation: str) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 2)
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True, norm_first=norm_first, activation=activation
        )

    def forward(self, x, t):
        return self.last(self.layer(self.first(x) + 0.1 * t.to(x.dtype)[:, None, None]))


class Normalised(nn.Module):
    shape = (6,)

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 16), norm, nn.Linear(16, 6)

    def forward(self, x, t):
        return self.last(torch.tanh(self.norm(self.first(x))))


class Recurrent(nn.Module):
    shape = (5, 2)

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.last = cell(2, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x, t):
        return self.last(self.cell(x)[0])


class Einsum(nn.Module):
    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6, 6) * 0.3)

    def forward(self, x, t):
        return torch.einsum("ijk,bj,bk->bi", self.weight, x, x.tanh())


class Checkpointed(nn.Module):
    shape = (6,)

    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(F.silu)

    def forward(self, x, t):
        return checkpoint(self.inner, x, t, use_reentrant=False)


class OldSine(torch.autograd.Function):
    """Without setup_context: torch.func refuses it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


class Square(torch.autograd.Function):
    """x^2 without setup_context: torch.func does not take it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


class ForwardSine(Sine):
    """With a jvp, which nested forward mode reads wrongly."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return tangent * x.cos()


class OnceSine(OldSine):
    """Its backward cannot be differentiated, which torch does not say where the result is not used."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.cos()


ACTIVATIONS: dict[str, Callable] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "softplus": F.softplus,
    "mish": F.mish,
    "softsign": F.softsign,
    "hardswish": F.hardswish,
    "logsigmoid": F.logsigmoid,
    "tanhshrink": F.tanhshrink,
    "softshrink": lambda x: F.softshrink(x, 0.1),
    "softmax": lambda x: F.softmax(x, 1),
    "glu": lambda x: F.glu(torch.cat([x, x.sin()], 1)),  # no formula for its forward derivative's derivative
    "sine": torch.sin,
    "square": torch.square,
    "sort": lambda x: x.sort(1)[0],
    "spectrum": lambda x: torch.fft.irfft(torch.fft.rfft(x.sin()) * torch.linspace(1, 2, 9, device=x.device), n=16),
    "layer_norm": lambda x: F.layer_norm(x, (16,)),
    "old function": OldSine.apply,
    "function": Sine.apply,
    "function with jvp": ForwardSine.apply,
}
PIECEWISE = ("relu", "leaky_relu", "relu6", "hardtanh", "softshrink", "sort")  # no second derivative


def zoo() -> dict[str, Callable[[], nn.Module]]:
    """Makers of networks by name."""
    math = SDPBackend.MATH
    made: dict[str, Callable[[], nn.Module]] = {
        f"MLP {name}": lambda activation=activation: MLP(activation) for name, activation in ACTIVATIONS.items()
    }
    norms = {"group": lambda c: nn.GroupNorm(2, c), "batch": nn.BatchNorm2d, "instance": nn.InstanceNorm2d}
    made |= {f"U-Net {name} norm": lambda norm=norm: UNet(norm) for name, norm in norms.items()}
    made |= {f"attention{' math' * (b is math)}": lambda b=b: Attention(b) for b in (None, math)}
    made["attention with weights"] = lambda: Attention(weights=True)
    made |= {f"fused {mask}".strip(): lambda mask=mask: Fused(mask) for mask in ("", "float", "bool", "causal")}
    made["fused math"] = lambda: Fused(backend=math)
    made |= {
        f"transformer {activation}{' norm first' * first}": lambda a=activation, f=first: Transformer(f, a)
        for activation in ("relu", "gelu")
        for first in (False, True)
    }
    made["layer norm"], made["RMS norm"] = (lambda n=n: Normalised(n(16)) for n in (nn.LayerNorm, nn.RMSNorm))
    made["LSTM"], made["GRU"] = (lambda cell=cell: Recurrent(cell) for cell in (nn.LSTM, nn.GRU))
    return made | {"einsum": Einsum, "checkpoint": Checkpointed}


def make(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return zoo()[name]().to(dtype).eval()


def smooth(name: str) -> bool:
    """Whether the network's second derivatives are not all 0 and exist everywhere."""
    return "relu" not in name and not any(name == f"MLP {activation}" for activation in PIECEWISE)


# ------------------------------------------------------------------------------------- networks that hide


class Hidden(nn.Module):
    """tanh(W x) + part * tanh(U x), the second of which does not let its derivative through."""

    shape = (6,)

    def __init__(self, through: Callable[[torch.Tensor], torch.Tensor], part: float = 1.0, whole: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.through, self.part, self.whole = through, part, whole

    def forward(self, x, t):
        hidden = self.part * torch.tanh(self.second(self.through(x)))
        return hidden if self.whole else torch.tanh(self.first(x)) + hidden


def _under(context: Callable) -> Callable[[torch.Tensor], torch.Tensor]:
    def through(x):
        with context():
            return x * 1.0

    return through


def _numpy(x):
    return torch.from_numpy(x.detach().cpu().numpy() * 1.0).to(x)


HIDING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "no_grad": _under(torch.no_grad),
    "inference_mode": lambda x: _under(torch.inference_mode)(x).clone(),
    "numpy": _numpy,
    "tolist": lambda x: torch.tensor(x.tolist(), dtype=x.dtype),
}
