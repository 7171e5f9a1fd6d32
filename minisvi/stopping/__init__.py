"""When to stop: patience, and convergence."""
