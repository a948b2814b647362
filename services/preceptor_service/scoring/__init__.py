"""Scorers: torch engines, and the pools that run them."""
