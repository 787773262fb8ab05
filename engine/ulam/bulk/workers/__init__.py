"""The processes that sample units: `worker` is one; local processes or Ray actors run several of them.

`shares` says where in the list of units a process of torchrun or Slurm begins."""
