"""Checkpoint to a verified MINDIR, ONNX or AIR file: `python export.py --ckpt_path CKPT --file_format ONNX --file_name
NAME [--option value ...]`; docs/deploy.md says what to do with it."""

import sys
from pathlib import Path

import mindspore as ms

from src import runtime
from src.data.records import open_records
from src.deploy import formats, quantization
from src.deploy.export import export_network, load_network
from src.errors import InputError, entry_point
from src.evaluation.evaluation import open_validation
from src.evaluation.report import labels_of
from src.options import load_settings
from src.weights.read import main_file


@entry_point
def main(argv=None):
    """The command line."""
    argv = sys.argv[1:] if argv is None else argv
    settings = load_settings(argv)
    check_options(settings)
    path = target(settings)

    # MINDIR and ONNX are the same wherever they are made, and the CPU verifies them in float32.
    device = 'CPU' if settings.device_target == 'auto' and settings.file_format != 'AIR' else settings.device_target
    run = runtime.start(settings.but(device_target=device))
    print(runtime.describe(run, device), flush=True)

    network, info, settings = load_network(settings.ckpt_path, argv)
    kinds = settings.export_input, settings.export_output, settings.batch_size, settings.export_precision
    signature = formats.Signature(settings.image_size, info['preprocessing'], *kinds)
    images = int8_images(settings, info) if settings.quantize == 'int8' else None
    report = export_network(network, path, signature, classes_and_source(settings, info), images)

    print(formats.as_text(path, report))
    if images:
        print(quantization.as_text(report['quantization']))


def check_options(settings):
    """InputError before anything is loaded if options exclude each other, or the format cannot be written here."""
    if settings.file_format == 'AIR' and not ms.device_context.ascend.is_available():
        raise InputError(
            'file_format AIR: only an NPU can write it and MindSpore sees none here; run the same command on the NPU, or '
            'use --file_format ONNX and convert with atc (docs/deploy.md)'
        )
    if settings.file_format == 'ONNX':
        formats.need_onnx()
    if settings.export_precision != 'float32' and settings.file_format != 'MINDIR':
        raise InputError(
            f'export_precision {settings.export_precision}: only MINDIR is written in it, {settings.file_format} in '
            'float32, which atc makes float16 by itself; leave it out, or use --file_format MINDIR'
        )
    if settings.quantize == 'int8' and (settings.file_format != 'ONNX' or not settings.data_dir):
        raise InputError('quantize int8 needs ONNX and images to calibrate with; use --file_format ONNX --data_dir DIR')


def target(settings):
    """Path of the file to write. InputError before anything is loaded if the checkpoint's or the file's name is no good."""
    if not Path(settings.ckpt_path).name:
        raise InputError(f'ckpt_path {settings.ckpt_path!r} is not a file; use --ckpt_path FILE, a checkpoint')
    suffix = f'.{settings.file_format.lower()}'
    path = Path(settings.file_name.removesuffix(suffix) + suffix)
    if path.suffix != suffix:
        raise InputError(f'file_name {settings.file_name!r} has no name of a file at its end; use --file_name NAME')
    return path


def int8_images(settings, info):
    """The records of `data_dir` with which the file is quantized and compared, and the seed, as `quantize` takes them."""
    names, recorded = info.get('class_names'), info['config'].get('label_offset')
    validation = open_validation(settings, print, names, recorded, settings.ckpt_path)
    return open_records(settings.data_dir, 'train'), validation, settings.seed


def classes_and_source(settings, info):
    """What the JSON file tells about the classes and the checkpoint (dict)."""
    file = main_file(settings.ckpt_path)
    return {
        'classes': labels_of(info.get('class_names') or [], settings.num_classes),
        'num_classes': settings.num_classes,
        'source': {
            'checkpoint': Path(file).name,
            'sha256': formats.sha256(file),
            'step': info.get('step'),
            'epoch': info.get('epoch'),
        },
    }


if __name__ == '__main__':
    main()
