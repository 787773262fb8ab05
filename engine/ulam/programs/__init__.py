"""Programs: tables of coefficients, one row an evaluation of the network, and how their rows are stated."""
