"""What a denoiser says beyond samples: its estimates at a noise level, their derivatives, likelihoods and errors."""
