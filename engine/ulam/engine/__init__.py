"""The engine: chains of many jobs in the slots of one batch, from the submission of a job to its results."""
