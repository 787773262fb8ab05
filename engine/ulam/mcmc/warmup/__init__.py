"""Warm-up: what it is asked for, the first step, step sizes, masses and path lengths, chain by chain or together.

`warming.py` is the door, `pooled.py` and `alone.py` the two ways; `settings.py` and `tuning.py` go in and come out.
"""
