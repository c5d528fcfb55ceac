import os
import sys
import tempfile

os.environ.setdefault('GLOG_v', '3')  # before the first import of MindSpore
if 'PYTEST_XDIST_WORKER' not in os.environ:
    # The programs that tests start share the graphs of this run, and take none from this user's cache.
    CACHE = tempfile.TemporaryDirectory(prefix='inceptionv4-tests.')
    os.environ['XDG_CACHE_HOME'] = CACHE.name

import pytest

from src.data import demo_images

# Files that take longest. They are dealt out first, so that no worker is left alone with one of them at the end.
LONG = (
    'end_to_end parity resume distributed ascend_contract docs export predict step weights inceptionv4 preprocess fuzz'
).split()
# The check of a new machine is not a part of the suite; scripts/run_acceptance.sh names its files.
collect_ignore = [] if any('npu' in word for word in sys.argv) else ['npu']


def pytest_collection_modifyitems(items):
    """The longest first. A test of which a fixture compiles gets the marker `compiles` by itself."""
    places = {f'test_{name}.py': place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))
    for item in items:
        if 'compiles' in getattr(item, 'fixturenames', ()):
            item.add_marker('compiles')


@pytest.fixture(scope='session')
def compiles():
    """Asked for by fixtures that compile a graph or start a process that does: marks every test that uses them."""


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """60 training and 30 validation images in 10 classes, labels 1 to 10, as TFRecord shards."""
    return demo_images.make(tmp_path_factory.mktemp('records'), train_per_class=6, validation_per_class=3)


@pytest.fixture(scope='session')
def weights(tmp_path_factory):
    """A checkpoint of a small network, of which programs must take the blocks and the image size."""
    from src.inceptionv4 import InceptionV4
    from src.weights import checkpoint

    about = {'num_classes': 7, 'block_counts': [1, 1, 1], 'image_size': 75}
    network = InceptionV4(7, block_counts=(1, 1, 1), image_size=75)
    return checkpoint.save(tmp_path_factory.mktemp('weights'), network, step=1, epoch=1, config=about)


SMALL = ['--num_classes', '10', '--block_counts', '1,1,1', '--image_size', '75', '--batch_size', '4', '--num_workers', '1']


@pytest.fixture
def options(data):
    """Command line of a tiny training."""
    return ['--data_dir', str(data), *SMALL]
