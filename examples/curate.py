"""Choose the most diverse samples of a file, as `novelsum select POOL -k K -o SUBSET --drop-near-duplicates` does.

python examples/curate.py pool.jsonl subset.jsonl 1000
"""

import sys
from pathlib import Path

import numpy as np

from novelsum_dagster.cli.oneshot import embedded_files
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity import novelsum
from novelsum_dagster.pool.export import chosen_records, write_records
from novelsum_dagster.selection import novelselect
from novelsum_dagster.settings import Embedding, NearDuplicates, Pool, Source


def curate(pool: Path, subset: Path, k: int) -> tuple[float, float]:
    """Write the k most diverse samples of a file; return NovelSum of the subset, and of a random one of its size."""
    settings = Pool(sources=(Source(path=str(pool)),), near_duplicates=NearDuplicates(drop=True))
    reporter = LogReporter(lambda line: print(line, file=sys.stderr))
    with embedded_files(settings, Embedding(), reporter) as files:
        picks = novelselect(files.vectors, k)
        ids = files.snapshot.samples(files.root, ["id"])["id"].to_pylist()
        write_records(chosen_records(files.snapshot, files.root, [ids[row] for row in picks.indices]), subset)
        chosen = files.vectors[picks.indices]
        random = np.random.default_rng(42).permutation(files.vectors)[:k]
        return novelsum(chosen, files.vectors).value, novelsum(random, files.vectors).value


if __name__ == "__main__":
    found, at_random = curate(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    print(f"NovelSum: subset {found:.4f}, random subset {at_random:.4f}")
