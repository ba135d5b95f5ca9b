"""The scores of a finished run: what its picks scored, and what any sample would have scored.

Belongs here: the picks of a run as arrays, vectors of samples by id. Does not: how a score is computed
(`selection.trajectory`), what is said of it (`explain`, `near_misses`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.audit.find_sample import AMONG
from novelsum_dagster.diversity.density import density_factor
from novelsum_dagster.lineage.query import Connection
from novelsum_dagster.lineage.runs import Run
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.trajectory import bounds_at_end, scores_at_end, trajectory

ROUNDING = 1e-6
"""Relative tolerance of scores: closer ones may be in either order, since the selection keeps distances in float32."""


@dataclass(frozen=True)
class RunScores:
    """The picks of a run of NovelSelect, in order.

    Attributes:
        picks: float32, (k, d), their vectors.
        pick_factors: float64, (k,), their density factors.
        winning: float64, (k,), the score of each pick, including its quality; NaN if it was not picked by score.
        scoring: which score.
    """

    picks: NDArray[np.float32]
    pick_factors: NDArray[np.float64]
    winning: NDArray[np.float64]
    scoring: Scoring

    @staticmethod
    def of(connection: Connection, root: Path, run: Run) -> "RunScores | None":
        """Return the picks of a run; None for another strategy.

        Also None if picks were exchanged at the end: their scores do not belong to one order.
        """
        path = root / run.folder / "picks_vectors.parquet"
        scoring = Scoring.recorded(run.options, run.proximity_power)
        if run.strategy != "novelselect" or scoring.swap_rounds or not path.exists():
            return None
        picks = connection.execute(
            "SELECT coalesce(score, 'nan') AS score, density_factor FROM picks WHERE selection = ? ORDER BY rank",
            [run.selection],
        ).fetchnumpy()
        # As one long column: Arrow's way to NumPy imports pandas.
        stored = connection.execute("SELECT unnest(vector) AS value FROM read_parquet(?)", [str(path)]).fetchnumpy()
        vectors = stored["value"].reshape(len(picks["score"]), -1)
        return RunScores(vectors, np.asarray(picks["density_factor"]), np.asarray(picks["score"]), scoring)

    def after_each_pick(self, vector: NDArray[np.float32], factor: float, quality: float = 1.0) -> NDArray[np.float64]:
        """Return a sample's score after every pick, float64, (k,), as `trajectory` does."""
        return trajectory(vector, factor, self.picks, self.pick_factors, scoring=self.scoring, quality=quality)

    def at_end(self, vectors: NDArray[np.float32], factors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the scores of samples of quality 1 after all picks, float64, (n,)."""
        return scores_at_end(vectors, factors, self.picks, self.pick_factors, scoring=self.scoring)

    def bounds_at_end(
        self, score: NDArray[np.float64], after_picks: NDArray[np.int64], factors: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return upper bounds of the scores of samples of quality 1 after all picks, float64, (n,)."""
        return bounds_at_end(score, after_picks, factors, self.pick_factors, scoring=self.scoring)


@dataclass(frozen=True)
class Unpicked:
    """The samples of a run's pool that were not picked, in the order of the pool's file.

    Attributes:
        ids: (n,).
        factors: float64, (n,), density factors.
        score: float64, (n,), the last score or upper bound that the selection kept; NaN if none.
        after_picks: int64, (n,), how many picks had been made then.
    """

    ids: list[str]
    factors: NDArray[np.float64]
    score: NDArray[np.float64]
    after_picks: NDArray[np.int64]

    @staticmethod
    def of(connection: Connection, run: Run, full: dict[str, list[str]]) -> "Unpicked":
        """Return the samples that would be eligible for one more pick, if the run counts samples.

        Args:
            connection: to the lineage.
            run: of NovelSelect.
            full: by column of the samples, the labels whose caps the picks have reached.
        """
        found = connection.execute(
            "SELECT remaining.id, coalesce(remaining.score, 'nan') AS score, remaining.after_picks,"
            " density.mean_squared_distance"
            " FROM remaining"
            " INNER JOIN samples ON samples.id = remaining.id AND samples.snapshot = ?"
            " INNER JOIN density ON density.id = remaining.id AND density.density = ?"
            " ANTI JOIN (SELECT id FROM picks WHERE selection = ?) AS chosen ON chosen.id = remaining.id"
            " WHERE remaining.selection = ? AND NOT list_has_any(?::VARCHAR[], [samples.id, samples.former_id])"
            + "".join(f" AND NOT list_contains(?::VARCHAR[], samples.{column}::VARCHAR)" for column in full)
            + " ORDER BY samples.file, samples.position",
            [
                *(run.snapshot, run.density, run.selection, run.selection),
                list(run.options.get("must_exclude", ())),
                *full.values(),
            ],
        ).fetchnumpy()
        return Unpicked(
            found["id"].tolist(),
            density_factor(found["mean_squared_distance"], run.density_power),
            np.asarray(found["score"]),
            np.asarray(found["after_picks"]),
        )


def vectors_of(connection: Connection, root: Path, run: Run, ids: list[str]) -> dict[str, NDArray[np.float32]]:
    """Return the stored vectors of samples, by id, without those that have none."""
    found = connection.execute(
        f"SELECT id, vector FROM read_parquet(?) WHERE {AMONG}",
        [str(root / run.vectors_folder / "*.parquet"), ids],
    ).fetchnumpy()
    return dict(zip(found["id"].tolist(), found["vector"], strict=True))
