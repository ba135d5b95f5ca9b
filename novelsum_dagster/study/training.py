"""The proxy for performance: the same small causal language model trained on each set, scored on held-out text.

Belongs here: the shared tokenizer, training with equal tokens, held-out losses and their z-scores, the held-out rows.
Does not: which sets are compared, nor how performance is set against diversity.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.embedding.language_model import END, LanguageModel, build_model, reproducible
from novelsum_dagster.embedding.model_files import files_hash, model_folder
from novelsum_dagster.settings import Training

if TYPE_CHECKING:
    import torch

SCORED_CHARACTERS = 2000
"""Characters of a held-out text that are scored; not tokens, so that every tokenizer scores the same text."""

HELD_OUT_SHARE = 5
"""At most one in this number of samples of a source is held out, so that the rest still represents the source."""

_FROM_SCRATCH_RATE, _FINE_TUNING_RATE = 2e-3, 5e-5
_WARMUP = 0.05
_GRADIENT_NORM = 1.0
_NOT_SCORED = -100


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> str:
    """Return a byte-level BPE tokenizer of at most `vocabulary` tokens, as JSON; the same texts give the same one.

    It has all 256 bytes, so it can write every text, and `END`. Train it once on the whole pool: models of different
    tokenizers predict different things.

    Raises:
        InputError: if there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if not any(texts):
        raise InputError("the texts are empty; a tokenizer needs text to train on")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def train_and_evaluate(
    texts: Sequence[str],
    held_out: Mapping[str, Sequence[str]],
    settings: Training,
    tokenizer: str | None = None,
    seed: int = 42,
    progress: Progress = no_progress,
    device: str = "auto",
) -> dict[str, float]:
    """Train the settings' model on `texts` and return its loss on each source's held-out texts, in bits per byte.

    Args:
        texts: the set's samples.
        held_out: source -> its held-out texts; see `bits_per_byte`.
        settings: model, number of tokens, context, batch size, peak learning rate.
        tokenizer: what `train_tokenizer` returned, for a model from scratch; a model that the settings name has its
            own, and this is not read.
        seed: of the initial weights, of the order of the samples and of dropout. Equal seeds give equal losses on one
            machine with one number of threads, and equal initial weights for every set.
        progress: called after each step with tokens trained on and `settings.tokens`.
        device: as the setting `device`.

    Returns:
        Source -> bits per byte, in the order of `held_out`; lower is better.

    Raises:
        InputError: for a set or a held-out source without text, a model that cannot be loaded or is too short for the
            context, a device that does not exist, or training that diverged.
    """
    _require_text(held_out)  # Before the minutes of training, not after.
    model = build_model(settings, tokenizer, seed, device)
    train(model, texts, settings, seed, progress)
    losses = bits_per_byte(model, held_out, settings)
    if not all(map(math.isfinite, losses.values())):
        raise InputError("training diverged: the held-out loss is not a number; lower training.learning_rate")
    return losses


def named_model_hash(settings: Training) -> str | None:
    """Return the SHA-256 of the files of the model that the settings name; None for one from scratch."""
    return None if settings.model is None else files_hash(model_folder(settings.model, settings.revision, "training"))


def train(
    model: LanguageModel, texts: Sequence[str], settings: Training, seed: int = 42, progress: Progress = no_progress
) -> None:
    """Train `model` in place on exactly `settings.tokens` tokens of `texts`; see `training_sequences` for their order.

    AdamW; the learning rate rises linearly over the first twentieth of the steps to `settings.learning_rate` (default:
    2e-3 from scratch, 5e-5 for a named model) and falls to zero along a cosine; gradients are clipped to norm 1. On
    CUDA, products are in bfloat16.

    Raises:
        InputError: if no text has a token.
    """
    import torch

    inputs, targets = training_sequences(_encode(model, texts), model.end, settings, seed)
    steps = -(-len(inputs) // settings.batch_size)
    peak = settings.learning_rate or (_FROM_SCRATCH_RATE if settings.model is None else _FINE_TUNING_RATE)
    optimizer = torch.optim.AdamW(model.network.parameters(), betas=(0.9, 0.95), fused=True)
    model.network.train()
    with reproducible(seed):
        for step in range(steps):
            rows = slice(step * settings.batch_size, (step + 1) * settings.batch_size)
            for group in optimizer.param_groups:
                group["lr"] = peak * _rate(step, steps)
            nats = _nats(model, inputs[rows], targets[rows])
            (nats / int((targets[rows] != _NOT_SCORED).sum())).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.network.parameters(), _GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()
            progress(min(rows.stop * settings.context, settings.tokens), settings.tokens)


def training_sequences(
    samples: Sequence[NDArray[np.int64]], end: int, settings: Training, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the tokens that are trained on, as inputs and targets of shape (sequences, context).

    The samples are shuffled, each followed by `end`, strung together, and again in another order for as many epochs as
    it takes; sequences are cut from that string one after the other, so one may begin within a sample and hold
    several. Exactly `settings.tokens` positions have a target, the token that follows; the rest of the last sequence
    has -100. Samples without tokens are left out. A set of more tokens than that is not seen whole.

    Args:
        samples: token ids, an array of shape (tokens,) for each sample.
        end: id of the end token.
        settings: tokens and context.
        seed: of the shuffles.

    Raises:
        InputError: if no sample has a token.
    """
    ended = [np.append(ids, end) for ids in samples if len(ids)]
    if not ended:
        raise InputError("a set has no tokens to train on")
    generator = np.random.default_rng(seed)
    parts, length = [np.array([end])], 1
    while length <= settings.tokens:
        for row in generator.permutation(len(ended)):
            parts.append(ended[row])
            length += len(ended[row])
    string = np.concatenate(parts)[: settings.tokens + 1]
    shape = (-(-settings.tokens // settings.context), settings.context)
    inputs, targets = np.full(shape, end), np.full(shape, _NOT_SCORED)
    inputs.flat[: settings.tokens], targets.flat[: settings.tokens] = string[:-1], string[1:]
    return inputs, targets


def bits_per_byte(model: LanguageModel, held_out: Mapping[str, Sequence[str]], settings: Training) -> dict[str, float]:
    """Return the loss on each source's texts under the model in bits per UTF-8 byte, over all texts of the source.

    Of each text the first 2,000 characters are scored, in windows of `settings.context` tokens: the first window
    follows an end token, the others the token before them, without what came earlier. The end of a text is not scored.

    Raises:
        InputError: if there is no source, or a source has no text.
    """
    _require_text(held_out)
    return {source: _bits_per_byte(model, texts, settings) for source, texts in held_out.items()}


def z_scores(losses: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the performance of each set: the z-score of its negative loss among the sets, averaged over sources.

    Every source counts alike. The standard deviation is the population's; a source in which all sets are equal counts
    0 for all.

    Args:
        losses: set -> source -> loss, lower is better.

    Returns:
        Set -> performance, higher is better; the mean over sets is 0.

    Raises:
        InputError: for fewer than two sets, a set without sources or with other sources than the first, or a loss that
            is not a number.
    """
    if len(losses) < 2:
        raise InputError(f"z-scores compare sets; there must be at least 2, not {len(losses)}")
    first, sources = next((name, list(of_set)) for name, of_set in losses.items())
    for name, of_set in losses.items():
        if not of_set or set(of_set) != set(sources):
            raise InputError(f"set {name} has losses on {sorted(of_set)}, set {first} on {sorted(sources)}")
    values = np.array([[of_set[source] for source in sources] for of_set in losses.values()], dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(
            f"set {list(losses)[int(np.argwhere(~np.isfinite(values))[0, 0])]} has a loss that is not a number"
        )
    differ = np.ptp(values, axis=0) > 0
    deviation = np.where(differ, values.std(axis=0), 1.0)
    scores = np.where(differ, (values.mean(axis=0) - values) / deviation, 0.0).mean(axis=1)
    return dict(zip(losses, scores.tolist(), strict=True))


def held_out_rows(sources: Sequence[str], per_source: int, seed: int) -> NDArray[np.int64]:
    """Return the rows to set aside for evaluation: `per_source` of every source, drawn at random, ascending.

    Args:
        sources: the source of each sample of the pool.
        per_source: samples held out of each source, at least 1.
        seed: of the draw.

    Returns:
        Rows, shape (number of sources * per_source,).

    Raises:
        InputError: naming the sources of which more than a fifth would be held out.
        ValueError: for `per_source` under 1, or no samples.
    """
    if per_source < 1 or not len(sources):
        raise ValueError(f"per_source is {per_source} of {len(sources)} samples; both must be at least 1")
    names, source_of, sizes = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    few = [
        f"{name} ({size:,} samples)"
        for name, size in zip(names, sizes, strict=True)
        if per_source * HELD_OUT_SHARE > size
    ]
    if few:
        raise InputError(
            f"{per_source:,} held-out samples a source are more than a fifth of {', '.join(few)}; at most"
            f" {int(sizes.min()) // HELD_OUT_SHARE:,} fit every source"
        )
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(np.flatnonzero(source_of == source))[:per_source] for source in range(len(names))]
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def _require_text(held_out: Mapping[str, Sequence[str]]) -> None:
    if not held_out:
        raise InputError("no held-out texts to score")
    for source, texts in held_out.items():
        if not any(texts):
            raise InputError(f"held-out source {source} has no text to score")


def _bits_per_byte(model: LanguageModel, texts: Sequence[str], settings: Training) -> float:
    import torch

    scored = [text[:SCORED_CHARACTERS] for text in texts]
    windows = sorted(_windows(_encode(model, scored), model.end, settings.context), key=lambda pair: len(pair[0]))
    model.network.eval()
    nats = 0.0
    with torch.inference_mode():
        for start in range(0, len(windows), settings.batch_size):
            inputs, targets = zip(*windows[start : start + settings.batch_size], strict=True)
            nats += float(_nats(model, _padded(inputs, model.end), _padded(targets, _NOT_SCORED)))
    return nats / math.log(2) / sum(len(text.encode()) for text in scored)


def _windows(
    samples: Sequence[NDArray[np.int64]], end: int, context: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    for ids in samples:
        before = np.concatenate([[end], ids[:-1]])
        for start in range(0, len(ids), context):
            yield before[start : start + context], ids[start : start + context]


def _padded(rows: Sequence[NDArray[np.int64]], fill: int) -> NDArray[np.int64]:
    # Padding is on the right: in a causal model later tokens have no influence, so no mask is needed.
    table = np.full((len(rows), max(map(len, rows))), fill)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = ids
    return table


def _nats(model: LanguageModel, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> "torch.Tensor":
    """Return the sum of the losses at the positions that have a target, in nats."""
    import torch

    kind = torch.device(model.device).type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
        logits = model.network(input_ids=torch.from_numpy(inputs).to(model.device), use_cache=False).logits
    wanted = torch.from_numpy(targets).to(model.device).flatten()
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted, ignore_index=_NOT_SCORED, reduction="sum"
    )


def _encode(model: LanguageModel, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    encodings = model.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]


def _rate(step: int, steps: int) -> float:
    """Return the part of the peak learning rate that step `step` of `steps` has."""
    warmup = math.ceil(_WARMUP * steps)
    if step < warmup:
        return (step + 1) / warmup
    return (1 + math.cos(math.pi * (step + 1 - warmup) / (steps + 1 - warmup))) / 2
