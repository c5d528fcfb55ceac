"""InceptionV4 weights of TF-slim, timm and MindCV to a checkpoint of this project, and back to timm.

python -m src.weights import FILE --out CKPT [--drop_background]
python -m src.weights export-timm CKPT [--out FILE.safetensors]
"""

from __future__ import annotations

import argparse
import os

from src.errors import InputError, Parser, entry_point, reading
from src.weights import checkpoint, torch_file
from src.weights.names import NO_CLASSIFIER, names_in
from src.weights.read import OURS, convert, empty_network, read_tensors

ELSEWHERE = 'choose another --out'


def import_weights(path: str, out: str, drop_background: bool) -> None:
    """Convert the file `path` to the checkpoint `out`, and print what was left out. InputError if it holds no InceptionV4
    with a classifier or is this project's, or if `out` cannot be written."""
    tensors, _ = read_tensors(path)
    with reading(path):
        if OURS in tensors:
            raise ValueError('already a checkpoint of this project; no import needed')
        parameters, info, names = convert(tensors, drop_background)
        if 'num_classes' not in info['config']:
            raise ValueError(NO_CLASSIFIER)
    layout, left = info['source'], [name for name in tensors if name not in names.values()]
    with reading(out, ELSEWHERE):
        checkpoint.write(out, parameters, {**info, 'source': f'{layout} {path}'})
    print(f'{out}: {layout}, {len(tensors) - len(left)} tensors of {path}, {len(left)} left out: {", ".join(left[:3])}')


def export_weights(path: str, out: str) -> None:
    """Write the checkpoint `path` as timm's safetensors. InputError if it is no checkpoint of this project, or if `out`
    cannot be written."""
    parameters, info = checkpoint.load(path)
    if OURS not in parameters or 'config' not in info:
        raise InputError(f'{path}: not a checkpoint of this project; import it first')
    network, parameters = empty_network(info['config']), checkpoint.averaged(parameters)
    checkpoint.load_into(network, parameters, path)  # complete, and of the right shapes
    foreign = names_in('timm', network.parameters_dict())
    with reading(out, ELSEWHERE):
        torch_file.write_safetensors(out, {foreign[name]: parameters[name] for name in foreign})
    print(f'{out}: {len(foreign)} tensors written, {len(parameters) - len(foreign)} of {path} left out')
    print(f'preprocessing: {info.get("preprocessing")}')


@entry_point
def main(arguments: list[str] | None = None) -> None:
    """Run the command line `arguments` (default: those of the process)."""
    parser = Parser(prog='python -m src.weights', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('import', help='weights of another program to a checkpoint of this project')
    command.add_argument('file', help='TensorFlow checkpoint (V1 file, V2 prefix), safetensors, .pth or .ckpt')
    command.add_argument('--out', required=True, help='the checkpoint to write')
    command.add_argument('--drop_background', action='store_true', help='of 1001 classes drop the first, the background')
    command = commands.add_parser('export-timm', help='a checkpoint of this project to a safetensors file that timm loads')
    command.add_argument('file', help='checkpoint of this project')
    command.add_argument('--out', help='safetensors file to write (default: the name of the checkpoint)')
    args = parser.parse_args(arguments)
    if args.command == 'import':
        import_weights(args.file, args.out, args.drop_background)
    else:
        export_weights(args.file, args.out or f'{os.path.splitext(args.file)[0]}.safetensors')


if __name__ == '__main__':
    main()
