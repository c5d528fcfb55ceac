"""The exported files beside timm in PyTorch and OpenVINO, on the CPU: `python -m benchmarks.inference [--batch 1,8]`.

The candidates run in turns, each in a process of its own with all cores. All have the same weights and must compute the same
logits, those in 8-bit integers or bfloat16 nearly. Top-1 in 8-bit integers is what export.py reports: `--weights` and
`--data_dir` name a real network and its images. requirements-bench.txt lists what must be installed.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import mindspore as ms  # before torch and onnx: it chooses the implementation of protobuf
import numpy as np

from benchmarks.peers import timm_model
from benchmarks.rounds import compare, machine, serve
from src.data import demo_images
from src.deploy.formats import load
from src.errors import InputError, Parser, entry_point
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from src.weights.names import names_in
from src.weights.read import read_weights
from src.workflow import start

SIZE, TOLERANCE = 299, 1e-3  # pixels; of the largest logit: what is compared are programs, not exports of one
NEARLY = ('int8', 'bfloat16')  # in the names of those that have other logits


def timm(directory, channels_last=False, compiled=False, bfloat16=False):
    """timm's network with our weights as a function: ndarray (N, 3, 299, 299) -> logits."""
    import torch

    parameters = read_weights(next(directory.glob('weights.*')))[0]
    names = names_in('timm', parameters)
    values = {names[name]: value for name, value in parameters.items() if name in names}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    network = timm_model(values, len(values['last_linear.bias'])).eval().to(memory_format=layout, dtype=dtype)
    call = torch.compile(network, dynamic=False) if compiled else network

    def infer(x):
        with torch.inference_mode():
            return call(torch.from_numpy(x).to(dtype).contiguous(memory_format=layout)).float().numpy()

    return infer


def exported(load, name, directory):
    """An exported file in its own runtime as a function, see `timm`."""
    call = load(directory / name)
    return lambda x: call(x)[0]


def openvino(path):
    """The ONNX file `path` in OpenVINO."""
    import openvino

    return openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})


CANDIDATES = {
    'MINDIR': partial(exported, load, 'float32.mindir'),
    'ONNX in ONNX Runtime': partial(exported, load, 'float32.onnx'),
    'ONNX in ONNX Runtime, int8': partial(exported, load, 'int8.onnx'),
    'ONNX in OpenVINO': partial(exported, openvino, 'float32.onnx'),
    'ONNX in OpenVINO, int8': partial(exported, openvino, 'int8.onnx'),
    'timm, eager, contiguous': timm,
    'timm, eager, channels last': partial(timm, channels_last=True),
    'timm, bfloat16, channels last': partial(timm, channels_last=True, bfloat16=True),
    'timm, compiled, channels last': partial(timm, channels_last=True, compiled=True),
}


def make_files(directory, weights, data_dir):
    """The exported files of `weights`, or of a random network, as far as they are missing."""
    if not weights:
        weights = directory / 'weights.ckpt'
        ms.set_seed(1)
        checkpoint.write(weights, checkpoint.values(InceptionV4()), {'config': {}})
    elif not [*directory.glob('weights.*')]:
        (directory / f'weights{Path(weights).suffix}').symlink_to(Path(weights).resolve())
    data_dir = data_dir or demo_images.make(directory / 'images', train_per_class=10, validation_per_class=1)
    options = ['--ckpt_path', weights, '--export_input', 'float', '--export_output', 'logits']
    for name, more in (('float32.mindir', []), ('float32.onnx', []), ('int8.onnx', ['--quantize', 'int8'])):
        if not (directory / name).exists():
            more = [*more, '--data_dir', data_dir] if more else []
            file_format = name.rpartition('.')[2].upper()
            start('export.py', *options, '--file_format', file_format, '--file_name', directory / name.split('.')[0], *more)


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog='python -m benchmarks.inference', description=__doc__.partition(':')[0])
    parser.add_argument('--batch', default='1,8', help='batch sizes (default: 1,8)')
    parser.add_argument('--rounds', type=int, default=9, help='timed calls of each (default: 9)')
    parser.add_argument('--skip', default=[], nargs='*', help='leave out candidates whose names contain one of these')
    parser.add_argument('--directory', default='', help='keep the exported files here and use those that are there')
    parser.add_argument('--weights', default='', help='weights of a real network, of any kind that export.py reads')
    parser.add_argument('--data_dir', default='', help='images to calibrate with, and to compare int8 by')
    parser.add_argument('--alone', default='', help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.alone:
        ms.set_context(mode=ms.GRAPH_MODE, device_target='CPU')
        x = np.random.default_rng(2).uniform(-1, 1, (int(a.batch), 3, SIZE, SIZE)).astype(np.float32)
        infer = CANDIDATES[a.alone](Path(a.directory))
        return serve(lambda: infer(x)[0][:50])
    names = [name for name in CANDIDATES if not any(part in name for part in a.skip)]
    print(machine('mindspore', 'onnxruntime'), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(a.directory or temporary).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        make_files(directory, a.weights, a.data_dir)
        for batch in a.batch.split(','):
            print(f'batch {batch}')
            alone = ['--batch', batch, '--directory', str(directory)]
            results = compare('benchmarks.inference', names, alone, int(batch), a.rounds)
            for name, logits in results.items():
                expected = np.array(results[names[0]])
                deviation = np.abs(np.array(logits) - expected).max() / np.abs(expected).max()
                if deviation > TOLERANCE and not any(part in name for part in NEARLY):
                    raise InputError(f'{name} has other logits than {names[0]}: {deviation:.1e} of the largest')


if __name__ == '__main__':
    main()
