"""The DDPM reverse step as people write it in PyTorch, which the fused step is measured against [Ho 2020, alg. 2]."""

from __future__ import annotations

import torch


class NaiveDDPM:
    """x' = (x - beta_t / sqrt(1 - abar_t) eps) / sqrt(a_t) + sqrt(beta_t) z, tables on the device, t per sample."""

    def __init__(self, steps: int = 1000) -> None:
        self.betas = torch.linspace(1e-4, 0.02, steps)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)

    def at(self, values: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return values[t].view(-1, 1, 1, 1)

    @torch.no_grad()
    def mean(self, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        scale = self.at(self.betas, t) / torch.sqrt(1 - self.at(self.alphas_cumprod, t))
        return (x - scale * eps) / torch.sqrt(self.at(self.alphas, t))

    @torch.no_grad()
    def step(self, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        mean = self.mean(x, eps, t)
        noise = torch.randn_like(x)
        mask = (t != 0).float().view(-1, 1, 1, 1)
        return mean + mask * torch.sqrt(self.at(self.betas, t)) * noise

    @torch.no_grad()
    def sample(self, net, shape: tuple[int, ...], steps: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
        """The sampling loop over the last ``steps`` timesteps."""
        x = torch.randn(shape)
        for i in reversed(range(steps)):
            t = torch.full((shape[0],), i, dtype=torch.long)
            x = self.step(x, net(x, t), t)
        return x


class PreallocatedDDPM(NaiveDDPM):
    """The same step into buffers that are allocated once, in place where it can be."""

    def __init__(self, shape: tuple[int, ...], steps: int = 1000) -> None:
        super().__init__(steps)
        self.noise, self.scaled = torch.empty(shape), torch.empty(shape)

    @torch.no_grad()
    def step(self, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        scale = self.at(self.betas, t) / torch.sqrt(1 - self.at(self.alphas_cumprod, t))
        self.noise.normal_()
        torch.mul(eps, scale, out=self.scaled)
        x.sub_(self.scaled).div_(torch.sqrt(self.at(self.alphas, t)))
        mask = (t != 0).float().view(-1, 1, 1, 1)
        return x.addcmul_(self.noise, mask * torch.sqrt(self.at(self.betas, t)))
