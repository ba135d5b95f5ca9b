"""A demo pool of real text: the documentation of installed packages.

Belongs here: mining questions (what does this object do?) and answers (its docstring), and writing them in the forms
that users have. Does not: reading them back, which the pool does as with any files.

The pool is deterministic for given versions of the packages.
"""

import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa

from novelsum_dagster.common.files import write_bytes, write_table

SAMPLES_PER_SOURCE = 400
_LEAST_CHARACTERS = 120
_SOURCES = {
    "python": (
        "argparse", "array", "bisect", "calendar", "collections", "concurrent.futures", "contextlib", "csv",
        "datetime", "decimal", "difflib", "email.message", "fractions", "functools", "glob", "hashlib", "heapq", "html",
        "http.client", "inspect", "itertools", "json", "logging", "math", "os", "pathlib", "random", "re", "shutil",
        "smtplib", "socket", "sqlite3", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
        "threading", "timeit", "traceback", "typing", "unittest", "urllib.parse", "uuid", "zipfile", "zoneinfo",
    ),
    "numpy": ("numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.polynomial.polynomial"),
    "pandas": ("pandas", "pandas.api.types", "pandas.tseries.offsets"),
    "scipy": ("scipy.stats", "scipy.optimize", "scipy.signal", "scipy.linalg", "scipy.sparse", "scipy.special"),
    "sklearn": ("sklearn.cluster", "sklearn.linear_model", "sklearn.metrics", "sklearn.model_selection",
                "sklearn.preprocessing", "sklearn.ensemble", "sklearn.decomposition"),
    "torch": ("torch.nn", "torch.nn.functional", "torch.optim", "torch.linalg", "torch.utils.data"),
}  # fmt: skip


def write_demo_pool(folder: Path) -> dict[str, int]:
    """Write one file per source into `folder`, each in a different form and format; return their sample counts."""
    writers = {
        "python": ("python.json", _alpaca_list),
        "numpy": ("numpy.jsonl", _prompt_lines),
        "pandas": ("pandas.parquet", _messages_parquet),
        "scipy": ("scipy.jsonl", _response_lines),
        "sklearn": ("sklearn.json", _sharegpt_list),
        "torch": ("torch.parquet", _messages_parquet),
    }
    counts = {}
    for source, modules in _SOURCES.items():
        pairs = _spread(list(documented(source, modules)))
        name, writer = writers[source]
        writer(pairs, folder / name)
        counts[name] = len(pairs)
    return counts


def documented(source: str, modules: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) for every public object of the modules and every public method of their classes."""
    seen: set[str] = set()
    for name in modules:
        module = importlib.import_module(name)
        for qualified, value in _public(module):
            answer = inspect.getdoc(value) if callable(value) or inspect.ismodule(value) else None
            if answer and len(answer) >= _LEAST_CHARACTERS and qualified not in seen:
                seen.add(qualified)
                yield _question(source, qualified, value), answer


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    yield module.__name__, module
    for name in sorted(getattr(module, "__all__", None) or vars(module)):
        value = vars(module).get(name)  # Not getattr: names that load lazily may raise or warn.
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        yield f"{module.__name__}.{name}", value
        if inspect.isclass(value):
            for method, member in sorted(vars(value).items()):
                if not method.startswith("_") and inspect.isroutine(member):
                    yield f"{module.__name__}.{name}.{method}", member


def _question(source: str, qualified: str, value: Any) -> str:
    kind = "module" if inspect.ismodule(value) else "class" if inspect.isclass(value) else "function"
    return f"What is the {source} {kind} {qualified} for, and how is it used?"


def _spread(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return at most `SAMPLES_PER_SOURCE` pairs, evenly spaced."""
    if len(pairs) <= SAMPLES_PER_SOURCE:
        return pairs
    return [pairs[number * len(pairs) // SAMPLES_PER_SOURCE] for number in range(SAMPLES_PER_SOURCE)]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _alpaca_list(pairs: list[tuple[str, str]], path: Path) -> None:
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in pairs]
    write_bytes(json.dumps(rows, ensure_ascii=False, indent=1).encode(), path)


def _prompt_lines(pairs: list[tuple[str, str]], path: Path) -> None:
    lines = [_dump({"prompt": question, "completion": answer}) for question, answer in pairs]
    write_bytes(("\n".join(lines) + "\n").encode(), path)


def _response_lines(pairs: list[tuple[str, str]], path: Path) -> None:
    lines = [_dump({"instruction": question, "response": answer}) for question, answer in pairs]
    write_bytes(("\n".join(lines) + "\n").encode(), path)


def _sharegpt_list(pairs: list[tuple[str, str]], path: Path) -> None:
    rows = [
        {
            "id": f"sklearn-{number}",
            "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        }
        for number, (question, answer) in enumerate(pairs)
    ]
    write_bytes(_dump(rows).encode(), path)


def _messages_parquet(pairs: list[tuple[str, str]], path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    write_table(pa.Table.from_pylist(rows), path)
