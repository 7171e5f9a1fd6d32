"""Without tuning: the automatic fit, and its verdict."""
