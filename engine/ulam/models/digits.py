"""A small class-conditional U-Net for 28x28 digits: the denoiser that comes with the package."""

import math
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 10
NULL_CLASS = 10  # the label of 'no class': the unconditional branch of guidance
TRAIN_STEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02
GROUPS = 8


def log_alphas_cumprod() -> Tensor:
    """log(alpha_bar) of the VP-linear schedule the network was trained on: float64 [1000]."""
    betas = torch.linspace(BETA_START, BETA_END, TRAIN_STEPS, dtype=torch.float64)
    return torch.log1p(-betas).cumsum(0)


def alpha_sigma(log_alpha_bar: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha_t, sigma_t), each [B], with log(alpha_bar) interpolated where the index t [B] is fractional."""
    t, log_alpha_bar = t.double().clamp(0, TRAIN_STEPS - 1), log_alpha_bar.double()
    low = t.floor().long().clamp(max=TRAIN_STEPS - 2)
    log_bar = torch.lerp(log_alpha_bar[low], log_alpha_bar[low + 1], t - low)
    return torch.exp(0.5 * log_bar), torch.sqrt(-torch.expm1(log_bar))


def time_features(t: Tensor, size: int) -> Tensor:
    """Sines and cosines of the training index: [B] -> [B, size], wavelengths from 2 pi to 2 pi 10^4."""
    frequencies = torch.exp(-math.log(1e4) * torch.arange(size // 2, device=t.device) / (size // 2))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResidualBlock(nn.Module):
    """x [B, C_in, H, W], emb [B, E] -> [B, C_out, H, W]; time and class scale and shift the inner norm."""

    def __init__(self, c_in: int, c_out: int, emb: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.modulation = nn.Linear(emb, 2 * c_out)
        self.norm2 = nn.GroupNorm(GROUPS, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.modulation(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))
        out: Tensor = self.skip(x) + h
        return out


class Attention(nn.Module):
    """Self-attention over the H*W positions, added to its input: [B, C, H, W] -> the same."""

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, h * w).mT.unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H*W, C / heads]
        out: Tensor = x + self.out(mixed.mT.reshape(b, c, h, w))
        return out


class DigitsUNet(nn.Module):
    """eps = net(x, t, y): the noise in x at training index t, for class y.

    x [B, 1, 28, 28] in the scale of digits in [-1, 1]; t [B] index in [0, 999], float or integer, fractions
    allowed; y [B] int64, 0..9 or NULL_CLASS. Returns eps [B, 1, 28, 28] in x's dtype.

    Inside it predicts v = alpha_t eps - sigma_t x0 and returns eps = alpha_t v + sigma_t x, so the x0
    estimate stays well conditioned up to t = 999 (Salimans & Ho 2022, section 4). Rows are independent: every
    norm is within a row.
    """

    log_alpha_bar: Tensor

    def __init__(self, channels: tuple[int, int, int] = (32, 64, 80), emb: int = 128) -> None:
        super().__init__()
        c1, c2, c3 = channels
        self.features = emb // 2
        self.register_buffer("log_alpha_bar", log_alphas_cumprod(), persistent=False)
        self.time = nn.Sequential(nn.Linear(self.features, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label = nn.Embedding(CLASSES + 1, emb)
        self.stem = nn.Conv2d(1, c1, 3, padding=1)
        self.down1 = ResidualBlock(c1, c1, emb)  # 28x28
        self.down2 = ResidualBlock(c1, c2, emb)  # 14x14
        self.down3 = ResidualBlock(c2, c3, emb)  # 7x7
        self.attention = Attention(c3)
        self.middle = ResidualBlock(c3, c3, emb)
        self.up3 = ResidualBlock(2 * c3, c3, emb)
        self.up2 = ResidualBlock(c3 + c2, c2, emb)
        self.up1 = ResidualBlock(c2 + c1, c1, emb)
        self.head = nn.Sequential(nn.GroupNorm(GROUPS, c1), nn.SiLU(), nn.Conv2d(c1, 1, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        alpha_t, sigma_t = (c.float()[:, None, None, None] for c in alpha_sigma(self.log_alpha_bar, t))
        return (alpha_t * self.predict_v(x, t, y) + sigma_t * x).to(x.dtype)

    def predict_v(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """v [B, 1, 28, 28] of x [B, 1, 28, 28] at index t [B], class y [B]."""
        features = time_features(t, self.features).to(self.label.weight.dtype)
        emb = F.silu(self.time(features) + self.label(y))  # [B, E]
        h1 = self.down1(self.stem(x), emb)
        h2 = self.down2(F.avg_pool2d(h1, 2), emb)
        h3 = self.down3(F.avg_pool2d(h2, 2), emb)
        h = self.middle(self.attention(h3), emb)
        h = F.interpolate(self.up3(torch.cat([h, h3], dim=1), emb), scale_factor=2.0)
        h = F.interpolate(self.up2(torch.cat([h, h2], dim=1), emb), scale_factor=2.0)
        v: Tensor = self.head(self.up1(torch.cat([h, h1], dim=1), emb))
        return v


def load_digits() -> DigitsUNet:
    """The trained digits network, in fp32 and eval mode: eps = net(x [B, 1, 28, 28], t [B], y [B])."""
    weights = safetensors.torch.load_file(Path(__file__).with_name("digits.safetensors"))
    net = DigitsUNet()
    net.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
    return net.eval().requires_grad_(False)
