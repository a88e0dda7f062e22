"""Sawtooth windows over history and stream, by one engine.

`layout` says what lies where in a state, `kernels` are the compiled steps, `engine` is the door.
"""
