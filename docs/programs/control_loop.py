"""A diffusion policy in a control loop: it imitates steps towards a target, eight environments in each call."""

import sys

import torch

import ulam

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 3000


class Net(torch.nn.Module):  # noise in chunks of two actions in the plane, for a position and a target
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(9, 128),
            torch.nn.SiLU(),
            torch.nn.Linear(128, 128),
            torch.nn.SiLU(),
            torch.nn.Linear(128, 4),
        )

    def forward(self, x, t, seen):
        return self.layers(torch.cat([x.flatten(1), t[:, None] / 100, seen], 1)).view_as(x)


torch.manual_seed(0)
denoiser = ulam.Denoiser(Net(), ulam.schedules.vp_cosine(100), predicts="v")
optimizer = torch.optim.Adam(denoiser.net.parameters(), 2e-3)
for step in range(steps):
    seen = torch.rand(256, 4) * 2 - 1
    expert = (0.5 * (seen[:, 2:] - seen[:, :2]))[:, None] * torch.tensor([1.0, 0.5])[:, None]
    loss = ulam.objectives.denoising(denoiser, expert, torch.rand(256) * 99, {"seen": seen}, step=step).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

denoiser.net.eval()
sampler = ulam.samplers.DDPM(steps=20, clip=(-1.5, 1.5))
policy = ulam.Policy(denoiser, sampler, shape=(2, 2), chains=8, cond={"seen": torch.zeros(8, 4)}, seed=0)
position, target = torch.rand(8, 2) * 2 - 1, torch.rand(8, 2) * 2 - 1
begin = (position - target).norm(dim=1).mean()
for _ in range(8):
    actions = policy({"seen": torch.cat([position, target], 1)})
    position = position + actions.sum(1)
print(f"distance to the target: {begin:.2f} before, {(position - target).norm(dim=1).mean():.2f} after")
