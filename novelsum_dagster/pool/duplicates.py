"""Near-duplicates by MinHash (datasketch).

Belongs here: which sample is close to which earlier one, with what score. Does not: exact duplicates, which share an
id (`ingest`).
"""

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

SHINGLE_BYTES = 5
"""Bytes of UTF-8 in a shingle: no word boundaries are needed, so every language and code work alike."""
BYTES_PER_SAMPLE = 8 * 2**10
"""Memory for a sample's signature and its places in the index; measured."""
PERMUTATIONS = 128
"""With 128 permutations the estimated Jaccard similarity has a standard deviation of at most 0.044."""


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A sample, the earlier unflagged sample that it resembles most, and their estimated Jaccard similarity."""

    id: str
    partner_id: str
    score: float


def near_duplicates(samples: Iterable[tuple[str, str]], threshold: float) -> Iterator[NearDuplicate]:
    """Yield each sample whose similarity to an earlier, unflagged one is at least `threshold`.

    Args:
        samples: (id, text) in pool order; the first of a group stays unflagged.
        threshold: least estimated Jaccard similarity of the sets of 5-byte shingles, in (0, 1].

    Source: Broder (1997), as implemented by datasketch; candidates come from locality-sensitive hashing, which
    misses some pairs that are barely over the threshold.
    """
    from datasketch import MinHash, MinHashLSH

    # datasketch has no bands for thresholds over 0.987. A lower one only finds more candidates; the score decides.
    index = MinHashLSH(threshold=min(threshold, 0.95), num_perm=PERMUTATIONS, weights=(0.3, 0.7))
    indexed: dict[str, MinHash] = {}
    seed = MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)
    for id_, text in samples:
        signature = seed.copy()
        signature.update_batch(sorted(_shingles(text)))
        scores = [(signature.jaccard(indexed[other]), other) for other in index.query(signature)]
        score, partner = max(scores, default=(0.0, ""))
        if score >= threshold:
            yield NearDuplicate(id_, partner, score)
        else:
            index.insert(id_, signature, check_duplication=False)
            indexed[id_] = signature


def _shingles(text: str) -> set[bytes]:
    data = text.encode()
    return {data[start : start + SHINGLE_BYTES] for start in range(max(1, len(data) - SHINGLE_BYTES + 1))}
