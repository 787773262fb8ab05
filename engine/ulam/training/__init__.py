"""How the trained networks that come with the package were made.

Each file is a script: `python -m ulam.training.NAME`.
"""
