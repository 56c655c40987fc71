"""Adaptation: learning inside a task."""
