"""Policies and the distributions that they are made of."""
