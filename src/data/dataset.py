"""Records and preprocessing to sharded, seeded batches through `mindspore.dataset`."""

from __future__ import annotations

import multiprocessing
import os

import mindspore.dataset as ds
import numpy as np

from src import sysvipc
from src.data.bad_records import BadRecords
from src.data.features import CopiesOrder, LoadCopies, LoadFeatures
from src.data.folder import Folder
from src.data.index import Index
from src.data.loading import LoadEvaluation, LoadTraining
from src.data.order import EvaluationOrder, TrainingOrder
from src.data.preprocess import PREPROCESSING, Preprocessing

# Options of the configuration that `training_dataset` takes.
OPTIONS = ('image_size', 'batch_size', 'seed', 'dropout_keep_prob', 'min_object_covered')
MOST_WORKERS = 32  # by default: twice what eight first Ascend 910 take (docs/scaling.md)


def workers(option: int, ranks_here: int = 1) -> int:
    """Number of decoding processes: `option`, or for 0 this rank's share of the cores, at most MOST_WORKERS.

    With --bind_core the cores that this process may use are its share already; the launcher, which is not bound, says in
    LOCAL_CORES how many there are for all its ranks.
    """
    cores = len(os.sched_getaffinity(0))
    share = int(os.environ.get('LOCAL_CORES', cores)) // ranks_here
    return min(option, cores) if option else max(1, min(cores, share, MOST_WORKERS))


def _pipeline(order, names, load, columns, batch_size, num_workers):
    if num_workers > 1 and (left := sysvipc.remove_orphans()):
        print(f'removed {left / 1e6:.1f} MB of shared memory that killed data workers had left', flush=True)
    if num_workers > 1 and (problem := _no_processes()):
        print(f'warning: {problem}; this process decodes by itself, which is slower (docker: --shm-size)', flush=True)
        num_workers = 1
    ds.config.set_prefetch_size(2)  # batches; with the default of 16 a waiting pipeline held 1 GB at batch 64, now a third
    data = ds.GeneratorDataset(order, names, shuffle=False, num_parallel_workers=1).batch(batch_size, drop_remainder=True)
    # A worker makes whole batches: one image a call costs the main process four times as much.
    return data.map(load, names, columns, num_parallel_workers=num_workers, python_multiprocessing=num_workers > 1)


def _no_processes():
    """Why there can be no data workers, or ''."""
    try:
        multiprocessing.Lock()  # it lies in /dev/shm, and so do those by which MindSpore speaks with its workers
        return ''
    except OSError as error:
        return f'/dev/shm: {error.strerror}'


def training_dataset(
    records: Index | Folder,
    *,
    offset: int,
    image_size: int,
    batch_size: int,
    seed: int,
    dropout_keep_prob: float,
    start: int,
    stop: int,
    min_object_covered: float = 0.1,
    augment_on_host: bool = False,
    bad: BadRecords | None = None,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 1,
    copies: int = 0,
) -> ds.Dataset:
    """Batches of the steps `start` to `stop` of a training, as `LoadTraining` makes them, in one pass.

    Args:
        records: of `open_records`.
        batch_size: images of this rank in a step; there are `world` ranks.
        start, stop: steps of the whole training, from 0.
        num_workers: processes that decode.
        copies: not the steps, but all records as in each of the first `copies` epochs, as `LoadCopies` makes them; 0: the
            steps.
    """
    order = TrainingOrder(len(records), seed, batch_size, rank, world, start, stop)
    kind, columns = LoadTraining, ['image', 'draws', 'dropout_mask', 'label']
    if copies:
        order, kind, columns[2] = CopiesOrder(copies, len(records), batch_size), LoadCopies, 'size'
    load = kind(records, offset, image_size, seed, dropout_keep_prob, min_object_covered, augment_on_host, bad)
    return _pipeline(order, ['epoch', 'record'], load, columns, batch_size, num_workers)


def feature_dataset(
    rows: np.ndarray,
    *,
    seed: int,
    dropout_keep_prob: float,
    min_object_covered: float,
    batch_size: int,
    start: int,
    stop: int,
) -> ds.Dataset:
    """What `training_dataset` gives on one rank, with the features in `rows` (see `src.data.features`) for the images."""
    order = TrainingOrder(rows.shape[1], seed, batch_size, 0, 1, start, stop)
    load = LoadFeatures(rows, seed, dropout_keep_prob, min_object_covered)
    return _pipeline(order, ['epoch', 'record'], load, ['image', 'draws', 'dropout_mask', 'label'], batch_size, 1)


def evaluation_dataset(
    records: Index | Folder,
    *,
    offset: int,
    image_size: int,
    batch_size: int,
    preprocessing: Preprocessing = PREPROCESSING,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 1,
    numbers: np.ndarray | None = None,
) -> ds.Dataset:
    """Batches with every record, or those with the `numbers`, once over all ranks, as `LoadEvaluation` makes them; equally
    many on every rank."""
    order = EvaluationOrder(len(records), batch_size, rank, world, numbers)
    load = LoadEvaluation(records, offset, image_size, preprocessing)
    return _pipeline(order, ['record'], load, ['image', 'label'], batch_size, num_workers)
