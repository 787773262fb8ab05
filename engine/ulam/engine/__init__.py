"""The engine: chains of many jobs share the slots of one batch, from submission to results."""
