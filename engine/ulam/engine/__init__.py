"""The engine: chains of many jobs share the slots of one batch, from submission to results.

`engine` is the public class, `sample` the function; `loop` calls `scheduler`, `runner` and `delivery` event by event.
"""
