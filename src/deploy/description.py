"""What an exported file takes and returns, and the JSON file beside it, which says so to other programs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import Tensor

from src.data.preprocess import Preprocessing, recorded_preprocessing, scale
from src.errors import InputError, reading

INPUT_TYPES = {'float': 'float32', 'uint8': 'uint8'}
OUTPUT_NAMES = {'logits': ['logits'], 'softmax': ['probabilities'], 'top5': ['probabilities', 'classes']}


class Signature(NamedTuple):
    """What an exported file takes and returns; src/deploy/export.py has the graph."""

    image_size: int  # height and width, pixels
    preprocessing: Preprocessing
    input_type: str = 'float'  # a key of INPUT_TYPES; float: float32 (N, 3, H, W), scaled; uint8: pixels (N, H, W, 3)
    output: str = 'logits'  # a key of OUTPUT_NAMES; top5: the five highest probabilities and their class numbers
    batch_size: int = 0  # images in a call; 0: any number
    precision: str = 'float32'  # of the weights and what is computed

    def as_input(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, H, W, 3) as the file takes them."""
        return host_scale(images, self.preprocessing) if self.input_type == 'float' else images


def host_scale(images: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Images uint8 (N, H, W, 3) as a graph with the input type `float` takes them: float32 (N, 3, H, W)."""
    return scale(Tensor(images.transpose(0, 3, 1, 2).astype(np.float32)), preprocessing).asnumpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of `logits` (N, classes)."""
    x = np.exp(logits - logits.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def class_names(names: list[str] | None, num_classes: int, source: str | Path) -> list[str] | None:
    """The `names` by class number, None if there are none; that of a background is left out where the network has a class
    less. InputError naming their `source` if they do not fit."""
    if names and len(names) == num_classes + 1 and names[0] in ('background', ''):
        names = names[1:]
    if names and len(names) != num_classes:
        raise InputError(
            f'{source} names the classes 0 to {len(names) - 1}, but the network has {num_classes} classes; use '
            'src.deploy.predict --labels FILE with one line per class'
        )
    return [name or f'class {number}' for number, name in enumerate(names)] if names else None


def record_of(path: Path) -> Path:
    """The JSON file about the model file `path`."""
    return path.with_name(f'{path.name}.json')


def of_signature(signature: Signature, outputs: list) -> dict:
    """The entries of the JSON file for a file of `signature` that returned `outputs` (ndarrays)."""
    scaled, size = signature.input_type == 'float', signature.image_size
    batch_size = signature.batch_size or None
    return {
        'input': {
            'name': 'input',
            'type': INPUT_TYPES[signature.input_type],
            'shape': [batch_size, *((3, size, size) if scaled else (size, size, 3))],
            'layout': 'NCHW' if scaled else 'NHWC',
            'colours': 'RGB',
            'range': '(pixel - mean) / std' if scaled else '0 to 255',
        },
        'output': {
            'kind': signature.output,
            'names': OUTPUT_NAMES[signature.output],
            'shapes': [[batch_size, *output.shape[1:]] for output in outputs],
            'types': [str(output.dtype) for output in outputs],
        },
        'preprocessing': signature.preprocessing._asdict(),
        'precision': signature.precision,
    }


def read(path: Path) -> tuple[Signature, dict]:
    """What export.py wrote about the model file `path`: (signature, the JSON file's entries). InputError if there is no JSON
    file, or if it is about another file by its checksum."""
    with reading(path, 'name a file of export.py'):
        checksum = sha256(path)
    with reading(record_of(path), 'copy both files that export.py wrote, or export again', (TypeError, AttributeError)):
        about = json.loads(record_of(path).read_text(encoding='utf-8'))
        if about['sha256'] != checksum:
            raise ValueError(f'describes another file than {path}: the SHA-256 differs')
        batch_size, *size = about['input']['shape']
        input_type = {text: kind for kind, text in INPUT_TYPES.items()}[about['input']['type']]
        preprocessing = recorded_preprocessing(about['preprocessing'])
        return Signature(size[1], preprocessing, input_type, about['output']['kind'], batch_size or 0), about


def sha256(path: str | Path) -> str:
    """Checksum of a file, hexadecimal. OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
