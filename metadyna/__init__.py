"""MetaDyna: model-based, model-free and meta reinforcement learning in JAX."""

__version__ = "0.1.0"
