"""E and its gradient: the ELBO, other bounds, and the closed KL."""
