"""Living: collectors, episodes, returns, and the replay that keeps them."""
