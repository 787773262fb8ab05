"""The DDPM reverse step as people write it in PyTorch, which the fused step is measured against."""

from __future__ import annotations

import torch


class NaiveDDPM:
    """`p_sample` of the DDPM authors' code (and of most that followed): x0 from eps, posterior mean, noise.

    Tables on the device, in the state's dtype, gathered per sample, one tensor operation after the other [Ho 2020,
    eq. 15 and 7]. dimensions: of a sample.
    """

    def __init__(
        self,
        steps: int = 1000,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        dimensions: int = 3,
    ) -> None:
        self.per_chain = (-1, *[1] * dimensions)
        betas = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
        alphas_cumprod = (1 - betas).cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        variance = betas * (1 - before) / (1 - alphas_cumprod)
        self.x_to_x0 = (1 / alphas_cumprod).sqrt().to(device, dtype)
        self.eps_to_x0 = (1 / alphas_cumprod - 1).sqrt().to(device, dtype)
        self.x0_to_mean = (betas * before.sqrt() / (1 - alphas_cumprod)).to(device, dtype)
        self.x_to_mean = ((1 - before) * (1 - betas).sqrt() / (1 - alphas_cumprod)).to(device, dtype)
        self.log_variance = variance.clamp(min=variance[1].item()).log().to(device, dtype)
        # Algorithm 2 needs these alone.
        self.eps_to_mean = (betas / (1 - alphas_cumprod).sqrt()).to(device, dtype)
        self.root_alphas, self.std = (1 - betas).sqrt().to(device, dtype), variance.sqrt().to(device, dtype)

    def at(self, values: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return values.gather(0, t).view(self.per_chain)

    @torch.no_grad()
    def mean(self, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, clip: bool = False) -> torch.Tensor:
        x0 = self.at(self.x_to_x0, t) * x - self.at(self.eps_to_x0, t) * eps
        if clip:
            x0.clamp_(-1.0, 1.0)
        return self.at(self.x0_to_mean, t) * x0 + self.at(self.x_to_mean, t) * x

    @torch.no_grad()
    def step(self, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, clip: bool = False) -> torch.Tensor:
        noise = torch.randn_like(x)
        mask = (t != 0).to(x.dtype).view(self.per_chain)
        return self.mean(x, eps, t, clip) + mask * (0.5 * self.at(self.log_variance, t)).exp() * noise

    @torch.no_grad()
    def algorithm_2(self, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The same step with the fewest operations: (x - beta / sqrt(1 - abar) eps) / sqrt(a) + sigma z."""
        mean = (x - self.at(self.eps_to_mean, t) * eps) / self.at(self.root_alphas, t)
        return mean + self.at(self.std, t) * torch.randn_like(x)

    @torch.no_grad()
    def sample(self, net, shape: tuple[int, ...], steps: int, clip: bool = False) -> torch.Tensor:  # type: ignore[no-untyped-def]
        """The sampling loop over the last ``steps`` timesteps."""
        x = torch.randn(shape)
        for i in reversed(range(steps)):
            t = torch.full((shape[0],), i, dtype=torch.long)
            x = self.step(x, net(x, t), t, clip)
        return x


class PreallocatedDDPM(NaiveDDPM):
    """Algorithm 2 into buffers that are allocated once, in place where it can be."""

    def __init__(self, shape: tuple[int, ...], steps: int = 1000) -> None:
        super().__init__(steps)
        self.noise, self.scaled = torch.empty(shape), torch.empty(shape)

    @torch.no_grad()
    def step(self, x: torch.Tensor, eps: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self.noise.normal_()
        torch.mul(eps, self.at(self.eps_to_mean, t), out=self.scaled)
        x.sub_(self.scaled).div_(self.at(self.root_alphas, t))
        return x.addcmul_(self.noise, self.at(self.std, t))
