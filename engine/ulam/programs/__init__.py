"""Programs: tables of coefficients, one row per fused update, and how samplers state them."""
