"""Rollouts for reinforcement learning on diffusion models: trajectories with their log-probabilities, those of the same
steps under a changed network, branches, and steering by a reward."""

from ..engine.rollout import Rollout
from ..engine.trajectory import Trajectory
from ..lazily import suggests
from .densities import kl, log_prob
from .sampling import sample
from .steering import Steered, Steering, resample, steer
from .windows import mixed

__all__ = ["Rollout", "Steered", "Steering", "Trajectory", "kl", "log_prob", "mixed", "resample", "sample", "steer"]

suggests(__name__)
