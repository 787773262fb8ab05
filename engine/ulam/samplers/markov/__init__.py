"""Markov chain samplers of a density given by energy and score: one file a sampler, each one transition."""
