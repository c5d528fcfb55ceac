"""The exported files beside timm in PyTorch and OpenVINO, on the CPU: `python -m benchmarks.inference [--batch 1,8]`.

The candidates run in turns, each in a process of its own with all cores. All have the same random weights and must compute
the same logits, but in 8-bit integers or bfloat16. requirements-bench.txt lists what must be installed.
"""

import tempfile
from functools import partial
from pathlib import Path

import mindspore as ms  # before torch and onnx: it chooses the implementation of protobuf
import numpy as np

from benchmarks import rounds
from benchmarks.peers import timm_model
from src.data import demo_images
from src.deploy.formats import load
from src.errors import InputError, entry_point
from src.inceptionv4 import InceptionV4
from src.weights import checkpoint
from src.workflow import start

SIZE, TOLERANCE = 299, 1e-3  # pixels; of the largest logit: what is compared are programs, not exports of one
NEARLY = ('int8', 'bfloat16')  # in the names of those that have other logits


def timm(directory, channels_last=False, bfloat16=False):
    """timm's network with our weights as a function: ndarray (N, 3, 299, 299) -> logits."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    network = timm_model(checkpoint.load(directory / 'weights.ckpt')[0]).eval().to(memory_format=layout, dtype=dtype)

    def infer(x):
        with torch.inference_mode():
            return network(torch.from_numpy(x).to(dtype).contiguous(memory_format=layout)).float().numpy()

    return infer


def exported(name, directory):
    """An exported file in its own runtime as a function, see `timm`."""
    call = load(directory / name)
    return lambda x: call(x)[0]


def openvino(name, directory):
    """An ONNX file in OpenVINO."""
    import openvino

    call = openvino.Core().compile_model(str(directory / name), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda x: call(x)[0]


CANDIDATES = {
    'MINDIR': partial(exported, 'float32.mindir'),
    'ONNX in ONNX Runtime': partial(exported, 'float32.onnx'),
    'ONNX in ONNX Runtime, int8': partial(exported, 'int8.onnx'),
    'ONNX in OpenVINO': partial(openvino, 'float32.onnx'),
    'ONNX in OpenVINO, int8': partial(openvino, 'int8.onnx'),
    'timm, eager, contiguous': timm,
    'timm, eager, channels last': partial(timm, channels_last=True),
    'timm, bfloat16, channels last': partial(timm, channels_last=True, bfloat16=True),
}


def make_files(directory):
    """The exported files of a random network."""
    ms.set_seed(1)
    checkpoint.write(directory / 'weights.ckpt', checkpoint.values(InceptionV4()), {'config': {}})
    data = demo_images.make(directory / 'images', train_per_class=10, validation_per_class=1)
    options = ['--ckpt_path', directory / 'weights.ckpt', '--export_input', 'float', '--export_output', 'logits']
    int8 = ['--quantize', 'int8', '--data_dir', data]
    for file_format, stem, *more in (('MINDIR', 'float32'), ('ONNX', 'float32'), ('ONNX', 'int8', *int8)):
        start('export.py', *options, '--file_format', file_format, '--file_name', directory / stem, *more)


@entry_point
def main():
    parser = rounds.parser('benchmarks.inference', __doc__, 9)
    parser.add_argument('--batch', default='1,8', help='batch sizes (default: 1,8)')
    a = parser.parse_args()
    if a.alone:
        ms.set_context(mode=ms.GRAPH_MODE, device_target='CPU')
        x = np.random.default_rng(2).uniform(-1, 1, (int(a.batch), 3, SIZE, SIZE)).astype(np.float32)
        infer = CANDIDATES[a.alone](a.place)
        return rounds.serve(lambda: infer(x)[0][:50])
    print(rounds.machine('mindspore', 'onnxruntime'), flush=True)
    with tempfile.TemporaryDirectory() as place:
        make_files(Path(place))
        for batch in a.batch.split(','):
            print(f'batch {batch}')
            commands = rounds.alone('benchmarks.inference', CANDIDATES, place, '--batch', batch)
            results = rounds.compare(commands, a, int(batch))
            expected = np.array(next(iter(results.values())))
            for name, logits in results.items():
                deviation = np.abs(np.array(logits) - expected).max() / np.abs(expected).max()
                if deviation > TOLERANCE and not any(part in name for part in NEARLY):
                    raise InputError(f'{name} has other logits than {next(iter(results))}: {deviation:.1e} of the largest')


if __name__ == '__main__':
    main()
