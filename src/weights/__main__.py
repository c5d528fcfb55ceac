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


def import_weights(path: str, out: str, drop_background: bool = False) -> None:
    """Convert the file `path` to the checkpoint `out`; prints a line for every tensor.

    InputError if the file holds no InceptionV4 or is this project's; OSError if `out` cannot be written.
    """
    tensors, _ = read_tensors(path)
    with reading(path):
        if OURS in tensors:
            raise ValueError('already a checkpoint of this project; no import needed')
        parameters, info, names = convert(tensors, drop_background)
        if 'num_classes' not in info['config']:
            raise ValueError(NO_CLASSIFIER)
    layout, ours = info['source'], {foreign: name for name, foreign in names.items()}
    checkpoint.write(
        out, parameters, {name: value for name, value in info.items() if value is not None} | {'source': f'{layout} {path}'}
    )
    for name, value in tensors.items():
        print(f'{name} {() if value is None else value.shape}', f'-> {ours[name]}' if name in ours else ': left out')
    if drop_background:
        print("note: class k is now ImageNet's class k of 0..999, label k + 1 of TF-slim's records (label_offset 1)")
    elif 'label_offset' in info['config']:
        print("note: class 0 is the background, class k is label k of TF-slim's records; without it: --drop_background")
    elif layout == 'tf_slim':
        print('note: after a training run with labels from 1, as the original had, evaluate with --label_offset 0')
    loaded = len(tensors.keys() & ours.keys())
    for what in ('config', 'preprocessing'):
        print(f'{what}: {", ".join(f"{name} {value}" for name, value in info[what].items())}')
    print(f'{path}: {layout}, {loaded} tensors loaded, {len(tensors) - loaded} left out\n{out}: written')


def export_weights(path: str, out: str) -> None:
    """Write the checkpoint `path` of this project as timm's safetensors.

    InputError if it is no checkpoint of this project; OSError if `out` cannot be written.
    """
    parameters, info = checkpoint.load(path)
    if OURS not in parameters or 'config' not in info:
        raise InputError(f'{path}: not a checkpoint of this project; import it first')
    network = empty_network(info['config'])
    parameters = checkpoint.averaged(parameters)
    checkpoint.load_into(network, parameters, path)  # complete, and of the right shapes
    foreign = names_in('timm', network.parameters_dict())
    torch_file.write_safetensors(out, {foreign[name]: parameters[name] for name in foreign})
    print(f'{out}: {len(foreign)} tensors written, {len(parameters) - len(foreign)} of {path} left out')
    print(f'preprocessing: {info.get("preprocessing")}')


@entry_point
def main(arguments: list[str] | None = None):
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
    out = args.out or f'{os.path.splitext(args.file)[0]}.safetensors'
    try:
        if args.command == 'import':
            import_weights(args.file, out, args.drop_background)
        else:
            export_weights(args.file, out)
    except OSError as error:
        raise InputError(f'{out}: cannot be written ({error.strerror}); choose another --out') from None


if __name__ == '__main__':
    main()
