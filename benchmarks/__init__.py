"""Measurements of Preceptor against the figures that it promises. `python -m benchmarks` runs them."""
