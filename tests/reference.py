"""The figures in tests/files: measured by running the original entry (TensorFlow 1.15.5, CPU, float32).

Its weights are made from their names, so no weight file is needed; the batches come from the same seed.
"""

import json
import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / 'files'
INFO = json.loads((DATA / 'tf_reference.json').read_text())
FIGURES = np.load(DATA / 'tf_reference.npz')
# Images and weights for further tests, where they are at hand; tests that need them skip without.
SHARED = Path(__file__).parents[2] / 'shared'


def tf_variables():
    """TF-slim name -> value, all 608 of them."""
    result = {}
    for name, shape in INFO['variables']:
        r = np.random.RandomState((zlib.crc32(name.encode()) + INFO['seed']) % 2**32)
        leaf = name.split('/')[-1]
        if leaf == 'moving_variance':
            value = r.uniform(0.5, 1.5, size=shape)
        else:
            value = r.standard_normal(shape)
            value *= np.sqrt(2 / np.prod(shape[:-1])) if leaf == 'weights' else 0.01 if leaf == 'biases' else 0.1
        result[name] = value.astype(np.float32)
    return result


def batches():
    """X (steps, batch, 3, 299, 299) float32 in [-1, 1] and Y (steps, batch) int32."""
    r = np.random.RandomState(INFO['seed'])
    shape = INFO['steps'], INFO['batch_size']
    x = r.uniform(-1, 1, (*shape, 299, 299, 3)).astype('f4')
    return np.ascontiguousarray(x.transpose(0, 1, 4, 2, 3)), r.randint(0, INFO['num_classes'], shape).astype('i4')


def deviation(ours, reference):
    """Largest relative deviation."""
    reference = np.asarray(reference, np.float64)
    return float(np.max(np.abs(np.asarray(ours, np.float64) - reference) / np.maximum(np.abs(reference), 1e-30)))
