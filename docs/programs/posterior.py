"""A regression with robust noise: names, sets and a verdict; what the truth was, and what the data say."""

import sys

import torch
from torch.distributions import HalfNormal, Normal, StudentT

import ulam
from ulam import mcmc

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 1000

torch.manual_seed(0)
x = torch.linspace(-2, 2, 60)
y = 1.0 + 2.0 * x + 0.3 * torch.randn(60)
y[::20] += 4.0  # outliers


def log_prob(intercept, slope, scale):
    prior = Normal(0, 5).log_prob(intercept) + Normal(0, 5).log_prob(slope) + HalfNormal(1).log_prob(scale)
    return prior + StudentT(3, intercept + slope * x, scale).log_prob(y).sum()


model = mcmc.Model(log_prob, parameters={"intercept": mcmc.Real(), "slope": mcmc.Real(), "scale": mcmc.Positive()})
chains = mcmc.run(model, mcmc.HMC(leapfrog=6), chains=32, steps=steps, warmup=300, seed=0, progress=False)
for name, draws in chains.parameters.items():
    low, middle, high = draws.flatten().quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(f"{name:10} {middle:.2f}, 90% in [{low:.2f}, {high:.2f}]")
print(f"{ulam.__version__}: effective draws {chains.ess().min():.0f} of {32 * steps}")
