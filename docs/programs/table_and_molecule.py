"""Rows of a table that keep the correlations of its columns, and a molecule at a temperature."""

import sys

import torch

import ulam
from ulam import mcmc

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4000

torch.manual_seed(0)
height = 1.7 + 0.1 * torch.randn(2000)
weight = 70 + 80 * (height - 1.7) + 6 * torch.randn(2000)
table = torch.stack([height, weight], 1)
mean, std = table.mean(0), table.std(0)

net = torch.nn.Sequential(torch.nn.Linear(3, 128), torch.nn.SiLU(), torch.nn.Linear(128, 2))
denoiser = ulam.Denoiser(lambda x, t: net(torch.cat([x, t[:, None] / 1000], 1)), ulam.schedules.vp_cosine(1000), "v")
optimizer = torch.optim.Adam(net.parameters(), 2e-3)
for step in range(steps):
    x_0 = ((table - mean) / std)[torch.randint(2000, (256,))]
    loss = ulam.objectives.denoising(denoiser, x_0, torch.rand(256) * 999, step=step).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
rows = ulam.sample(denoiser, ulam.samplers.DPMSolverPP(20), (2,), chains=2000, seed=0) * std + mean
print(f"correlation {torch.corrcoef(rows.T)[0, 1]:.2f}, in the table {torch.corrcoef(table.T)[0, 1]:.2f}")


def bond(x):  # angstrom, of two atoms [B, 2, 3]
    return (x[:, 1] - x[:, 0]).norm(dim=1, keepdim=True)


morse = ulam.Energy(lambda x: 4.6 * (1 - (-1.9 * (bond(x)[:, 0] - 1.27)).exp()).square())  # eV
start = torch.tensor([[0.0, 0.0, 0.0], [1.27, 0.0, 0.0]]).repeat(64, 1, 1)
mass = torch.tensor([[1.008], [35.45]])
sampler = mcmc.BAOAB(0.05, friction=3.0, temperature=0.0259, mass=mass, center_of_mass="fixed")
options = {"chains": 64, "x_init": start, "seed": 0, "warmup": 200, "progress": False, "observables": {"bond": bond}}
lengths = mcmc.run(morse, sampler, steps=max(steps // 10, 200), **options).observables["bond"]
print(f"bond {lengths.mean():.3f} +- {lengths.std():.3f} angstrom at 300 K")
