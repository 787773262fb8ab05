"""Markov chain samplers of exp(-E(x) / T): one file a sampler, each one transition, run by :func:`ulam.mcmc.run`.

Shared: `chain_sampler.py`, `paths.py`, `isokinetic.py`, `rows.py`; `chain_state.py` has the chains while they run.
"""
