"""Policy improvement: losses and one update."""
