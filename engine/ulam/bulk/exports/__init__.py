"""Finished samples in the formats of other tools, streamed in the order of jobs and chains.

`writing` makes a file whole or not at all, `formats` has one function a format, `rows` what they are given."""

from .writing import Summary, stream, write

__all__ = ["Summary", "stream", "write"]
