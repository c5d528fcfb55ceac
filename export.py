"""Checkpoint to a verified MINDIR, ONNX or AIR file: `python export.py --ckpt_path CKPT --file_format ONNX --file_name
NAME [--option value ...]`; docs/deploy.md says what to do with it."""

import sys
from pathlib import Path

from src import config as configuration
from src import runtime
from src.data.preprocess import PREPROCESSING, recorded_preprocessing
from src.deploy.export import check_format, check_target, export_network, sha256, write_aipp
from src.deploy.predictor import class_names, network_of, recorded_names
from src.errors import InputError, entry_point
from src.weights import convert as weights


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    config = configuration.load(argv)
    check_format(config.file_format)
    if config.aipp and config.input == 'uint8':
        raise InputError('aipp and input uint8 would both scale the pixels; use --input float with --aipp')
    if config.aipp and not config.ckpt_path:
        write_aipp(config.aipp, PREPROCESSING, config.image_size)
        return print(
            f'{config.aipp}: scaling of the default preprocessing for images of {config.image_size} x '
            f'{config.image_size} pixels'
        )
    if not config.ckpt_path:
        raise InputError('ckpt_path is empty; use --ckpt_path FILE')
    if Path(config.ckpt_path).is_dir():
        raise InputError(f'ckpt_path {config.ckpt_path} is a directory; name one checkpoint in it')
    suffix = f'.{config.file_format.lower()}'
    path = Path(config.file_name.removesuffix(suffix) + suffix)
    check_target(path)

    # MINDIR and ONNX are the same wherever they are made, and the CPU verifies them in float32.
    target = 'CPU' if config.device_target == 'auto' and config.file_format != 'AIR' else config.device_target
    run = runtime.start(target, config.device_id)
    print(runtime.describe(run, target), flush=True)
    network, info, config = network_of(config.ckpt_path, argv)
    preprocessing = recorded_preprocessing(info.get('preprocessing'))
    names = class_names(config.labels, recorded_names(info), config.num_classes)
    source = weights.main_file(config.ckpt_path)
    report = export_network(
        network,
        path,
        file_format=config.file_format,
        preprocessing=preprocessing,
        image_size=config.image_size,
        input_type=config.input,
        output=config.output,
        batch_size=config.batch_size,
        fold_bn=config.fold_bn,
        computed_in='float16 or HF32' if run.device_target == 'Ascend' else 'float32',
        about={
            'classes': names,
            'num_classes': config.num_classes,
            'source': {
                'checkpoint': Path(source).name,
                'sha256': sha256(source),
                'step': info.get('step'),
                'epoch': info.get('epoch'),
            },
        },
    )
    if config.aipp:
        write_aipp(config.aipp, preprocessing, config.image_size)
    print(describe(path, report))
    if config.aipp:
        print(f'{config.aipp}: scaling of the same preprocessing for atc')


def describe(path, report):
    """Lines that say what was written to `path`."""
    takes, gives, found = report['input'], report['output'], report['deviation']
    return (
        f'{path}: {path.stat().st_size / 1e6:.0f} MB, input {takes["type"]} {_shape(takes["shape"])}, output '
        + ', '.join(f'{name} {_shape(shape)}' for name, shape in zip(gives['names'], gives['shapes']))
        + f"\ndeviation of {found['measured_on']} from the checkpoint's network: {found['random']:.1e} for random "
        f'pixels, {found["drawn"]:.1e} for drawn images (bound {found["bound"]:.0e}, {found["computed_in"]}); all of it '
        f'in {path.with_suffix(".json")}'
    )


def _shape(shape):
    return f'({", ".join("any" if length is None else str(length) for length in shape)})'


if __name__ == '__main__':
    main()
