"""ImageNet's 1000 classes, in the order of their WordNet ids, which is that of every program's class numbers.

imagenet_classes.txt has lines `id words`; ids and words are WordNet's (Princeton University, wordnet.princeton.edu).
"""

import functools
import pathlib


@functools.lru_cache(None)
def classes():
    """{WordNet id: words} of the classes 0 to 999, in their order."""
    text = pathlib.Path(__file__).with_name('imagenet_classes.txt').read_text(encoding='ascii')
    return dict(line.split(' ', 1) for line in text.splitlines())


def names():
    """Words of the classes 0 to 999 (list of str)."""
    return list(classes().values())


def words(name):
    """The words of a WordNet id that is a class's; any other `name` as it is."""
    return classes().get(name, name)


def class_names(count):
    """Names of the classes of a network with 1000 classes, or 1001 with a background; None for another `count`."""
    return {1000: names(), 1001: ['background', *names()]}.get(count)


def names_by_label(noted):
    """Names by label, or None, for records of which some have the labels and WordNet ids (bytes) `noted` (pairs): with a
    background class in front, as TF-slim counts, or without."""
    ids = list(classes())
    for first in (1, 0):
        if noted and all(first <= n < len(ids) + first and ids[n - first].encode() == found for n, found in noted):
            return ['background'] * first + names()
    return None
