"""Choosing a subset: NovelSelect and the strategies it is compared with."""

from novelsum_dagster.selection.novelselect import novelselect
from novelsum_dagster.selection.picks import Picks
from novelsum_dagster.selection.strategies import STRATEGIES, select

__all__ = ["STRATEGIES", "Picks", "novelselect", "select"]
