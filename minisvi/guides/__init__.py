"""Guides: the contract in `base`, then one file per kind of family."""

from minisvi.guides.base import Distribution, Guide, Independent, custom
from minisvi.guides.delta import delta
from minisvi.guides.gaussian import full_rank, mean_field

__all__ = ["Distribution", "Guide", "Independent", "custom", "delta", "full_rank", "mean_field"]
