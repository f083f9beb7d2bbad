"""Measurements of speed and memory; `make bench` runs them all. None of them is a test."""
