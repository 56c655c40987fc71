"""Where results come from: the hash of a state, the record of a machine."""
