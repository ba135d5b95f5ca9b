"""The score that NovelSelect maximises: whose density counts in it, and how fast weights fall with rank.

Belongs here: the settings of a score, as one value that goes with candidates wherever they are searched. Does not: the
scores themselves (`exact`, `search.objective`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from novelsum_dagster.diversity.novelsum import DensitySide, SelfDistance
from novelsum_dagster.settings import NovelSum, Selection

Side = Literal["both", "column", "row", "objective"]


@dataclass(frozen=True)
class Scoring:
    """The score of candidate i over picks s, with `w_r = r^-alpha`, d the cosine distance, f the density factor.

    | density_side | score | source |
    |---|---|---|
    | both | `sum_r w_r D_(r)`, `D = d (f_i + f_s)` ascending | published code, UmeanNever/NovelSum |
    | column | `sum_r w_r f_(r) d_(r)`, d ascending, f of the picks | paper, figure and caption; arXiv 2602.19000 |
    | row | `f_i sum_r w_r d_(r)`, d ascending | the side of the published measure |
    | objective | increase of the picks' NovelSum when i joins them | by definition |

    Attributes:
        density_side: whose density counts, default both.
        proximity_power: alpha, default 1.0.
        measured_side, self_distance: of the NovelSum that `objective` increases; defaults row, included.
        swap_rounds: of `objective`: rounds in which picks are exchanged in the end, default 0.

    Raises:
        ValueError: for an unknown side or self distance, negative rounds, or rounds with another side.
    """

    density_side: Side = "both"
    proximity_power: float = 1.0
    measured_side: DensitySide = "row"
    self_distance: SelfDistance = "included"
    swap_rounds: int = 0

    def __post_init__(self) -> None:
        """Repeat the checks of the settings, for calls from Python."""
        for name, known in (
            ("density_side", get_args(Side)),
            ("measured_side", get_args(DensitySide)),
            ("self_distance", get_args(SelfDistance)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; the choices are {', '.join(known)}")
        if self.swap_rounds < 0:
            raise ValueError(f"swap_rounds is {self.swap_rounds}; it must be 0 or more")
        if self.swap_rounds and self.density_side != "objective":
            raise ValueError("swap_rounds works with density_side objective only")

    @staticmethod
    def of(selection: Selection, novelsum: NovelSum) -> "Scoring":
        """Return the score that the settings describe."""
        return Scoring(
            selection.density_side,
            novelsum.proximity_power,
            novelsum.density_side,
            novelsum.self_distance,
            selection.swap_rounds,
        )

    @staticmethod
    def recorded(options: Mapping[str, Any], proximity_power: float) -> "Scoring":
        """Return the score of a selection from the options in its record; the side defaults to both."""
        names = ("density_side", "measured_side", "self_distance", "swap_rounds")
        named = {name: options[name] for name in names if name in options}
        return Scoring(proximity_power=proximity_power, **named)

    @property
    def of_picks(self) -> float:
        """The multiplier of a pick's density factor in `D = d (f_i + f_s)`: 0 for the side `row`, else 1."""
        return 0.0 if self.density_side == "row" else 1.0

    def options(self) -> dict[str, Any]:
        """Return the arguments of `novelselect`, by name."""
        return asdict(self)

    def facts(self) -> dict[str, Any]:
        """Return the values that keys depend on: those of earlier releases, and those that differ from `both`."""
        facts: dict[str, Any] = {"proximity_power": float(self.proximity_power)}
        if self.density_side != "both":
            facts["density_side"] = self.density_side
        if self.swap_rounds:
            facts["swap_rounds"] = int(self.swap_rounds)
        return {**facts, **self.measured()}

    def measured(self) -> dict[str, str]:
        """Return the settings of the measure that the side `objective` uses, by name; empty for other sides."""
        if self.density_side != "objective":
            return {}
        return {"measured_side": self.measured_side, "self_distance": self.self_distance}


PUBLISHED = Scoring()
"""The score of the published code."""
