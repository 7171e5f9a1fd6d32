"""How a run endures: the compiled loop, its host, checkpoints, and what a run comes to."""
