"""The exported files beside timm in PyTorch and OpenVINO, on the CPU: `python -m benchmarks.inference [--batch 1,8]`.

All candidates run in turns in one process, so that other load on the machine slows all of them alike; each may use all
cores. All have the same weights and must compute the same logits, those in 8-bit integers or bfloat16 nearly. Memory is the
peak of a separate process that runs one candidate only. With `--weights` and `--data_dir`, the weights and photos of a real
network, top-1 in 8-bit integers is measured, too: each half of the photos with a file that was calibrated with the other.
`--predict` measures instead how much of the rate that a file has alone `src.deploy.predict` reaches. requirements-bench.txt
lists what must be installed.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import mindspore as ms  # before torch and onnx: it chooses the implementation of protobuf
import numpy as np

from benchmarks.peers import timm_model
from benchmarks.rounds import Threads, environment, interleaved, machine, spread
from src import runtime
from src.data import demo_images, imagenet
from src.data.classes import Offsets, match_names
from src.data.preprocess import PREPROCESSING
from src.data.records import open_records
from src.deploy import quantization
from src.deploy.description import Signature
from src.deploy.export import export_network
from src.deploy.formats import load_mindir, load_onnx
from src.deploy.image_files import find_images
from src.deploy.predict import predict
from src.deploy.predictor import load_network, open_model
from src.deploy.quantization import Sample, Samples
from src.errors import InputError, Parser, entry_point
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.weights.names import names_in

SIZE = 299
TOLERANCE = 1e-3  # of the largest logit; what is compared are programs, not exports of one
CALIBRATION = 50  # images
LONGEST = 20  # seconds; a candidate whose calls take longer is left out of the rounds


def timm_network(weights, channels_last=False, compiled=False, bfloat16=False):
    """timm's `inception_v4` with our weights (npz) as a function: ndarray (N, 3, 299, 299) -> logits."""
    values = dict(np.load(weights))
    network = timm_model(values, len(values['last_linear.bias'])).eval()
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    network = network.to(memory_format=layout, dtype=dtype)
    call = torch.compile(network, dynamic=False) if compiled else network

    def run(x):
        with torch.inference_mode():
            return call(torch.from_numpy(x).to(dtype).contiguous(memory_format=layout)).float().numpy()

    return run


def openvino_network(path):
    """The ONNX file `path` in OpenVINO, as a function: ndarray -> logits."""
    import openvino

    compiled = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda x: compiled(x)[0]


def _first(run):
    return lambda x: run(x)[0]


# Name -> function of the directory of the files that gives the function to time
CANDIDATES = {
    'MINDIR': lambda d: _first(load_mindir(d / 'folded.mindir')),
    'ONNX in ONNX Runtime': lambda d: _first(load_onnx(d / 'folded.onnx')),
    'ONNX in ONNX Runtime, int8': lambda d: _first(load_onnx(d / 'int8.onnx')),
    'ONNX in OpenVINO': lambda d: openvino_network(d / 'folded.onnx'),
    'ONNX in OpenVINO, int8': lambda d: openvino_network(d / 'int8.onnx'),
    'timm, eager, contiguous': lambda d: timm_network(d / 'weights.npz'),
    'timm, eager, channels last': lambda d: timm_network(d / 'weights.npz', True),
    'timm, bfloat16, channels last': lambda d: timm_network(d / 'weights.npz', True, bfloat16=True),
    'timm, compiled, contiguous': lambda d: timm_network(d / 'weights.npz', compiled=True),
    'timm, compiled, channels last': lambda d: timm_network(d / 'weights.npz', True, compiled=True),
}
NEARLY = ('int8', 'bfloat16')  # parts of the names of those that give other logits


def new_network(weights):
    """(network, preprocessing) of the file `weights`, random for ''."""
    if weights:
        network, info, _ = load_network(weights)
        return network, info['preprocessing']
    ms.set_seed(1)
    network = InceptionV4().set_train(False)
    rng = np.random.default_rng(1)
    for name, parameter in network.parameters_dict().items():  # or else there would be nothing to fold
        if name.endswith(('.beta', '.moving_mean')):
            parameter.set_data(ms.Tensor(rng.normal(0, 0.1, parameter.shape), ms.float32))
        elif name.endswith('.moving_variance'):
            parameter.set_data(ms.Tensor(rng.uniform(0.5, 1.5, parameter.shape), ms.float32))
    return network, PREPROCESSING


def write_files(directory, weights, data_dir):
    """The exported files that are missing, and the same weights under timm's names."""
    for name in ('folded.mindir', 'folded.onnx'):
        if (directory / name).exists():
            continue
        network, preprocessing = new_network(weights)
        signature, classes = Signature(SIZE, preprocessing), network.logits.out_channels
        values = {name: p.asnumpy() for name, p in network.parameters_dict().items()}
        np.savez(directory / 'weights.npz', **{foreign: values[name] for name, foreign in names_in('timm', values).items()})
        export_network(network, directory / name, signature, {'classes': None, 'num_classes': classes})
    if not (directory / 'int8.onnx').exists():
        for samples in photo_halves(directory, weights, data_dir, classes):
            shutil.copy(directory / 'folded.onnx', directory / 'int8.onnx')
            figures = quantization.quantize(directory / 'int8.onnx', signature, samples)
            print(f'one half of the photos: {quantization.as_text(figures)}', flush=True)


def photo_halves(directory, weights, data_dir, classes):
    """Two `Samples`: calibrated with photos of either half, compared on the other half."""
    made = data_dir or demo_images.make(directory / 'images', train_per_class=10, validation_per_class=1)
    records, offset = open_records(made, 'train'), None
    if weights and data_dir:
        records, offset = match_names(records, imagenet.class_names(classes), weights), Offsets([0])
    numbers = quantization.spread(records.label, len(records), 1)
    halves = [Sample(records, numbers[half::2], offset) for half in (0, 1)]
    return [
        Samples(first._replace(numbers=np.random.default_rng(1).permutation(first.numbers)[:CALIBRATION]), second)
        for first, second in (halves, halves[::-1])
    ]


def image_batch(batch):
    """Random network input, float32 (batch, 3, SIZE, SIZE) in [-1, 1]."""
    return np.random.default_rng(2).uniform(-1, 1, (batch, 3, SIZE, SIZE)).astype(np.float32)


def peak_memory(directory, name, batch):
    """Peak resident memory, GB, of a process that loads one candidate and runs it three times."""
    result = subprocess.run(
        [
            sys.executable,
            '-m',
            'benchmarks.inference',
            '--alone',
            name,
            '--batch',
            str(batch),
            '--directory',
            str(directory),
        ],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    return float(result.stdout.split()[-1])


def compare_predict(directory, data_dir, rounds, batch):
    """Print how much of its own rate each ONNX file has in `src.deploy.predict`, which reads and decodes photos."""
    photos = find_images(data_dir, print)
    paths = [photos[i % len(photos)] for i in range(-(-40 // batch) * batch)]
    for name in ('folded.onnx', 'int8.onnx'):
        seconds = predict_seconds(open_model(directory / name), paths, batch, rounds)
        rates = {kind: [len(paths) / value for value in values] for kind, values in seconds.items()}
        share = np.median(rates['predict']) / np.median(rates['alone'])
        print(
            f'{name}, batch {batch}: alone {spread(rates["alone"])}, predict {spread(rates["predict"])} images/s, '
            f'{share:.2f} of it',
            flush=True,
        )


def predict_seconds(model, paths, batch, rounds):
    """Seconds for as many images as there are `paths`: of the `model` alone, and of their prediction."""
    images = np.random.default_rng(2).integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8)
    calls = {
        'alone': lambda: [model.probabilities(images) for _ in range(len(paths) // batch)],
        'predict': lambda: list(predict(model, paths, batch_size=batch)),
    }
    return interleaved(calls, rounds, warm_up=1)


def first_calls(directory, names, x):
    """(functions, deviations) by name of the candidates `names`; a deviation is how far the logits for `x` are from those of
    the first, in parts of the largest. What a call takes is printed at once; candidates that take too long are left out."""
    functions, deviations, expected = {}, {}, None
    for name in names:
        function = CANDIDATES[name](directory)
        for _ in range(2):  # the first call may compile
            start = time.perf_counter()
            found = function(x)
            seconds = time.perf_counter() - start
            if seconds < LONGEST:
                break
        print(f'{name}, batch {len(x)}: {seconds:.1f} s{"" if seconds < LONGEST else ", left out"}', flush=True)
        if seconds < LONGEST:
            expected = found if expected is None else expected
            functions[name], deviations[name] = function, np.abs(found - expected).max() / np.abs(expected).max()
            if not deviations[name] < TOLERANCE and not any(part in name for part in NEARLY):
                raise InputError(f'{name} gives other logits than {names[0]}: {deviations[name]:.1e} of the largest')
    return functions, deviations


def compare_speed(directory, names, batch, rounds, no_memory):
    """Print the speed of the candidates `names`, and how far their logits are from those of the first."""
    x = image_batch(batch)
    functions, deviations = first_calls(directory, names, x)
    threads, calls = {name: Threads() for name in functions}, {name: partial(f, x) for name, f in functions.items()}
    seconds = interleaved(calls, rounds, warm_up=1, threads=threads)
    print(f'{"":<32} {"batch":>5} {"images/s, median (range)":>26} {"threads":>7} {"GB":>6} {"deviation":>9}')
    for name in functions:
        memory = '-' if no_memory else f'{peak_memory(directory, name, batch):.2f}'
        rates = spread([batch / value for value in seconds[name]])
        used = threads[name].used
        print(f'{name:<32} {batch:>5} {rates:>26} {used:>7.2f} {memory:>6} {deviations[name]:>9.1e}', flush=True)
        threads[name].require(name)


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.inference', description=__doc__.partition(':')[0])
    parser.add_argument('--batch', default='1,8', help='batch sizes (default: 1,8)')
    parser.add_argument('--rounds', type=int, default=9, help='timed calls of each (default: 9)')
    parser.add_argument('--skip', default=[], nargs='*', help='leave out candidates whose names contain one of these')
    parser.add_argument('--no_memory', action='store_true', help='leave out the memory')
    parser.add_argument('--directory', default='', help='keep the exported files here and use those that are there')
    parser.add_argument('--weights', default='', help='weights of a real network, of any kind that export.py reads')
    parser.add_argument(
        '--data_dir', default='', help='photos in train/<class>/ to calibrate with, and, with --weights, for top-1'
    )
    parser.add_argument('--predict', action='store_true', help='measure src.deploy.predict on the photos of --data_dir')
    parser.add_argument('--alone', default='', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    runtime.start(load_settings(['--device_target', 'CPU']))
    quantization.MAX_LOSS = 100  # random weights have no accuracy to lose
    if args.alone:
        run, x = CANDIDATES[args.alone](Path(args.directory)), image_batch(int(args.batch))
        for _ in range(3):
            run(x)
        # Not ru_maxrss, in which a process inherits what its parent had
        kilobytes = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]
        return print(int(kilobytes) / 2**20)
    if args.predict and not args.data_dir:
        raise InputError('--predict needs photos; use --data_dir DIR')
    packages = ['mindspore', 'onnxruntime', 'torch', 'timm', 'openvino']
    names = [name for name in CANDIDATES if not any(part in name for part in args.skip)]
    if not importlib.util.find_spec('openvino'):
        names, packages = [name for name in names if 'OpenVINO' not in name], packages[:-1]
    print(machine(*packages))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(args.directory or temporary).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        write_files(directory, args.weights, args.data_dir)
        for batch in map(int, args.batch.split(',')):
            if args.predict:
                compare_predict(directory, args.data_dir, args.rounds, batch)
            else:
                compare_speed(directory, names, batch, args.rounds, args.no_memory)


if __name__ == '__main__':
    main()
