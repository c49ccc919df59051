"""Benchmarks: each row measures both sides in one run, in pairs, on the same hosts."""
