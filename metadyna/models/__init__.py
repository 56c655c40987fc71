"""World models: networks that learn the dynamics, how they are fitted, and what is imagined with them."""
