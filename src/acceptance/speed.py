"""The checks of speed: images a second beside what was estimated and published, and the time that waits for data."""

from __future__ import annotations

import re
from pathlib import Path

import mindspore.dataset as ds

from src.acceptance.training import BATCH, SMALL, Recorder, make_step, train, training_data
from src.data import pipeline
from src.data.records import open_records
from src.runtime import Run, chip
from src.training.stopping import data_workers

SINK = 10
SIZES = {'Ascend': (64, 128), 'CPU': (BATCH,)}  # images a device and step
# Images a second by chip, number of devices and images on each: estimates for this project, and what others published
# (docs/ascend.md has the sources). None was measured with this project.
ELSEWHERE = {
    ('ascend910', 1, 128): 'estimate 470 to 570, model zoo 556, TensorFlow 470',
    ('ascend910', 8, 64): 'estimate 3,300 to 4,000, TensorFlow 3,109, MindCV with 8 x 32 3,360',
    ('ascend910', 8, 128): 'estimate 4,200 to 4,400, model zoo 4,430',
    ('ascend910b', 1, 128): 'estimate 620 to 750',
    ('ascend910b', 8, 64): 'estimate 4,000 to 5,200 (O0: 3,400 to 3,900), MindCV with 8 x 32 3,075 to 3,162',
}


def measure(run: Run, data: Path, batch_size: int, drop_overflow_update: str = 'branch') -> dict:
    """Time five sinks of decoded images, and then three with one batch that is ready: the difference is the time that the
    device waits for data. The whole network where there are sinks, on a CPU a small one. Gives the figures of the check."""
    options, length = ({}, SINK) if run.sink else (SMALL, 2)
    real, fixed, workers = 5 * length, 3 * length, pipeline.workers(0, run.ranks_here)
    decoded = training_data(
        open_records(data, 'train'), options, batch_size, 0, real, run.rank, run.world, num_workers=workers
    )
    batch = next(decoded.create_tuple_iterator(num_epochs=1, output_numpy=True))
    names = ['image', 'draws', 'dropout_mask', 'label']
    ready = ds.NumpySlicesDataset(tuple(value[None] for value in batch), names, shuffle=False).repeat(fixed)
    recorder = Recorder(at=4 * length, after=lambda: threads.extend(_worker_threads()))
    threads = []
    times = train(run, make_step(run, options, None, drop_overflow_update), decoded.concat(ready), 8, length, recorder).times
    # Not timed: the first sink, with the compilation; the second, with batches decoded meanwhile; the sixth, of both kinds.
    with_data, alone = times[5 * length] - times[2 * length], (times[8 * length] - times[6 * length]) / (2 * length)
    rate, wait = 3 * length * batch_size * run.world / with_data, max(0.0, 1 - alone * 3 * length / with_data)
    known = ELSEWHERE.get((chip() if run.sink else '', run.world, batch_size), '')
    figures = {
        'text': f'{1e3 * alone:.0f} ms a step, {rate:.1f} images/s at batch {batch_size}{known and f" ({known})"}, '
        f'{100 * wait:.0f} % of the time waits for data ({workers} workers, threads of each: {threads or "own process"})',
        'images_per_second': rate,
        'milliseconds': 1e3 * alone,
        'data_wait': wait,
        'batch_size': batch_size,
        'workers': workers,
        'worker_threads': threads,
    }
    if wait > 0.1:
        figures['warning'] = (
            'more than 10 % of the time waits for data: more cores or --num_workers, and libturbojpeg 3 '
            'if Pillow decodes (docs/scaling.md)'
        )
    return figures


def _worker_threads():
    """Number of threads of each data worker; more than a few would take each other's core."""
    found = (Path(f'/proc/{pid}/status').read_text() for pid in data_workers())
    return [int(re.search(r'^Threads:\s*(\d+)', text, re.M)[1]) for text in found]
