"""Parallel training of a study's models in processes of one thread each: small models gain little from more.

Belongs here: the processes. Does not: a training (`sets`, `training`).
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager

from novelsum_dagster.common.progress import Progress
from novelsum_dagster.settings import Training
from novelsum_dagster.study.pool import StudyData
from novelsum_dagster.study.sets import StudySet, train_on_set


class Trainers:
    """Trains models of a study, several at a time if there are workers.

    Args:
        data: the study's pool.
        training: settings.
        device: as the setting `device`.
        workers: processes; None: in this one, with all its threads.
    """

    def __init__(self, data: StudyData, training: Training, device: str, workers: ProcessPoolExecutor | None) -> None:
        self._data, self._training, self._device, self._workers = data, training, device, workers

    def train(self, sets: Mapping[str, StudySet], seed: int, progress: Progress) -> None:
        """Train a model on each set; its result is stored where `train_on_set` finds it.

        Args:
            sets: by name.
            seed: of training.
            progress: called with tokens trained on, of all sets, and all.

        Raises:
            InputError: as `train_on_set` does.
        """
        tokens = self._training.tokens
        whole = tokens * len(sets)
        if self._workers is not None:
            waiting = [self._workers.submit(_train, one, seed) for one in sets.values()]
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                progress(done * tokens, whole)
            return
        for done, one in enumerate(sets.values()):

            def report(trained: int, _: int, before: int = done * tokens) -> None:
                progress(before + trained, whole)

            train_on_set(self._data, one, self._training, seed, report, self._device)


@contextmanager
def trainers(data: StudyData, training: Training, device: str, workers: int) -> Iterator[Trainers]:
    """Yield a trainer of a study's models.

    Its processes end with the block, once the trainings that they have begun are done and stored.

    Args:
        data: the study's pool.
        training: settings.
        device: as the setting `device`.
        workers: models at a time; 1 trains in this process.
    """
    if workers == 1:
        yield Trainers(data, training, device, None)
        return
    # A worker reads the pool itself instead of receiving this process's copy.
    unread = StudyData(data.root, data.snapshot, data.vector_set, data.pool)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (unread, training, device)) as executor:
        try:
            yield Trainers(data, training, device, executor)
        finally:
            executor.shutdown(cancel_futures=True)


_work: list[tuple[StudyData, Training, str]] = []
"""In a worker: the arguments shared by all its trainings."""


def _begin(data: StudyData, training: Training, device: str) -> None:
    """Prepare a worker: one thread, interrupts ignored, exit when its parent exits."""
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work.append((data, training, device))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train(one: StudySet, seed: int) -> None:
    data, training, device = _work[0]
    train_on_set(data, one, training, seed, device=device)
