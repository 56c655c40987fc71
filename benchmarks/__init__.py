"""Measurements: speed, and learning with many seeds."""
