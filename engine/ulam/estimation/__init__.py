"""What a denoiser says beyond samples: its estimates at a noise level, their derivatives, likelihoods and errors.

`estimator` evaluates it there; `derivatives` chooses the mode of automatic differentiation.
"""
