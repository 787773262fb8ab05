"""Three classes of points in the plane: train a network, sample with class guidance, animate the way there."""

import sys

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation

import ulam

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
NONE = 3  # the class of no label
centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(4, 16)
        self.layers = torch.nn.Sequential(torch.nn.Linear(19, 128), torch.nn.SiLU(), torch.nn.Linear(128, 2))

    def forward(self, x, t, y):
        return self.layers(torch.cat([x, t[:, None] / 1000, self.table(y)], 1))


torch.manual_seed(0)
denoiser = ulam.Denoiser(Net(), ulam.schedules.vp_cosine(1000), predicts="v")
optimizer = torch.optim.Adam(denoiser.net.parameters(), 2e-3)
for step in range(steps):
    y = torch.randint(3, (256,))
    x_0 = centres[y] + 0.5 * torch.randn(256, 2)
    told = torch.where(torch.rand(256) < 0.1, NONE, y)
    loss = ulam.objectives.denoising(denoiser, x_0, torch.rand(256) * 999, {"y": told}, step=step).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

y = torch.arange(600) % 3
given = {"cond": {"y": y}, "uncond": {"y": torch.full_like(y, NONE)}, "guidance": 2.0}
states = ulam.rollouts.sample(denoiser, ulam.samplers.DDIM(30), (2,), 600, seed=0, **given).states
print("nearest centre is their own:", f"{(torch.cdist(states[:, -1], centres).argmin(1) == y).float().mean():.1%}")
figure, axes = plt.subplots()
axes.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", title="samples by class")
points = axes.scatter(*states[:, 0].T, c=y, s=4)
FuncAnimation(figure, lambda i: points.set_offsets(states[:, i]), states.shape[1]).save("classes.gif", writer="pillow")
