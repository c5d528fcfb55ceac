"""The JSON file beside an exported file, which says what the file takes and gives and where it comes from."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from src.data.preprocess import recorded_preprocessing
from src.deploy import quantization
from src.deploy.formats import SUFFIXES, need_utf8
from src.deploy.graph import INPUT_TYPES, OUTPUT_NAMES, Signature
from src.errors import InputError


def check_target(path: str | Path) -> dict:
    """What the JSON file beside the model file `path`, which is to be written, already says about other model files of the
    same name that are still there ({name: description}). InputError if it is another program's, which would be lost."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f'file_name {str(path.parent)!r} has no name of a file at its end')
    need_utf8(path)
    record = path.with_suffix('.json')
    try:
        described = _by_suffix(record)
        there = {path.with_suffix(suffix): about for suffix, about in described.items() if suffix != path.suffix}
        return {other.name: about for other, about in there.items() if other.is_file()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f'{record}: would be replaced, but was not written by export.py; choose another --file_name or move it'
        ) from None


def _by_suffix(record):
    """{suffix: description} of the model files that the JSON file `record` describes: they have its name, although they were
    renamed together. OSError, ValueError, KeyError, TypeError, AttributeError or RecursionError if it is another file."""
    about = json.loads(record.read_text(encoding='utf-8'))
    described = {**about.pop('other_files'), about['file']: about}
    return {Path(name).suffix: value for name, value in described.items()}


def of_signature(signature: Signature, outputs: list) -> dict:
    """The entries `input`, `output` and `preprocessing` for a file of `signature` that gave `outputs` (list of ndarrays)."""
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
            'shapes': [[batch_size, *part.shape[1:]] for part in outputs],
            'types': [str(part.dtype) for part in outputs],
        },
        'preprocessing': signature.preprocessing._asdict(),
    }


def read(path: str | Path) -> dict:
    """What export.py wrote about the model file `path`; `preprocessing` is a `Preprocessing`. InputError if there is
    nothing about it, or if it is about another file by its checksum; the first versions wrote none, which a line says."""
    record = Path(path).with_suffix('.json')
    try:
        about = _by_suffix(record)[Path(path).suffix]
        names, count = about['classes'], about['num_classes']
        if not isinstance(count, int) or not all(isinstance(name, str) for name in names or ()):
            raise ValueError
        _ = about['input']['type'], about['input']['shape'], OUTPUT_NAMES[about['output']['kind']]
        preprocessing = recorded_preprocessing(about['preprocessing'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(
            f'{record}: missing, or does not describe {Path(path).name}; it belongs beside the model as '
            'export.py wrote it, export again'
        ) from None
    if 'sha256' not in about:
        print(f'note: {record} has no checksum of {Path(path).name}, which may be another file or damaged', file=sys.stderr)
    elif about['sha256'] != sha256(path):
        raise InputError(
            f'{path}: not the file that {record.name} describes: its SHA-256 is another, so it is of another export or '
            'damaged; copy both together again, or export again'
        )
    return {**about, 'preprocessing': preprocessing}


def sha256(path: str | Path) -> str:
    """Checksum of a file, hexadecimal. OSError if it cannot be read."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def as_text(path: Path, report: dict) -> str:
    """Lines that say what was written to `path` with the description `report`."""
    takes, gives, found = report['input'], report['output'], report['deviation']
    outputs = ', '.join(f'{name} {_shape(shape)}' for name, shape in zip(gives['names'], gives['shapes']))
    compared = f'{quantization.as_text(report["quantization"])}\n' if 'quantization' in report else ''
    return (
        f'{path}: {path.stat().st_size / 1e6:.0f} MB, input {takes["type"]} {_shape(takes["shape"])}, output {outputs}\n'
        f'{compared}'
        f"deviation of {found['measured_on']} from the checkpoint's network: {found['random']:.1e} for random "
        f'pixels, {found["smooth"]:.1e} for smooth images (bound {found["bound"]:.0e}, {found["computed_in"]}); all of it '
        f'in {path.with_suffix(".json")}'
    )


def _shape(shape):
    return f'({", ".join("any" if length is None else str(length) for length in shape)})'
