"""One run of blackjax or numpyro for `bench.mcmc_peers`, in a process of its own that needs neither torch nor ulam.

`python bench/mcmc_peers_jax.py IN.npz OUT.npz`: IN has the settings as JSON under "settings", the first states
``x_init`` ``[chains, d]``, and what the density needs; OUT gets draws ``[chains, steps, d]``, the leapfrog steps of
every transition ``[chains, steps]``, and the seconds of compilation and of every run. The densities are those of
`bench.posteriors` and `ulam.mcmc`, of one x ``[d]``, in float32.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Density = Callable[[Any], Any]


def eight_schools(y: Any, s: Any) -> Density:
    def log_density(x: Any) -> Any:
        theta = 10 * x[0] + jnp.exp(5 + x[1]) * x[2:]
        return -0.5 * (x @ x + jnp.sum(jnp.square((theta - y) / s)))

    return log_density


def item_response(asked: Any, counts: Any, students: Any) -> Density:
    last = 1 + int(students)

    def log_density(x: Any) -> Any:
        odds = (0.75 + x[0] + x[1:last])[:, None] - x[None, last:]
        return -0.5 * x @ x + x @ counts - jax.nn.softplus(odds).ravel() @ asked

    return log_density


def logistic(features: Any, sums: Any) -> Density:
    return lambda x: -0.5 * x @ x + x @ sums - jnp.sum(jax.nn.softplus(x @ features))


def funnel() -> Density:
    def log_density(x: Any) -> Any:
        return -0.5 * (jnp.square(x[0] / 3) + jnp.exp(-x[0]) * (x[1:] @ x[1:])) - 0.5 * (len(x) - 1) * x[0]

    return log_density


def gaussian(precision: Any) -> Density:
    return lambda x: -0.5 * jnp.sum(x * x * precision)


def rosenbrock(a: Any, b: Any) -> Density:
    def log_density(x: Any) -> Any:
        return -jnp.sum(a * jnp.square(x[1::2] - jnp.square(x[::2])) + b * jnp.square(1 - x[::2]))

    return log_density


DENSITIES = {f.__name__: f for f in (eight_schools, item_response, logistic, funnel, gaussian, rosenbrock)}


def blackjax_run(density: Density, x: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Chains that are scans over transitions, vectorised."""
    import blackjax

    steps, depth = settings["steps"], settings["max_depth"]
    sampler = blackjax.nuts(density, settings["step"], jnp.ones(x.shape[1]), max_num_doublings=depth)

    def chain(x: Any, key: Any) -> Any:
        def step(state: Any, key: Any) -> Any:
            state, told = sampler.step(key, state)
            return state, (state.position, told.num_integration_steps)

        return jax.lax.scan(step, sampler.init(x), jax.random.split(key, steps))[1]

    return timed(jax.vmap(chain), lambda run: (x, jax.random.split(jax.random.key(run), len(x))), settings["runs"])


def numpyro_run(density: Density, x: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """A scan over transitions of all chains: `MCMC.run` of numpyro compiles anew in every run."""
    from numpyro.infer import NUTS

    kernel = NUTS(
        potential_fn=lambda x: -density(x), step_size=settings["step"], inverse_mass_matrix=jnp.ones(x.shape[1]),
        adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=settings["max_depth"],
    )  # fmt: skip
    first = kernel.init(jax.random.split(jax.random.key(0), len(x)), 0, x, (), {})

    def step(state: Any, _: Any) -> Any:
        state = kernel.sample(state, (), {})
        return state, (state.z, state.num_steps)

    def chains(state: Any) -> Any:
        return jax.lax.scan(step, state, None, length=settings["steps"])[1]

    def at(run: int) -> Any:
        return (first._replace(rng_key=jax.random.split(jax.random.key(run), len(x))),)

    found = timed(chains, at, settings["runs"])
    return {**found, "draws": found["draws"].swapaxes(0, 1), "leapfrogs": found["leapfrogs"].T}


def timed(chains: Callable[..., Any], at: Callable[[int], Any], runs: int) -> dict[str, Any]:
    """Compile ``chains``, which gives draws and leapfrog steps, and run it on the arguments ``at`` each run."""
    begin = time.perf_counter()
    compiled = jax.jit(chains).lower(*at(0)).compile()
    compilation, seconds = time.perf_counter() - begin, []
    for run in range(runs + 1):  # the first run does not count
        given = jax.block_until_ready(at(run))
        begin = time.perf_counter()
        draws, leaps = jax.block_until_ready(compiled(*given))
        seconds.append(time.perf_counter() - begin)
    return {"draws": draws, "leapfrogs": leaps, "compilation": compilation, "seconds": seconds[1:]}


def main() -> None:
    with np.load(sys.argv[1]) as archive:
        arrays = dict(archive)
    settings = json.loads(str(arrays.pop("settings")))
    x = jnp.asarray(arrays.pop("x_init"), jnp.float32)
    data = {
        name: value if value.dtype.kind == "i" else jnp.asarray(value, jnp.float32) for name, value in arrays.items()
    }
    density = DENSITIES[settings["density"]](**data)
    run = {"blackjax": blackjax_run, "numpyro": numpyro_run}[settings["package"]]
    np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in run(density, x, settings).items()})


if __name__ == "__main__":
    main()
