"""The exported files beside timm in PyTorch, on the CPU: `python -m benchmarks.inference [--batch 1,8] [--rounds 9]`.

All candidates run in turns in one process, so that other load on the machine slows all of them alike; each may use all
cores. All have the same weights and must compute the same logits. Memory is the peak of a separate process that runs one
candidate only. requirements-bench.txt lists what must be installed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import mindspore as ms  # before torch and onnx: it chooses the implementation of protobuf
import numpy as np

from benchmarks.peers import timm_model
from benchmarks.rounds import interleaved
from src import runtime
from src.data.preprocess import PREPROCESSING
from src.deploy.export import export_network
from src.deploy.formats import load_mindir, load_onnx
from src.deploy.graph import Signature
from src.errors import InputError, Parser, entry_point
from src.inceptionv4 import InceptionV4
from src.weights.names import names_in

SIZE = 299
TOLERANCE = 1e-3  # of the largest logit; what is compared are programs, not exports of one


def timm_network(weights, channels_last=False, compiled=False):
    """timm's `inception_v4` with our weights (npz) as a function: ndarray (N, 3, 299, 299) -> logits."""
    network = timm_model(dict(np.load(weights))).eval()
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    call = torch.compile(network, dynamic=False) if compiled else network

    def run(x):
        with torch.inference_mode():
            return call(torch.from_numpy(x).contiguous(memory_format=layout)).numpy()

    return run


def _first(run):
    return lambda x: run(x)[0]


# Name -> function of the directory of the files that gives the function to time
CANDIDATES = {
    'MINDIR': lambda d: _first(load_mindir(d / 'folded.mindir')),
    'MINDIR, not folded': lambda d: _first(load_mindir(d / 'unfolded.mindir')),
    'ONNX in ONNX Runtime': lambda d: _first(load_onnx(d / 'folded.onnx')),
    'timm, eager': lambda d: timm_network(d / 'weights.npz'),
    'timm, eager, channels last': lambda d: timm_network(d / 'weights.npz', channels_last=True),
    'timm, compiled': lambda d: timm_network(d / 'weights.npz', compiled=True),
    'timm, compiled, channels last': lambda d: timm_network(d / 'weights.npz', channels_last=True, compiled=True),
}


def write_files(directory, batch_size):
    """The exported files for `batch_size` (0: any), and the same weights under timm's names."""
    for stem, suffix, fold_bn in (('folded', 'mindir', True), ('unfolded', 'mindir', False), ('folded', 'onnx', True)):
        ms.set_seed(1)
        network = InceptionV4().set_train(False)
        rng = np.random.default_rng(1)
        for name, parameter in network.parameters_dict().items():  # or else there would be nothing to fold
            if name.endswith(('.beta', '.moving_mean')):
                parameter.set_data(ms.Tensor(rng.normal(0, 0.1, parameter.shape), ms.float32))
            elif name.endswith('.moving_variance'):
                parameter.set_data(ms.Tensor(rng.uniform(0.5, 1.5, parameter.shape), ms.float32))
        values = {name: p.asnumpy() for name, p in network.parameters_dict().items()}
        np.savez(directory / 'weights.npz', **{foreign: values[name] for name, foreign in names_in('timm', values).items()})
        export_network(
            network,
            directory / f'{stem}.{suffix}',
            Signature(SIZE, PREPROCESSING, batch_size=batch_size),
            about={},
            fold_bn=fold_bn,
        )


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
    )
    return float(result.stdout.split()[-1])


@entry_point
def main(argv=None):
    parser = Parser(prog='python -m benchmarks.inference', description=__doc__.partition(':')[0])
    parser.add_argument('--batch', default='1,8', help='batch sizes (default: 1,8)')
    parser.add_argument('--rounds', type=int, default=9, help='timed calls of each (default: 9)')
    parser.add_argument('--skip', default='', help='leave out candidates whose name contains this')
    parser.add_argument('--no_memory', action='store_true', help='leave out the memory')
    parser.add_argument('--directory', default='', help='keep the exported files here and use those that are there')
    parser.add_argument('--alone', default='', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    runtime.start('CPU')
    if args.alone:
        run, x = CANDIDATES[args.alone](Path(args.directory)), image_batch(int(args.batch))
        for _ in range(3):
            run(x)
        # Not ru_maxrss, in which a process inherits what its parent had
        kilobytes = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1]
        return print(int(kilobytes) / 2**20)
    names = [name for name in CANDIDATES if not args.skip or args.skip not in name]
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(args.directory or temporary).resolve()
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / 'folded.onnx').exists():
            write_files(directory, 0)
        functions = {name: CANDIDATES[name](directory) for name in names}
        print(f'{"":<32} {"batch":>5} {"images/s":>9} {"best":>6} {"GB":>6}')
        for batch in map(int, args.batch.split(',')):
            x = image_batch(batch)
            expected = functions[names[0]](x)
            for name, function in functions.items():
                difference = np.abs(function(x) - expected).max() / np.abs(expected).max()
                if not difference < TOLERANCE:
                    raise InputError(f'{name} gives other logits than {names[0]}: {difference:.1e} of the largest')
            seconds = interleaved({name: partial(function, x) for name, function in functions.items()}, args.rounds)
            for name in names:
                memory = '-' if args.no_memory else f'{peak_memory(directory, name, batch):.2f}'
                median, least = np.median(seconds[name]), min(seconds[name])
                print(f'{name:<32} {batch:>5} {batch / median:>9.2f} {batch / least:>6.2f} {memory:>6}', flush=True)


if __name__ == '__main__':
    main()
