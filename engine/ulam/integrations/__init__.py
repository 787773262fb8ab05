"""Bridges to other libraries, one folder each.

A bridge needs its library only when it is used.
"""
