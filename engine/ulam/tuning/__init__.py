"""Finding the fastest way to run a network: candidates, each timed in an engine's real ticks and held to an accuracy.
`tune` chooses, `candidates` lists them, `trial` measures one, `reference` is what it is measured against."""
