"""Choosing a subset: NovelSelect and the strategies it is compared with."""

from novelsum_dagster.selection.limits import Quota
from novelsum_dagster.selection.novelselect import novelselect
from novelsum_dagster.selection.picks import Picks, Remaining
from novelsum_dagster.selection.search.exact import Standing, standing
from novelsum_dagster.selection.strategies import STRATEGIES, select

__all__ = ["STRATEGIES", "Picks", "Quota", "Remaining", "Standing", "novelselect", "select", "standing"]
