"""Near-duplicates by MinHash (datasketch), ignoring templates that many samples share.

Belongs here: which sample is close to which earlier one, with what score; what a template is. Does not: exact
duplicates, which share an id (`ingest`).

The sets that are compared hold shingles of 5 bytes of UTF-8. Shingles of a long shared prompt do not enter them:

1. A window of 32 bytes is common where it occurs in at least 2 % of the samples, and in at least 8. Counted are the
   4,096 samples whose ids have the smallest CRC-32 (all samples of a smaller pool), of each its first 32 KiB, so that
   the order of the samples does not matter.
2. A template is a run of at least 256 bytes that common windows cover.
3. Shingles that lie wholly within templates are left out of a sample's set, unless it has less than 48 bytes that no
   common window covers: samples that differ in a few words only are near-duplicates, templates or not.
"""

import heapq
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasketch import MinHash

SHINGLE_BYTES = 5
"""Bytes of UTF-8 in a shingle: no word boundaries are needed, so every language and code work alike."""
BYTES_PER_SAMPLE = 8 * 2**10
"""Memory for a sample's signature and its places in the index; measured."""
PERMUTATIONS = 128
"""With 128 permutations the estimated Jaccard similarity has a standard deviation of at most 0.044."""
WINDOW_BYTES = 32
"""A power of two. English 5-grams are in most samples; equal text of this length in many samples is seldom chance."""
TEMPLATE_BYTES = 256
"""At a threshold of 0.8 a shorter template makes only samples alike that have under 32 bytes beside it."""
_OWN_BYTES = 48
_COMMON_FRACTION, _COMMON_LEAST = 0.02, 8
_COUNTED_SAMPLES, _COUNTED_BYTES = 4096, 32 * 2**10
_BUCKET_BITS = 24
"""Windows are counted by hash: at most 8 a bucket of the 2 ** 24 on average, where 82 samples make one common."""
_WINDOW_BASE = 0xD6E8FEB86659FD93
_MIXER = np.uint64(0x9E3779B97F4A7C15)

Texts = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A sample, the earlier unflagged sample that it resembles most, and their estimated Jaccard similarity."""

    id: str
    partner_id: str
    score: float


def near_duplicates(
    samples: Texts | Callable[[], Texts], threshold: float, order: NDArray[np.int64] | None = None
) -> Iterator[NearDuplicate]:
    """Yield each sample whose similarity to an earlier, unflagged one is at least `threshold`.

    Args:
        samples: (id, text) in pool order, or a function that returns them; they are iterated three times. The
            first of a group stays unflagged.
        threshold: least estimated Jaccard similarity of the sets of 5-byte shingles outside of templates, in (0, 1].
        order: int64, (n,), the samples' ranks in the order that decides which one is earlier; default: pool order.

    Raises:
        TypeError: for an iterator, which can be consumed only once.

    Source: Broder (1997), as implemented by datasketch; candidates come from locality-sensitive hashing, which
    misses some pairs that are barely over the threshold.
    """
    if isinstance(samples, Iterator):
        raise TypeError("samples are iterated several times: pass a list or a function, not an iterator")
    return _found(samples if callable(samples) else lambda: samples, threshold, order)


def _found(samples: Callable[[], Texts], threshold: float, order: NDArray[np.int64] | None) -> Iterator[NearDuplicate]:
    from datasketch import MinHashLSH

    # datasketch has no bands for thresholds over 0.987. A lower one only finds more candidates; the score decides.
    index = MinHashLSH(threshold=min(threshold, 0.95), num_perm=PERMUTATIONS, weights=(0.3, 0.7))
    indexed: dict[str, MinHash] = {}
    signatures = _signatures(samples)
    if order is not None:
        in_pool_order = list(signatures)
        signatures = (in_pool_order[place] for place in order)
    for id_, signature in signatures:
        scores = [(signature.jaccard(indexed[other]), other) for other in index.query(signature)]
        score, partner = max(scores, default=(0.0, ""))
        if score >= threshold:
            yield NearDuplicate(id_, partner, score)
        else:
            index.insert(id_, signature, check_duplication=False)
            indexed[id_] = signature


def _signatures(samples: Callable[[], Texts]) -> "Iterator[tuple[str, MinHash]]":
    """Yield the id and the signature of every sample, in pool order."""
    from datasketch import MinHash

    common = _common_windows(samples)
    seed = MinHash(num_perm=PERMUTATIONS, hashfunc=int)
    for id_, text in samples():
        signature = seed.copy()
        signature.update_batch(_shingle_hashes(text.encode(), common))
        yield id_, signature


def _common_windows(samples: Callable[[], Texts]) -> NDArray[np.bool_] | None:
    """Return for each bucket of windows whether they are common, (2 ** 24,); None if none are."""
    ids = ((zlib.crc32(id_.encode()), id_) for id_, _ in samples())
    counted = {id_ for _, id_ in heapq.nsmallest(_COUNTED_SAMPLES, ids)}
    counts = np.zeros(1 << _BUCKET_BITS, dtype=np.uint16)
    for id_, text in samples():
        if id_ in counted:
            counts[np.unique(_windows(text.encode()[:_COUNTED_BYTES]))] += 1
    common = counts >= max(_COMMON_LEAST, _COMMON_FRACTION * len(counted))
    return common if common.any() else None


def _windows(data: bytes) -> NDArray[np.int64]:
    """Return the bucket of the window that starts at each byte, (len(data) - 31,), empty for less than a window."""
    if len(data) < WINDOW_BYTES:
        return np.zeros(0, dtype=np.int64)
    hashes = np.frombuffer(data, dtype=np.uint8).astype(np.uint64) + np.uint64(1)
    width, power = 1, _WINDOW_BASE
    while width < WINDOW_BYTES:
        # The hash of two neighbours of equal width, modulo 2 ** 64.
        hashes = hashes[:-width] * np.uint64(power) + hashes[width:]
        width, power = 2 * width, power * power % 2**64
    return (hashes * _MIXER >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64)


def _shingle_hashes(data: bytes, common: NDArray[np.bool_] | None) -> list[int]:
    """Return the distinct CRC-32 of the shingles that count, never none."""
    if len(data) <= SHINGLE_BYTES:
        return [zlib.crc32(data)]
    hashes = _crc32_of_shingles(np.frombuffer(data, dtype=np.uint8))
    counting = None if common is None else _counting(data, common)
    distinct: list[int] = np.unique(hashes if counting is None else hashes[counting]).tolist()
    return distinct


def _counting(data: bytes, common: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return for the shingle at each byte whether it counts, (len(data) - 4,); None if all do."""
    starts = np.flatnonzero(common[_windows(data)])
    if not len(starts):
        return None
    covered = _spans(starts, starts + WINDOW_BYTES, len(data))
    edges = np.flatnonzero(np.diff(covered, prepend=False, append=False))
    begins, ends = edges[::2], edges[1::2]
    is_long = ends - begins >= TEMPLATE_BYTES
    if not is_long.any() or len(data) - np.count_nonzero(covered) < _OWN_BYTES:
        return None
    own_before = np.concatenate(([0], np.cumsum(~_spans(begins[is_long], ends[is_long], len(data)))))
    return np.asarray(own_before[SHINGLE_BYTES:] > own_before[:-SHINGLE_BYTES])


def _spans(begins: NDArray[np.int64], ends: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Return which of `size` places lie in one of the spans, whose ends are outside of them."""
    change = np.zeros(size + 1, dtype=np.int64)
    np.add.at(change, begins, 1)
    np.add.at(change, ends, -1)
    return np.asarray(np.cumsum(change[:-1]) > 0)


def _crc32_of_shingles(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return `zlib.crc32` of the 5 bytes from each byte on, (len(data) - 4,)."""
    count = len(data) - SHINGLE_BYTES + 1
    found = np.full(count, 0xFFFFFFFF, dtype=np.uint32)
    for place in range(SHINGLE_BYTES):
        found = _CRC32[(found ^ data[place : place + count]) & 0xFF] ^ (found >> np.uint32(8))
    return ~found


def _crc32_table() -> NDArray[np.uint32]:
    """Return the remainders of one byte, (256,), for the polynomial of zlib."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & 1, np.uint32(0xEDB88320), np.uint32(0))
    return table


_CRC32 = _crc32_table()
