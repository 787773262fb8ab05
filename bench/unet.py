"""The U-Net of Ho et al. 2020 for CIFAR-10 in plain torch: 35.7 million parameters, random weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """x [B, C_in, H, W], emb [B, E] -> [B, C_out, H, W]."""

    def __init__(self, c_in: int, c_out: int, emb: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(32, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.emb(emb)[:, :, None, None]
        out: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(h)))
        return out


class Attention(nn.Module):
    """Self-attention of one head over the positions, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(32, channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, 1, c, h * w).mT.unbind(1)
        out: Tensor = x + self.out(F.scaled_dot_product_attention(q, k, v).mT.reshape(b, c, h, w))
        return out


class UNet(nn.Module):
    """eps = net(x, t): x [B, 3, H, W] of a side that 8 divides, t [B]; attention at half the side."""

    def __init__(self, channels: int = 128, multiples: tuple[int, ...] = (1, 2, 2, 2), blocks: int = 2) -> None:
        super().__init__()
        emb, self.features = 4 * channels, channels
        self.time = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb), nn.SiLU())
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept, c = [channels], channels
        for level, multiple in enumerate(multiples):
            for _ in range(blocks):
                self.down.append(self._block(c, multiple * channels, emb, level == 1))
                c = multiple * channels
                kept.append(c)
            if level + 1 < len(multiples):
                self.down.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                kept.append(c)
        self.middle = nn.ModuleList([Residual(c, c, emb), Attention(c), Residual(c, c, emb)])
        for level, multiple in reversed(list(enumerate(multiples))):
            for _ in range(blocks + 1):
                self.up.append(self._block(c + kept.pop(), multiple * channels, emb, level == 1))
                c = multiple * channels
            if level:
                self.up.append(nn.Conv2d(c, c, 3, padding=1))
        self.head = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, 3, 3, padding=1))

    @staticmethod
    def _block(c_in: int, c_out: int, emb: int, attends: bool) -> nn.ModuleList:
        parts: list[nn.Module] = [Residual(c_in, c_out, emb)]
        return nn.ModuleList([*parts, Attention(c_out)] if attends else parts)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.features // 2
        angles = t.float()[:, None] * torch.exp(-math.log(1e4) / half * torch.arange(half, device=t.device))
        emb = self.time(torch.cat([angles.cos(), angles.sin()], 1).to(self.stem.weight.dtype))
        h = self.stem(x)
        kept = [h]
        for part in self.down:
            h = part(h) if isinstance(part, nn.Conv2d) else _through(part, h, emb)
            kept.append(h)
        h = _through(self.middle, h, emb)
        for part in self.up:
            if isinstance(part, nn.Conv2d):
                h = part(F.interpolate(h, scale_factor=2.0))
            else:
                h = _through(part, torch.cat([h, kept.pop()], 1), emb)
        out: Tensor = self.head(h)
        return out


def _through(parts: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
    for part in parts.children():
        h = part(h, emb) if isinstance(part, Residual) else part(h)
    return h
