"""A small hierarchical VAE for 28x28 digits: two levels of latents, z_2 [32] and z_1 [8, 7, 7]."""

from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOP, BELOW = (32,), (8, 7, 7)
WIDTH = 48
WEIGHTS = Path(__file__).with_name("digits_vae.safetensors")


class Down(nn.Module):
    """x [B, 1, 28, 28] -> features [B, WIDTH, 7, 7]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, WIDTH, 3, stride=2, padding=1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.third = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.second(F.silu(self.first(x))))
        return F.silu(h + self.third(h))


class Up(nn.Module):
    """z_2 [B, 32] -> features [B, WIDTH, 7, 7]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(TOP[0], WIDTH * 49)
        self.second = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.silu(self.first(z)).view(-1, WIDTH, 7, 7)
        return F.silu(h + self.second(h))


class DigitsVAE(nn.Module):
    """The networks of p(z_1 | z_2), q(z_2 | x), q(z_1 | z_2, x) and p(x | z_1), the last with one learned deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.up_posterior = Down(), Up(), Up()
        self.top = nn.Linear(WIDTH * 49, 2 * TOP[0])
        self.prior_head = nn.Conv2d(WIDTH, 2 * BELOW[0], 1)
        self.posterior_head = nn.Conv2d(2 * WIDTH, 2 * BELOW[0], 1)
        self.decoder_first = nn.Conv2d(BELOW[0], WIDTH, 3, padding=1)
        self.decoder_second = nn.Conv2d(WIDTH, 4 * WIDTH, 3, padding=1)
        self.decoder_third = nn.Conv2d(WIDTH, 4 * WIDTH // 2, 3, padding=1)
        self.decoder_last = nn.Conv2d(WIDTH // 2, 1, 3, padding=1)
        self.log_std = nn.Parameter(torch.tensor(-1.0))
        for head in (self.top, self.prior_head, self.posterior_head):
            head.weight.data *= 0.1

    def prior(self, z: Tensor) -> Tensor:
        """Moments of p(z_1 | z_2)."""
        out: Tensor = self.prior_head(self.up(z))
        return out

    def posterior_top(self, x: Tensor) -> Tensor:
        """Moments of q(z_2 | x)."""
        out: Tensor = self.top(self.down(x).flatten(1))
        return out

    def posterior_below(self, x: Tensor, z: Tensor) -> Tensor:
        """Moments of q(z_1 | z_2, x)."""
        out: Tensor = self.posterior_head(torch.cat([self.down(x), self.up_posterior(z)], dim=1))
        return out

    def decode(self, z: Tensor) -> Tensor:
        """Moments of p(x | z_1), [B, 2, 28, 28]."""
        h = F.silu(self.decoder_first(z))
        h = F.silu(F.pixel_shuffle(self.decoder_second(h), 2))
        h = F.silu(F.pixel_shuffle(self.decoder_third(h), 2))
        mean = self.decoder_last(h)
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=1)


def load_digits_vae(path: Path = WEIGHTS) -> DigitsVAE:
    """The trained network, in eval mode."""
    net = DigitsVAE().eval()
    net.load_state_dict({name: tensor.float() for name, tensor in safetensors.torch.load_file(path).items()})
    return net
