import os

os.environ.setdefault('GLOG_v', '3')  # before the first import of MindSpore

import pytest

from src.data import demo_images

# Files that take longest. They are dealt out first, so that no worker is left alone with one of them at the end.
LONG = [
    'test_end_to_end.py',
    'test_parity.py',
    'test_resume.py',
    'test_distributed.py',
    'test_acceptance.py',
    'test_export.py',
    'test_predict.py',
    'test_step.py',
    'test_weights.py',
    'test_inceptionv4.py',
    'test_preprocess.py',
    'test_fuzz.py',
    'test_launch.py',
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope='session')
def data(tmp_path_factory):
    """60 training and 30 validation pictures in 10 classes, labels 1 to 10, as TFRecord shards."""
    return demo_images.make(tmp_path_factory.mktemp('records'), train_per_class=6, validation_per_class=3)


SMALL = ['--num_classes', '10', '--block_counts', '1,1,1', '--image_size', '75', '--batch_size', '4', '--num_workers', '1']


@pytest.fixture
def options(data):
    """Command line of a tiny training."""
    return ['--data_dir', str(data), *SMALL]
