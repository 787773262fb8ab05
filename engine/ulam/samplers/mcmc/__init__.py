"""Markov chain samplers of exp(-E(x) / T): one file a sampler, each one transition, run by :func:`ulam.mcmc.run`.

What they share is in `chain_sampler.py`, the chains while they run in `chain_state.py`.
"""
