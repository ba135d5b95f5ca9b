"""Parallel training of a study's models in processes of one thread each: small models gain little from more.

Belongs here: the processes. Does not: a training (`sets`, `training`).
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor, as_completed

from novelsum_dagster.common.progress import Progress
from novelsum_dagster.settings import Training
from novelsum_dagster.study.pool import StudyData
from novelsum_dagster.study.sets import StudySet, train_on_set


def train_on_sets(
    data: StudyData,
    sets: Collection[StudySet],
    training: Training,
    seed: int,
    progress: Progress,
    device: str,
    workers: int,
) -> None:
    """Train a model on each set; its result is stored where `train_on_set` finds it.

    Args:
        data: the study's pool.
        sets: those to train on.
        training: settings.
        seed: of training.
        progress: called with tokens trained on, of all sets, and all.
        device: as the setting `device`.
        workers: models at a time; 1 trains in this process, with all its threads.

    Raises:
        InputError: as `train_on_set` does; the trainings that workers have begun are done and stored first.
    """
    tokens, whole = training.tokens, training.tokens * len(sets)
    if workers == 1 or not sets:
        for done, one in enumerate(sets):

            def report(trained: int, _: int, before: int = done * tokens) -> None:
                progress(before + trained, whole)

            train_on_set(data, one, training, seed, report, device)
        return
    # A worker reads the pool itself instead of receiving this process's copy.
    unread = StudyData(data.root, data.snapshot, data.vector_set, data.pool)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (unread, training, device)) as executor:
        try:
            waiting = [executor.submit(_train, one, seed) for one in sets]
            for done, future in enumerate(as_completed(waiting), 1):
                future.result()
                progress(done * tokens, whole)
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
