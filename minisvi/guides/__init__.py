"""q: the contract in `base`, the Gaussian families, and the catalogue, a file for each family."""
