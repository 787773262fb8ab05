"""Programs: tables of coefficients, one row per fused update, and how samplers state them.

`builder` makes them from rows in terms of x, D, eps, m and z; `predictions` converts between what networks predict.
"""
