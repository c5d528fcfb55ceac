"""The network of a weights file, ready to be exported or to predict."""

from __future__ import annotations

from pathlib import Path

from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.weights import checkpoint
from src.weights.read import empty_network, read_weights


def load_network(path: str | Path, argv: list[str] | tuple[str, ...] = ()) -> tuple[InceptionV4, dict, dict]:
    """The network of the weights at `path`, in evaluation mode, without the auxiliary classifier; the weights are their
    moving averages where the file has them.

    Args:
        argv: command line options, which count more than those that the file records.

    Returns:
        (network, info, configuration): `info` of `read_weights`, with the number of classes in its `config`.

    Raises:
        InputError: the file cannot be read, or does not fit the options.
    """
    parameters, info = read_weights(path, classifier=True)
    config = load_settings(list(argv), info['config'])
    network = empty_network({**config, 'aux_logits': False}).set_train(False)
    checkpoint.load_into(network, checkpoint.averaged(parameters), path)
    return network, info, config
