"""Benchmarks: long runs whose tables are recorded, not timed tests."""
