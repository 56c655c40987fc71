"""What was run, as plain Python values."""
