"""The schedulers that `fuse` takes, by the coordinates of their samples: which rows each call of `step` executes.

`fusing.FAMILIES` gives the class of each by the name that diffusers has for it.
"""
