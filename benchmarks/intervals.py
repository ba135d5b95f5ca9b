"""Check the intervals of the measures against what chance really does: sets drawn again and again from one pool.

    python -m benchmarks.intervals 'data/*' --size 1000 --draws 60

Prints a Markdown table: each measure's spread over the draws, the spread that its intervals tell (their width over
2 x 1.96, mean over the draws), and the ratio of the two.
"""

import argparse
import glob
from pathlib import Path

import numpy as np

from novelsum_dagster.cli.oneshot import embedded_files
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity.density import density
from novelsum_dagster.diversity.lexical import Occurrences
from novelsum_dagster.diversity.measures import MEASURES, Evaluator, Samples, SetMeasures
from novelsum_dagster.settings import Embedding, Measures, NovelSum, Pool, Source


def main() -> None:
    """Draw, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files or globs of real samples")
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=60)
    arguments = parser.parse_args()
    paths = sorted(path for pattern in arguments.files for path in glob.glob(pattern))
    pool = Pool(sources=tuple(Source(path=str(Path(path).resolve())) for path in paths))
    with embedded_files(pool, Embedding(), LogReporter(lambda line: None)) as files:
        samples = Samples(files.vectors, files.snapshot.samples(files.root, ["text"])["text"].to_pylist())
    found = _measured(samples, arguments.size, arguments.draws)
    print(f"{arguments.draws} sets of {arguments.size:,} of {len(samples.vectors):,} samples\n")
    print("| measure | mean | spread of the draws | spread stated | stated / true |\n|---|---|---|---|---|")
    for key, known in ((key, MEASURES[key]) for key in found[0].values):
        values = [one.values[key] for one in found]
        true = float(np.std([value.value for value in values], ddof=1))
        told = float(np.mean([(value.high - value.low) / 3.92 for value in values]))
        mean = np.mean([value.value for value in values])
        print(f"| {known.label} | {mean:.4g} | {true:.3g} | {told:.3g} | {told / true:.2f} |")


def _measured(samples: Samples, size: int, draws: int) -> list[SetMeasures]:
    assert samples.texts is not None
    evaluator = Evaluator(samples.vectors, NovelSum(), Measures())
    factor = density(samples.vectors).factor()
    generator = np.random.default_rng(0)
    found = []
    for number in range(draws):
        rows = generator.permutation(len(samples.vectors))[:size]
        words = Occurrences.of([samples.texts[row] for row in rows])
        found.append(
            evaluator.measure(
                f"draw {number}",
                samples,
                rows,
                factors={(10, 0.5): factor[rows]},
                words=words,
                ttr_tokens=Measures().ttr_tokens,
                reporter=LogReporter(lambda line: None),
            )
        )
    return found


if __name__ == "__main__":
    main()
