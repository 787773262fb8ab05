"""Models: named parameters with constraints, log-densities over all data or minibatches, as energies.

`model` and `minibatch` are energies of an unconstrained vector; `parameters` and `bijections` map it.
"""
