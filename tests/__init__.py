"""Tests, one folder per room of the code."""
