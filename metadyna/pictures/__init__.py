"""Everything that draws: curves, clips, environments."""
