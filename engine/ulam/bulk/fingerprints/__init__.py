"""The hash of what bytes are computed from: networks with their weights and code, functions, any value.

`fingerprint` walks a value; the others say what counts of code, of an object's attributes, and of plain values."""
