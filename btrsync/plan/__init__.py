"""Deciding: pure functions over values, without clock or I/O."""
