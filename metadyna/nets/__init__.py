"""Networks: Equinox modules whose every leaf is an array, and what prepares their inputs."""
