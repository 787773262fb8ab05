"""The command line: one file a command (`sample`, `check`, `mcmc`, `info`), which `main` chooses from.

The other files are what commands share: models and jobs by their names, and the files that are read and written.
"""
