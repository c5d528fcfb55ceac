"""ImageNet's 1000 classes, in the order of their WordNet ids, which is that of every program's class numbers.

imagenet_classes.txt has lines `id words`; ids and words are WordNet's (Princeton University, wordnet.princeton.edu).
"""

from __future__ import annotations

import functools
import pathlib

BACKGROUND_CLASSES = 1001  # the 1000 classes and, as class 0, TF-slim's background


@functools.lru_cache(None)
def classes() -> dict[str, str]:
    """{WordNet id: words} of the classes 0 to 999, in their order."""
    text = pathlib.Path(__file__).with_name('imagenet_classes.txt').read_text(encoding='ascii')
    return dict(line.split(' ', 1) for line in text.splitlines())


def names() -> list[str]:
    """Words of the classes 0 to 999."""
    return list(classes().values())


def words(name: str) -> str:
    """The words of the class whose WordNet id is `name`; any other `name` as it is."""
    return classes().get(name, name)


def class_names(count: int) -> list[str] | None:
    """Names of the classes of a network with 1000 classes, or 1001 with a background; None for another `count`."""
    return {1000: names(), BACKGROUND_CLASSES: ['background', *names()]}.get(count)


def names_by_label(noted: list[tuple[int, bytes]]) -> list[str] | None:
    """Names by label of records of which some have the labels and WordNet ids `noted` (pairs): with a background class in
    front, as TF-slim counts, or without. None if they do not fit ImageNet's classes."""
    ids = list(classes())
    for first in (1, 0):
        if noted and all(first <= n < len(ids) + first and ids[n - first].encode() == found for n, found in noted):
            return ['background'] * first + names()
    return None
