"""The state of RMSProp in TensorFlow's checkpoints, as MindSpore's optimizer names it."""

from __future__ import annotations

import numpy as np

from src.errors import InputError
from src.weights.names import fit

SLOTS = {'/RMSProp': 'mean_square.', '/RMSProp_1': 'moment.'}  # TensorFlow's suffix, MindSpore's prefix
FIRST_VALUES = {'mean_square.': 1, 'moment.': 0}  # in a new training


def state(tensors: dict, trained: dict[str, str], shapes: dict[str, tuple]):
    """State of the optimizer for the parameters `trained` ({our name: TF-slim's}) of the shapes `shapes`.

    Returns:
        (values, sources, notes, step): ndarrays by our names; TensorFlow's name to ours for what comes from `tensors`; a
        note (str) on each parameter without a state, which gets that of a new training; number of steps done.

    Raises:
        InputError: there is no state of RMSProp, or no number of steps.
    """
    values, sources, missing = {}, {}, {}
    for suffix, prefix in SLOTS.items():
        found = {name: foreign for name, foreign in trained.items() if foreign + suffix in tensors}
        taken, _ = fit(
            {foreign: tensors[foreign + suffix] for foreign in found.values()},
            found,
            {name: shapes[name] for name in found},
            hwio=True,
        )
        for name in trained:
            if name in found:
                values[prefix + name] = taken[name]
                sources[found[name] + suffix] = prefix + name
            else:
                values[prefix + name] = np.full(shapes[name], FIRST_VALUES[prefix], np.float32)
                missing[name] = f'without state in the file, starting as in a new training: {name}'
    if not sources:
        raise InputError('--slots: there is no state of RMSProp in this file')
    step = _step(tensors)
    sources['global_step'] = 'global_step'
    values['global_step'] = np.array([step], np.int32)
    values.update(dict.fromkeys(('overflows', 'overflow_run'), np.zeros((), np.int32)))  # see `TrainStep`
    return values, sources, list(missing.values()), step


def _step(tensors):
    counter = np.ravel(tensors.get('global_step', 0))
    if counter.dtype == object or counter.size != 1 or not 0 <= counter[0] < 2**31:
        raise InputError(f'--slots: global_step {counter.tolist()!s:.50} is no number of steps')
    return int(counter[0])
