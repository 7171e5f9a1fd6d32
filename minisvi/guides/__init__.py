"""q: the contract in `base`, the Gaussian families, and the catalogue, one file per kind of family."""
