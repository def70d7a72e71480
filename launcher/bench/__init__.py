"""Benchmarks of this machine, stage by stage."""
