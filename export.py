"""Checkpoint to a verified MINDIR, ONNX or AIR file: `python export.py --ckpt_path CKPT --file_format ONNX --file_name
NAME [--option value ...]`; docs/deploy.md says what to do with it."""

import sys
from pathlib import Path

from src import config as configuration
from src import runtime
from src.data.preprocess import PREPROCESSING, recorded_preprocessing
from src.deploy import description
from src.deploy.aipp import write_aipp
from src.deploy.class_names import class_names, recorded_names
from src.deploy.export import export_network
from src.deploy.formats import check_format
from src.deploy.graph import Signature
from src.deploy.network import load_network
from src.errors import InputError, entry_point
from src.weights.read import main_file


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    config = configuration.load(argv)
    check_format(config.file_format)
    if config.aipp and config.export_input == 'uint8':
        raise InputError('aipp and export_input uint8 would both scale the pixels; use --export_input float with --aipp')
    if config.aipp and not config.ckpt_path:
        return write_default_aipp(config)
    path = target(config)
    # MINDIR and ONNX are the same wherever they are made, and the CPU verifies them in float32.
    device = 'CPU' if config.device_target == 'auto' and config.file_format != 'AIR' else config.device_target
    run = runtime.start(device, config.device_id)
    print(runtime.describe(run, device), flush=True)

    network, info, config = load_network(config.ckpt_path, argv)
    preprocessing = recorded_preprocessing(info.get('preprocessing'))
    report = export_network(
        network,
        path,
        Signature(config.image_size, preprocessing, config.export_input, config.export_output, config.batch_size),
        origin(config, info),
        config.fold_bn,
        computed_in='float16 or HF32' if run.device_target == 'Ascend' else 'float32',
    )
    if config.aipp:
        write_aipp(config.aipp, preprocessing, config.image_size)
    print(description.as_text(path, report))
    if config.aipp:
        print(f'{config.aipp}: scaling of the same preprocessing for atc')


def write_default_aipp(config):
    """The file `aipp` without a checkpoint."""
    write_aipp(config.aipp, PREPROCESSING, config.image_size)
    size = f'{config.image_size} x {config.image_size} pixels'
    print(f'{config.aipp}: scaling of the default preprocessing for images of {size}')


def target(config):
    """Path of the file to write. InputError before anything is loaded if the checkpoint's or the file's name is no good."""
    if not config.ckpt_path:
        raise InputError('ckpt_path is empty; use --ckpt_path FILE')
    if Path(config.ckpt_path).is_dir():
        raise InputError(f'ckpt_path {config.ckpt_path} is a directory; name one checkpoint in it')
    suffix = f'.{config.file_format.lower()}'
    path = Path(config.file_name.removesuffix(suffix) + suffix)
    description.check_target(path)
    return path


def origin(config, info):
    """What the JSON file says about the classes and the checkpoint (dict). InputError if class names do not fit."""
    file = main_file(config.ckpt_path)
    return {
        'classes': class_names(config.export_labels, recorded_names(info), config.num_classes, '--export_labels'),
        'num_classes': config.num_classes,
        'source': {
            'checkpoint': Path(file).name,
            'sha256': description.sha256(file),
            'step': info.get('step'),
            'epoch': info.get('epoch'),
        },
    }


if __name__ == '__main__':
    main()
