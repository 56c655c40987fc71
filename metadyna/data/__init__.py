"""Data sets: gathered at random, read and written in Minari's format."""
