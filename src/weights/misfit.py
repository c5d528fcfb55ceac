"""Why weights do not fit a network, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

NO_CLASSIFIER = (
    'the classifier is missing (logits.weight, logits.bias); a training may start from it (--restore_path), but it '
    'cannot be evaluated, exported or imported'
)
STATE = ('moment', 'mean_square')  # beginnings of the names of an optimizer's state


def not_finite(parameters: dict[str, np.ndarray]) -> str:
    """Which of the weights among `parameters` have values that are not finite, and what to do; '' if none has."""
    found = [
        name
        for name, value in parameters.items()
        if value.dtype.kind == 'f' and not name.startswith(STATE) and not np.isfinite(value).all()
    ]
    return found and (
        f'{found[0]} has values that are not finite (NaN or infinite){_more(found)}: its training had diverged; use an '
        'earlier checkpoint, or other weights'
    )


def first_of(names: list[str], shown: int = 6) -> str:
    """All of `names` up to `shown`, of more their number and the first three."""
    return ', '.join(names) if len(names) <= shown else f'{len(names)}: {", ".join(names[:3])}, ...'


def block_counts(names: Iterable[str]) -> list[int]:
    """The numbers of Inception A, B and C blocks of which there are parameters in `names`."""
    blocks = {name.partition('.')[0] for name in names}
    return [sum(bool(re.fullmatch(f'mixed_{stage}[b-z]', block)) for block in blocks) for stage in (5, 6, 7)]


def describe(parameters: dict[str, np.ndarray], shapes: dict[str, tuple], network: Iterable[str]) -> str:
    """What keeps `parameters` ({name: ndarray}) from being set where the `shapes` {name: shape} are needed, and what most
    likely is the cause; '' if they fit. `network` are the names of all parameters that the network has.

    Blocks that only the file has do not fit either: with a part of its blocks a network computes something else.
    """
    missing = [name for name in shapes if name not in parameters]
    others = [name for name in shapes if name in parameters and parameters[name].shape != shapes[name]]
    theirs, ours = block_counts(parameters), block_counts(network)
    found = []
    if missing:
        found.append(f'parameter {missing[0]} {shapes[missing[0]]} is missing{_more(missing)}')
    if others:
        shape, needed = parameters[others[0]].shape, shapes[others[0]]
        found.append(f'parameter {others[0]} has the shape {shape}, the network needs {needed}{_more(others)}')
    if not found and any(there > here for there, here in zip(theirs, ours)):
        found.append('it has blocks that the network does not have')
    return f'{"; ".join(found)}: {_cause(parameters, missing, others, theirs, ours)}' if found else ''


def _more(names):
    return f' (and {len(names) - 1} more)' if len(names) > 1 else ''


def _cause(parameters, missing, others, theirs, ours):
    """The likely cause and its remedy."""
    if theirs != ours and min(theirs):
        counts = ','.join(map(str, theirs))
        return (
            f'the file has {counts} Inception blocks, the network {",".join(map(str, ours))}; give --block_counts {counts}'
        )
    if missing and all(name.startswith('logits.') for name in missing):
        return NO_CLASSIFIER
    if any(name.startswith('aux_logits.') for name in missing):
        return 'the file has no auxiliary classifier; give --aux_logits false'
    if 'logits.bias' in others:
        classes = parameters['logits.bias'].size
        return f'the file has {classes} classes; give --num_classes {classes}'
    if others and all(name.startswith('aux_logits.') for name in others):
        return "the auxiliary classifier's size depends on the images'; give the --image_size that it was trained with"
    return 'it is of another network, or of a training with other options (optimizer, freeze, ema_decay)'
