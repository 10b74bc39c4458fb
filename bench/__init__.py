"""Benchmarks: they drive the programs from outside, write JSON and draw it."""
