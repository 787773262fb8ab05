"""How the trained networks that come with the package were made: `python -m ulam.training.NAME`."""
