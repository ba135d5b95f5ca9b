"""Every figure of selection and measures in one command; each part can also be run alone.

    python -m benchmarks 'data/*' --baseline path/to/novelselect_draft.py

Embeds the files (vectors are kept in the cache folder), then runs benchmarks.selection, .density, .strategies and
.measures on the vectors, and on 396,000 rows made of them by perturbed repetition. Takes half an hour on two cores.
"""

import argparse
import glob
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from novelsum_dagster.cli.oneshot import embedded_files
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.settings import Embedding, Pool, Source

LARGE = ["--rows", "396000"]


def main() -> None:
    """Embed and run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files or globs of real samples")
    parser.add_argument("--baseline", help="a Python file with novelselect_draft")
    arguments = parser.parse_args()
    baseline = ["--baseline", arguments.baseline] if arguments.baseline else []
    with tempfile.TemporaryDirectory(prefix="novelsum-benchmark-") as folder:
        vectors = str(Path(folder) / "vectors.npy")
        paths = sorted(path for pattern in arguments.files for path in glob.glob(pattern))
        pool = Pool(sources=tuple(Source(path=str(Path(path).resolve())) for path in paths))
        reporter = LogReporter(lambda line: print(line, file=sys.stderr))
        with embedded_files(pool, Embedding(), reporter) as files:
            np.save(vectors, files.vectors)
        for part in (
            ["selection", vectors, "-k", "300", "--plain", *baseline],
            ["selection", vectors, "-k", "5000", *baseline],
            ["selection", vectors, *LARGE, "-k", "10000", "--repeat", "1", *baseline],
            ["density", vectors, *LARGE],
            ["strategies", vectors, *LARGE, "-k", "10000"],
        ):
            print(f"\n### benchmarks.{part[0]} {' '.join(part[2:])}\n", flush=True)
            subprocess.run([sys.executable, "-m", f"benchmarks.{part[0]}", *part[1:]], check=True)
    print(f"\n### benchmarks.measures {' '.join(LARGE)}\n", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.measures", *arguments.files, *LARGE], check=True)


if __name__ == "__main__":
    main()
