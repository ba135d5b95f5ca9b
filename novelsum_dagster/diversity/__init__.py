"""How diverse a set of samples is: density, NovelSum, and what they are made of."""

from novelsum_dagster.diversity.density import Density, density
from novelsum_dagster.diversity.novelsum import NovelSumResult, novelsum

__all__ = ["Density", "NovelSumResult", "density", "novelsum"]
