"""The benchmarks behind ``scripts/benchmark.py``, one a module."""
