"""Bulk sampling that cannot be lost: units of chains, stored under a hash of all that their bytes depend on.

`Plan` says what to sample, `run` has workers sample it into a folder, `open` reads what is there."""
