"""Images a second beside what was estimated and published, and the share of the time that waits for data."""

import mindspore.dataset as ds
import psutil
import pytest

from src import runtime
from src.data import pipeline
from src.data.records import open_records
from src.options import load_settings
from tests.npu.small_training import BATCH, SMALL, Recorder, make_step, train, training_data

pytestmark = pytest.mark.compiles
# Images a second by chip and images a step, on one device: estimates for this project, and what others published
# (docs/ascend.md has the sources). None was measured with this project.
ELSEWHERE = {
    ('ascend910', 128): ' (estimate 470 to 570, model zoo 556, TensorFlow 470)',
    ('ascend910b', 128): ' (estimate 620 to 750)',
}


@pytest.fixture(scope='module')
def run(option):
    names = ('device_target', 'device_id', 'jit_level')
    return runtime.start(load_settings([f'--{name}={getattr(option, name)}' for name in names]))


@pytest.mark.remedy('docs/ascend.md, "When it goes wrong"')
@pytest.mark.parametrize('batch_size', [64, 128])
def test_speed(batch_size, run, option, figures):
    """Five sinks of decoded images, and then three with one batch that is ready: the difference is the wait for data. The
    whole network where there are sinks, on a CPU a small one."""
    if batch_size == 128 and not run.sink:
        pytest.skip('a CPU takes one size, 8')
    options, length, batch_size = ({}, 10, batch_size) if run.sink else (SMALL, 2, BATCH)
    workers, records, threads = pipeline.workers(0, 1), open_records(option.output / 'data', 'train'), []
    decoded = training_data(records, options, range(5 * length), run, batch_size=batch_size, num_workers=workers)
    batch = next(decoded.create_tuple_iterator(num_epochs=1, output_numpy=True))
    names = ['image', 'draws', 'dropout_mask', 'label']
    ready = ds.NumpySlicesDataset(tuple(value[None] for value in batch), names, shuffle=False).repeat(3 * length)
    recorder = Recorder(0, 4 * length, lambda: threads.extend(one.num_threads() for one in psutil.Process().children()))
    step = make_step(run, options, option.drop_overflow_update)
    times = train(run, step, decoded.concat(ready), (8, length), recorder).times
    # Not timed: the first sink, with the compilation; the second, with batches decoded meanwhile; the sixth, of both kinds.
    with_data, alone = times[5 * length] - times[2 * length], (times[8 * length] - times[6 * length]) / (2 * length)
    rate, wait = 3 * length * batch_size / with_data, max(0.0, 1 - alone * 3 * length / with_data)
    figures(
        text=f'{1e3 * alone:.0f} ms a step, {rate:.1f} images/s at batch {batch_size}'
        f'{ELSEWHERE.get((runtime.chip(), batch_size), "")}, {100 * wait:.0f} % of the time waits for data '
        f'({workers} workers, threads of each: {threads or "own process"})',
        **{'images_per_second': rate, 'milliseconds': 1e3 * alone, 'data_wait': wait, 'worker_threads': threads},
        warning='more cores or --num_workers, and libturbojpeg 3 if Pillow decodes (docs/ascend.md)' * (wait > 0.1),
    )
    assert rate > 0
