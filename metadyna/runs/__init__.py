"""Runs: what the command line does with a configuration, from the first step to the last figure's numbers."""
