"""The fourteen measures side by side: NovelSum, the eleven that the paper compares it with, DCScore and G-Vendi.

Belongs here: the table of measures, measuring sets of equal size under the same settings. Does not: any single measure,
printing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.devices import cuda_or_cpu
from novelsum_dagster.common.progress import Reporter
from novelsum_dagster.diversity.clusters import Partition, cluster_inertia, partition_entropy
from novelsum_dagster.diversity.dcscore import dcscore
from novelsum_dagster.diversity.distances import distsum_l2, facility_location, knn_distance
from novelsum_dagster.diversity.g_vendi import gradient_features
from novelsum_dagster.diversity.lexical import TTR_TOKENS, VOCD_WORDS, Occurrences, ttr, vocd_d
from novelsum_dagster.diversity.measured import Measured
from novelsum_dagster.diversity.moments import Moments, distsum_cosine, log_determinant, radius, vendi_score
from novelsum_dagster.diversity.novelsum import (
    Factors,
    Grid,
    NovelSumOptions,
    NovelSumResult,
    Powers,
    density_factors,
    novelsum_with_densities,
)
from novelsum_dagster.settings import Measures, NovelSum, Training

if TYPE_CHECKING:
    from novelsum_dagster.embedding.language_model import LanguageModel


@dataclass(frozen=True)
class Measure:
    """Description of a measure: its label, its family in the paper, and whether higher is more diverse."""

    label: str
    family: str
    higher_is_diverse: bool = True


MEASURES: dict[str, Measure] = {
    "novelsum": Measure("NovelSum", "novelty"),
    "ttr": Measure("TTR", "words"),
    "vocd_d": Measure("vocd-D", "words"),
    "distsum_cosine": Measure("DistSum cosine", "distances"),
    "distsum_l2": Measure("DistSum L2", "distances"),
    "knn_distance": Measure("KNN distance", "distances"),
    "cluster_inertia": Measure("Cluster inertia", "distances"),
    "radius": Measure("Radius", "distances"),
    "facility_location": Measure("Facility location", "distribution", higher_is_diverse=False),
    "partition_entropy": Measure("Partition entropy", "distribution"),
    "vendi_score": Measure("Vendi score", "distribution"),
    "log_determinant": Measure("Log-determinant", "distribution"),
    "dcscore": Measure("DCScore", "distribution"),
    "g_vendi": Measure("G-Vendi", "distribution"),
}
"""All measures by the name used in tables and files; `g_vendi` is only measured if the settings name a model."""

OF_TEXTS = frozenset({"ttr", "vocd_d", "g_vendi"})
"""Measures of the texts themselves, the same under any vectors."""


@dataclass(frozen=True)
class Value:
    """The value of a measure, and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Samples:
    """A set to be measured: float32, (n, d), and its n texts, without which the lexical measures are left out."""

    vectors: NDArray[np.float32]
    texts: Sequence[str] | None = None


@dataclass(frozen=True)
class SetMeasures:
    """The measures of one set.

    Attributes:
        name: of the set.
        samples: size of the set.
        rows: int64, (m,): the samples that were measured.
        values: by measure, in the order of `MEASURES`.
        grid: NovelSum at every requested K, beta and alpha; the first is `values["novelsum"]`.
    """

    name: str
    samples: int
    rows: NDArray[np.int64]
    values: dict[str, Value]
    grid: dict[Powers, NovelSumResult]

    @property
    def novelsum(self) -> NovelSumResult:
        """NovelSum at the first setting, with each sample's novelty."""
        return next(iter(self.grid.values()))

    def records(self) -> list[dict[str, Any]]:
        """Return a row per measure: set, size, measure, label, family, value, low, high, higher_is_diverse."""
        return [record(self.name, len(self.rows), key, found) for key, found in self.values.items()]


def record(set_name: str, size: int, measure: str, found: Value) -> dict[str, Any]:
    """Return one measure of one set as the row of a table, with the description of the measure."""
    known = MEASURES[measure]
    return {
        "set": set_name,
        "size": size,
        "measure": measure,
        "label": known.label,
        "family": known.family,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "higher_is_diverse": known.higher_is_diverse,
    }


class Evaluator:
    """Computes the measures of sets against one reference, which is prepared once.

    Args:
        reference: float32, (r, d): the pool, which defines density, cells and what is to be covered.
        novelsum: variants of NovelSum and how density is searched.
        measures: parameters of the other measures.
        grid: K, beta and alpha of NovelSum; None takes those of `novelsum`.
        seed: of clusterings, draws and intervals.
        device: `auto`, "cpu" or a CUDA device.

    Raises:
        ValueError: for bad rows.
        InputError: if the device is not on this machine.

    With `measures.g_vendi.model`, `measure` raises InputError if that model cannot be loaded.
    """

    def __init__(
        self,
        reference: NDArray[np.float32],
        novelsum: NovelSum,
        measures: Measures,
        *,
        grid: Grid | None = None,
        seed: int = 42,
        device: str = "auto",
    ) -> None:
        self.reference = reference
        self._device = cuda_or_cpu(device)
        self.options = NovelSumOptions.of(novelsum, grid, device=self._device)
        self.measures = measures
        self._seed = seed
        self._features: dict[str, NDArray[np.float32]] = {}
        self.cells = min(measures.partition_clusters, len(reference))
        self.partition = Partition.of(reference, clusters=self.cells, seed=seed)

    def measure(
        self,
        name: str,
        samples: Samples,
        rows: NDArray[np.int64],
        *,
        factors: Factors,
        words: Occurrences | None,
        ttr_tokens: int,
        reporter: Reporter,
    ) -> SetMeasures:
        """Return all measures of some samples of a set.

        Args:
            name: of the set.
            samples: the set.
            rows: int64, (m,): those to be measured.
            factors: their density factors.
            words: of their texts; None omits the lexical measures, and too few words omit the one that needs more.
            ttr_tokens: words in a sample for TTR.
            reporter: shows progress.

        Raises:
            ValueError: as the measures do.
        """
        vectors = samples.vectors[rows]
        with reporter.step(name) as progress:
            grid = novelsum_with_densities(vectors, factors, self.options)
            values = {"novelsum": _value(next(iter(grid.values())))}
            texts = None if samples.texts is None else [samples.texts[row] for row in rows]
            asked = list(self.others(vectors, texts, words, ttr_tokens))
            for done, (key, compute) in enumerate(asked, 1):
                progress(done, len(asked) + 1)
                values[key] = _value(compute())
            progress(len(asked) + 1, len(asked) + 1)
        return SetMeasures(
            name, len(samples.vectors), rows, {key: values[key] for key in MEASURES if key in values}, grid
        )

    def others(
        self,
        vectors: NDArray[np.float32],
        texts: Sequence[str] | None = None,
        words: Occurrences | None = None,
        ttr_tokens: int = TTR_TOKENS,
    ) -> Iterator[tuple[str, Callable[[], Measured]]]:
        """Yield every measure but NovelSum of a set by name, each as a function that computes it.

        Cluster inertia is omitted for sets with no more samples than clusters, for which it is always 0.

        Args:
            vectors: float32, (n, d).
            texts: n texts; None omits G-Vendi.
            words, ttr_tokens: as in `measure`.
        """
        settings, device, seed = self.measures, self._device, self._seed
        if words is not None:
            if words.tokens >= ttr_tokens:
                yield "ttr", lambda: ttr(words, tokens=ttr_tokens, seed=seed)
            if words.tokens >= VOCD_WORDS:
                yield "vocd_d", lambda: vocd_d(words, seed=seed)
        moments = Moments.of(vectors, device=device)
        yield "distsum_cosine", lambda: distsum_cosine(vectors, moments=moments)
        yield "distsum_l2", lambda: distsum_l2(vectors, device=device)
        yield "knn_distance", lambda: knn_distance(vectors, neighbor=settings.knn_neighbor, device=device)
        if settings.inertia_clusters < len(vectors):
            yield "cluster_inertia", lambda: cluster_inertia(vectors, clusters=settings.inertia_clusters, seed=seed)
        yield "radius", lambda: radius(vectors, moments=moments)
        yield "facility_location", lambda: facility_location(vectors, self.reference, device=device)
        yield "partition_entropy", lambda: partition_entropy(vectors, partition=self.partition)
        yield "vendi_score", lambda: vendi_score(vectors, moments=moments)
        yield "log_determinant", lambda: log_determinant(vectors, ridge=settings.ridge, moments=moments)
        yield "dcscore", lambda: dcscore(vectors, temperature=settings.dcscore_temperature, device=device)
        if texts is not None and settings.g_vendi.model is not None:
            yield "g_vendi", lambda: vendi_score(self._gradients(texts))

    def _gradients(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the features of G-Vendi; a text in several sets is processed once."""
        asked = self.measures.g_vendi
        new = [text for text in dict.fromkeys(texts) if text not in self._features]
        if new:
            found = gradient_features(self._proxy, new, asked.dimensions, self._seed, context=asked.context)
            self._features.update(zip(new, found, strict=True))
        return np.stack([self._features[text] for text in texts])

    @cached_property
    def _proxy(self) -> "LanguageModel":
        """The model that the settings name for G-Vendi."""
        from novelsum_dagster.embedding.language_model import build_model

        asked = self.measures.g_vendi
        training = Training(model=asked.model, revision=asked.revision, context=asked.context)
        return build_model(training, seed=self._seed, device=self._device, section="measures.g_vendi")


@dataclass(frozen=True)
class Comparison:
    """Sets measured under the same conditions: `sets` in the order given; `notes` holds caveats as sentences."""

    sets: list[SetMeasures]
    notes: tuple[str, ...]
    ttr_tokens: int | None


def measure_sets(
    sets: Mapping[str, Samples],
    evaluator: Evaluator,
    *,
    factors: Mapping[str, Factors] | None = None,
    seed: int = 42,
    reporter: Reporter,
) -> Comparison:
    """Measure sets at equal size: larger ones are sampled, seeded, down to the smallest.

    Args:
        sets: by name.
        evaluator: what they are measured against.
        factors: density factors of each set's samples, if already computed.
        seed: of the sampling.
        reporter: shows progress.

    Raises:
        ValueError: as the measures do.
    """
    measures = evaluator.measures
    size = min(len(samples.vectors) for samples in sets.values())
    rows = {name: _drawn(len(samples.vectors), size, seed) for name, samples in sets.items()}
    words, ttr_tokens = _words(sets, rows, measures)
    notes = [*_size_notes(sets, size, seed), *_word_notes(words, ttr_tokens, measures)]
    if evaluator.cells < measures.partition_clusters:
        notes.append(f"Partition entropy was taken over {evaluator.cells:,} cells: the reference has no more samples.")
    if measures.inertia_clusters >= size:
        clusters = f"{measures.inertia_clusters:,} clusters for {size:,} samples"
        notes.append(f"Cluster inertia was left out: with {clusters} it is always 0.")
    measured = []
    for name, samples in sets.items():
        chosen = rows[name]
        if factors is None:
            known, used = density_factors(samples.vectors[chosen], evaluator.reference, evaluator.options)
            notes += _neighbor_notes(name, used, evaluator)
        else:
            known = {key: factor[chosen] for key, factor in factors[name].items()}
        measured.append(
            evaluator.measure(
                name,
                samples,
                chosen,
                factors=known,
                words=words.get(name) if ttr_tokens else None,
                ttr_tokens=ttr_tokens or measures.ttr_tokens,
                reporter=reporter,
            )
        )
    return Comparison(measured, tuple(notes), ttr_tokens)


def _value(result: Measured | NovelSumResult) -> Value:
    return Value(result.value, *result.interval())


def _drawn(samples: int, size: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(seed).permutation(samples)[:size])


def _words(
    sets: Mapping[str, Samples], rows: Mapping[str, NDArray[np.int64]], measures: Measures
) -> tuple[dict[str, Occurrences], int | None]:
    """Return the words of each set that has texts, and the sample size of TTR; None if there are too few words."""
    words = {
        name: Occurrences.of([samples.texts[row] for row in rows[name]])
        for name, samples in sets.items()
        if samples.texts is not None
    }
    fewest = min((found.tokens for found in words.values()), default=0)
    return words, min(fewest, measures.ttr_tokens) if fewest >= VOCD_WORDS else None


def _size_notes(sets: Mapping[str, Samples], size: int, seed: int) -> list[str]:
    if all(len(samples.vectors) == size for samples in sets.values()):
        return []
    smallest = min(sets, key=lambda name: len(sets[name].vectors))
    return [
        f"Sets of unequal size: each was measured on {size:,} samples, as many as {smallest} has, drawn with seed"
        f" {seed}."
    ]


def _word_notes(words: Mapping[str, Occurrences], ttr_tokens: int | None, measures: Measures) -> list[str]:
    if not words:
        return []
    if ttr_tokens is None:
        poorest = min(words, key=lambda name: words[name].tokens)
        return [
            f"TTR and vocd-D were left out: {poorest} has {words[poorest].tokens:,} words, and they need {VOCD_WORDS}."
        ]
    if ttr_tokens < measures.ttr_tokens:
        return [f"TTR was taken over {ttr_tokens:,} words: no set may have fewer."]
    return []


def _neighbor_notes(name: str, used: int, evaluator: Evaluator) -> list[str]:
    asked = max(evaluator.options.grid.neighbors)
    if used == asked:
        return []
    return [f"The reference has too few distinct samples for {asked} neighbours; {used} were used in {name}."]
