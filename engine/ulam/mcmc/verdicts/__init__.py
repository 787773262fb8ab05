"""Whether chains have mixed: the `statistics`, the `verdict` on them, the `causes` of a bad one.

`diagnosis` warns of what a run itself shows: divergences, frozen chains, energies rounded coarsely.
"""
