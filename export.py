"""Checkpoint to a verified MINDIR, ONNX or AIR file: `python export.py --ckpt_path CKPT --file_format ONNX --file_name
NAME [--option value ...]`; docs/deploy.md says what to do with it."""

import sys
from pathlib import Path

from src import runtime
from src.data.preprocess import PREPROCESSING
from src.data.records import find_format, open_records, splits
from src.deploy import description
from src.deploy.aipp import write_aipp
from src.deploy.class_names import class_names, recorded_names
from src.deploy.export import Encoding, export_network
from src.deploy.formats import INT8_OPSET, OPSET, check_format
from src.deploy.graph import Signature
from src.deploy.network import load_network
from src.deploy.quantization import Quantization, Sample, spread
from src.errors import InputError, entry_point
from src.evaluation.evaluation import open_validation
from src.options import load_settings
from src.weights.read import main_file


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    config = load_settings(argv)
    check_format(config.file_format)
    check_encoding(config)
    if config.aipp and config.export_input == 'uint8':
        raise InputError('aipp and export_input uint8 would both scale the pixels; use --export_input float with --aipp')
    if config.aipp and not config.ckpt_path:
        return write_default_aipp(config)
    path = target(config)
    # MINDIR and ONNX are the same wherever they are made, and the CPU verifies them in float32.
    device = 'CPU' if config.device_target == 'auto' and config.file_format != 'AIR' else config.device_target
    run = runtime.start(config.but(device_target=device))
    print(runtime.describe(run, device), flush=True)

    network, info, config = load_network(config.ckpt_path, argv)
    preprocessing = info['preprocessing']
    opset = config.opset if config.opset != 'auto' else INT8_OPSET if config.quantize == 'int8' else OPSET
    on_npu = run.device_target == 'Ascend' and config.export_precision == 'float32'
    computed_in = 'float16 or HF32' if on_npu else config.export_precision
    material = quantization(config, info, load_settings(argv).label_offset) if config.quantize == 'int8' else None
    report = export_network(
        network,
        path,
        Signature(config.image_size, preprocessing, config.export_input, config.export_output, config.batch_size),
        origin(config, info),
        Encoding(config.fold_bn, config.export_precision, opset, material),
        computed_in,
    )
    if config.aipp:
        write_aipp(config.aipp, preprocessing, config.image_size)
    print(description.as_text(path, report))
    if config.aipp:
        print(f'{config.aipp}: scaling of the same preprocessing for atc')


def check_encoding(config):
    """InputError if options exclude each other."""
    if config.export_precision != 'float32' and config.file_format != 'MINDIR':
        raise InputError(
            f'export_precision {config.export_precision}: only MINDIR is written in it, {config.file_format} in float32, '
            'which atc makes float16 by itself; leave it out, or use --file_format MINDIR'
        )
    if config.quantize == 'none':
        return
    for option, needed in (('file_format', 'ONNX'), ('fold_bn', True)):
        if config[option] != needed:
            raise InputError(f'quantize int8 needs {option} {needed}, not {config[option]}; use --{option} {needed}')
    if config.opset != 'auto' and config.opset < 13:
        raise InputError(
            f'opset {config.opset} has no scales per channel, which quantize int8 needs; use --opset 13 or more'
        )
    if not config.data_dir:
        raise InputError('quantize int8 needs images to calibrate with; use --data_dir DIR')


def quantization(config, info, asked):
    """The images of `data_dir` with which the file is quantized and compared (Quantization); `asked` is the option
    label_offset without what the checkpoint records."""
    layout = find_format(config.data_dir)
    train = open_records(config.data_dir, 'train', layout)
    calibration = Sample(train, spread(train.label, config.calibration_images, config.seed))
    if 'validation' in splits(config.data_dir, layout):
        names = recorded_names(info)
        records, offsets = open_validation(
            config.data_dir,
            asked,
            config.num_classes,
            print,
            names=names,
            recorded_offset=info['config'].get('label_offset'),
            source=config.ckpt_path,
        )
        evaluation = Sample(records, spread(records.label, config.validation_images or len(records), config.seed), offsets)
    else:
        count = config.validation_images or config.calibration_images
        evaluation = Sample(train, spread(train.label, count, config.seed, calibration.numbers))
    if not len(evaluation.numbers):
        raise InputError(
            f'data_dir {config.data_dir} has no validation images, and all {len(train)} training images are used for '
            'calibration; give fewer --calibration_images'
        )
    return Quantization(calibration, evaluation, config.max_accuracy_loss)


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
