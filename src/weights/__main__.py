"""InceptionV4 weights of TF-slim, timm and MindCV to a checkpoint of this project, and back.

python -m src.weights import FILE --out CKPT [--drop_background] [--slots]
python -m src.weights export-tf CKPT [--out PREFIX]
python -m src.weights export-timm CKPT [--out FILE.safetensors]
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from mindspore import Tensor

from src.data.preprocess import Preprocessing, recorded_preprocessing
from src.errors import InputError, Parser, entry_point
from src.options import REFERENCE_BATCH
from src.weights import checkpoint, misfit, safetensors_file, tf_file
from src.weights.convert import convert
from src.weights.names import names_in, to_tf_slim
from src.weights.network import empty_network
from src.weights.read import OURS, read_tensors


def check_forward(parameters: dict[str, np.ndarray], config: dict) -> tuple[float, float]:
    """Smallest and largest logit of an image of noise; InputError if one is not finite."""
    network = empty_network({**config, 'aux_logits': False}).set_train(False)
    checkpoint.load_into(network, parameters, 'imported weights')
    size = config['image_size']
    logits = network(Tensor(np.random.default_rng(0).uniform(-1, 1, (1, 3, size, size)).astype(np.float32))).asnumpy()
    if not np.isfinite(logits).all():
        raise InputError('the forward pass gives logits that are not finite; the weights are damaged')
    return logits.min(), logits.max()


def import_weights(path: str, out: str, drop_background: bool = False, slots: bool = False):
    """Convert the file `path` to the checkpoint `out`; prints a line for every tensor.

    InputError if the file holds no InceptionV4 or is this project's; OSError if `out` cannot be written.
    """
    tensors, _ = read_tensors(path, averages=not slots)  # a training goes on with the weights themselves
    if OURS in tensors:
        raise InputError(f"{path}: has this project's names already; use it as it is")
    try:
        found = convert(tensors, drop_background, slots)
        if 'num_classes' not in found.config:
            raise InputError(misfit.NO_CLASSIFIER)
        lowest, highest = check_forward(found.parameters, found.config)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    info = {
        'step': found.step,
        'epoch': 0,
        'config': found.config,
        'source': f'{found.layout} {path}',
        'preprocessing': found.preprocessing._asdict(),
    }
    if found.class_names:
        info['class_names'] = found.class_names
    if slots:  # a training goes on by the images it has seen; the file has steps only
        info['position'] = found.step * REFERENCE_BATCH
        found.notes.append(f'`resume` counts the {found.step} steps as steps of {REFERENCE_BATCH} images')
    checkpoint.write(out, found.parameters, info)
    _report(path, found)
    print(f'logits of a random image: finite, {lowest:.3g} to {highest:.3g}\n{out}: written')


def _report(path, found):
    """Print what became of every tensor of the file `path`, which `convert` `found`."""
    for name, shape, target, remark in found.report:
        print(f'{name} {shape}' + (f' -> {target}: ' if target else ': ') + remark)
    for note in found.notes:
        print(f'note: {note}')
    loaded = sum(remark == 'loaded' for *_, remark in found.report)
    print(
        f'{path}: {found.layout}, {loaded} tensors loaded, {len(found.report) - loaded} left out\n'
        f'network: {", ".join(f"{name} {value}" for name, value in found.config.items())}\n'
        f'preprocessing: {_described(found.preprocessing)}'
    )


def _described(preprocessing: Preprocessing) -> str:
    return ', '.join(f'{name} {value}' for name, value in preprocessing._asdict().items())


def export_weights(path: str, out: str | None, layout: str):
    """Write the checkpoint `path` of this project as a TensorFlow checkpoint (`layout` tf_slim) or as timm's safetensors.

    InputError if it is no checkpoint of this project; OSError if `out` cannot be written.
    """
    parameters, info = checkpoint.load(path)
    if OURS not in parameters or 'config' not in info:
        raise InputError(f'{path}: not a checkpoint of this project; import it first')
    network = empty_network(info['config'])
    parameters = checkpoint.averaged(parameters)
    checkpoint.load_into(network, parameters, path)  # complete, and of the right shapes
    weights = {name: parameters[name] for name in network.parameters_dict()}
    if layout == 'tf_slim':
        out = out or os.path.splitext(path)[0]
        tensors = to_tf_slim(weights)
        tf_file.write(out, tensors)
        if any(name.endswith('/gamma') for name in tensors):
            print('note: batch norm has a scale; build the network with scale=True in the batch norm parameters')
    else:
        out = out or f'{os.path.splitext(path)[0]}.safetensors'
        tensors = {foreign: weights[name] for name, foreign in names_in('timm', weights).items()}
        safetensors_file.write(out, tensors)
    print(
        f'{out}: {len(tensors)} tensors written, {len(parameters) - len(tensors)} of {path} left out\n'
        f'preprocessing: {_described(recorded_preprocessing(info.get("preprocessing")))}'
    )


@entry_point
def main(arguments: list[str] | None = None):
    """Run the command line `arguments` (default: those of the process)."""
    parser = Parser(prog='python -m src.weights', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('import', help='weights of another program to a checkpoint of this project')
    command.add_argument('file', help='TensorFlow checkpoint (V1 file, V2 prefix), safetensors, .pth or .ckpt')
    command.add_argument('--out', required=True, help='the checkpoint to write')
    command.add_argument('--drop_background', action='store_true', help='of 1001 classes drop the first, the background')
    command.add_argument('--slots', action='store_true', help="take RMSProp's state and the step of a TensorFlow training")
    for name, what in (('export-tf', 'prefix of the TensorFlow checkpoint'), ('export-timm', 'safetensors file')):
        command = commands.add_parser(name, help=f'a checkpoint of this project to a {what.split()[-1]}')
        command.add_argument('file', help='checkpoint of this project')
        command.add_argument('--out', help=f'{what} to write (default: the name of the checkpoint)')
    args = parser.parse_args(arguments)
    try:
        if args.command == 'import':
            import_weights(args.file, args.out, args.drop_background, args.slots)
        else:
            export_weights(args.file, args.out, 'tf_slim' if args.command == 'export-tf' else 'timm')
    except OSError as error:
        raise InputError(f'{args.out or args.file}: cannot be written ({error.strerror}); choose another --out') from None


if __name__ == '__main__':
    main()
