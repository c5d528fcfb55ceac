"""What an exported file takes and returns, and the JSON file beside it, which says so to other programs."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mindspore import Tensor

from src.data.classes import BACKGROUND_CLASSES
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
        if self.input_type == 'uint8':
            return images
        return scale(Tensor(images.transpose(0, 3, 1, 2).astype(np.float32)), self.preprocessing).asnumpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) of `logits` (N, classes)."""
    x = np.exp(logits - logits.max(1, keepdims=True))
    return x / x.sum(1, keepdims=True)


def class_names(names: list[str] | None, num_classes: int, source: str | Path) -> list[str] | None:
    """The `names` by class number, None if there are none; that of a background is left out where the network has a class
    less, and put before ImageNet's where it has one more. InputError naming their `source` if they do not fit."""
    if names and len(names) == num_classes + 1 and names[0] in ('background', ''):
        names = names[1:]
    elif names and len(names) + 1 == num_classes == BACKGROUND_CLASSES:
        names = ['background', *names]
    if names and len(names) != num_classes:
        raise InputError(
            f'{source} names the classes 0 to {len(names) - 1}, but the network has {num_classes} classes; use '
            'src.deploy.predict --labels FILE with one line per class'
        )
    return [name or f'class {number}' for number, name in enumerate(names)] if names else None


def described(path: Path) -> dict[str, dict]:
    """{suffix: entries} of the model files that the JSON file beside `path` describes; they have its name, although all may
    have been renamed. OSError, ValueError, KeyError, TypeError or AttributeError if export.py did not write it."""
    about = json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))
    files = {**about.pop('other_files'), about['file']: about}
    return {Path(name).suffix: entries for name, entries in files.items()}


def other_files(path: Path) -> dict[str, dict]:
    """{name: entries} of the model files in other formats beside `path`, which is to be written, as the JSON file describes
    them. InputError if that is another program's, which would be lost."""
    if not (record := path.with_suffix('.json')).exists():
        return {}
    with reading(record, 'export.py did not write it; move it, or use another --file_name', (TypeError, AttributeError)):
        others = {path.with_suffix(suffix): about for suffix, about in described(path).items() if suffix != path.suffix}
        return {other.name: about for other, about in others.items() if other.is_file()}


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
    """What export.py wrote about the model file `path`: (signature, its entries in the JSON file). InputError if there are
    none, or if they are about another file by its checksum; the first versions wrote none, which a line says."""
    record = path.with_suffix('.json')
    with reading(path, 'name a file of export.py'):
        checksum = sha256(path)
    with reading(record, 'copy both files that export.py wrote, or export again', (TypeError, AttributeError)):
        about = described(path)[path.suffix]
        if 'sha256' not in about:
            print(f'note: {record} has no checksum of {path.name}, which may be another file or damaged', file=sys.stderr)
        elif about['sha256'] != checksum:
            raise ValueError(f'describes another file than {path}: the SHA-256 differs')
        batch_size, *size = about['input']['shape']
        input_type = {text: kind for kind, text in INPUT_TYPES.items()}[about['input']['type']]
        preprocessing = recorded_preprocessing(about['preprocessing'])
        return Signature(size[1], preprocessing, input_type, about['output']['kind'], batch_size or 0), about


def sha256(path: str | Path) -> str:
    """Checksum of a file, hexadecimal. OSError if it cannot be read."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def as_text(path: Path, report: dict) -> str:
    """What was written to the file `path` with the entries `report`, in two lines."""
    shapes, found = [report['input']['shape'], *report['output']['shapes']], report['deviation']
    taken, *returned = (str(tuple(shape)).replace('None', 'any') for shape in shapes)
    outputs = ', '.join(map(' '.join, zip(report['output']['names'], returned)))
    return (
        f'{path}: {path.stat().st_size / 1e6:.0f} MB, input {report["input"]["type"]} {taken}, output {outputs}\n'
        f"deviation of {found['measured_on']} from the checkpoint's network: {found['random']:.1e} for random pixels, "
        f'{found["smooth"]:.1e} for smooth images (bound {found["bound"]:.0e}, {found["computed_in"]}); all of it in '
        f'{path.with_suffix(".json")}'
    )
