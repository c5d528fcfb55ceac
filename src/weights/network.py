"""The network that weights belong to."""

from __future__ import annotations

from mindspore.nn.utils import no_init_parameters

from src.config import NETWORK_OPTIONS
from src.inceptionv4 import InceptionV4


def empty_network(options: dict) -> InceptionV4:
    """`InceptionV4` with the network options in `options`, other entries ignored; its parameters must be set before use."""
    known = {name: options[name] for name in NETWORK_OPTIONS if name in options}
    if known.get('bn_decay') == 'auto':  # which weights that record none leave open; only a training uses it
        del known['bn_decay']
    with no_init_parameters():
        return InceptionV4(**known)
