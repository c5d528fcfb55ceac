"""The network that weights belong to."""

from __future__ import annotations

from mindspore.nn.utils import no_init_parameters

from src.inceptionv4 import InceptionV4
from src.options import Settings


def empty_network(options: dict) -> InceptionV4:
    """`InceptionV4` with the network options in `options`, other entries ignored; its parameters must be set before use."""
    with no_init_parameters():
        return InceptionV4(**Settings(options).network())
