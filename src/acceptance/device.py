"""The checks of one device, in a process that src/acceptance/programs.py starts."""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor
from mindspore.nn.utils import no_init_parameters

from src import runtime
from src.acceptance import reference
from src.acceptance.report import Teller, equal, run, within
from src.acceptance.speed import SIZES, measure
from src.acceptance.steps import Steps
from src.acceptance.training import recorded
from src.data import demo_images, preprocess
from src.deploy.export import BOUNDS
from src.inceptionv4 import InceptionV4, set_precision
from src.options import load_settings
from src.weights import checkpoint

PLACE = 'docs/ascend.md, "When it goes wrong"; the process\'s own output is in device.log, steps.log or speed.log'
FORWARD = (
    'MindSpore and CANN must belong together (docs/ascend.md, "Versions"); src/runtime.py sets what the chip may '
    'compute with less precision than float32'
)
OVERFLOW = (
    'TrainStep.saturates (src/training/step.py) says how the chip tells overflow; unset MS_ASCEND_CHECK_OVERFLOW_MODE; '
    '--amp_level O0 needs no loss scale'
)
STATE = (
    'the state on the device and what the host reads of it differ: src/training/step.py and src/training/callbacks.py use '
    'the parameters between sinks'
)


class Device:
    """The checks, each a method that gives its figures. `args` are those of `main`."""

    def __init__(self, args):
        self.args, self.output = args, Path(args.output)

    def start(self):
        """MindSpore takes the device."""
        self.run = runtime.start(
            load_settings([]).but(
                device_target=self.args.device_target, device_id=self.args.device_id, jit_level=self.args.jit_level or 'O2'
            )
        )
        on_npu = self.run.device_target == 'Ascend'
        self.name = ms.hal.get_device_name(self.run.device_id) if on_npu else ''
        self.size = 'whole' if on_npu else 'small'
        return {
            'text': f'{runtime.describe(self.run, self.args.device_target)}{f", {self.name}" if self.name else ""}',
            'device_target': self.run.device_target,
            'device': self.name,
            'chip': runtime.chip(),
            'precision': self.run.amp_level,
            'mindspore': ms.__version__,
        }

    def construction(self):
        """MindSpore accepts every layer of the whole network for this chip."""
        with no_init_parameters():
            network = InceptionV4(aux_logits=True)
        millions = sum(parameter.size for parameter in network.trainable_params()) / 1e6
        return {'text': f'whole network and auxiliary classifier, {millions:.1f} million weights', 'millions': millions}

    def forward(self):
        """The logits of seeded weights are those that src/acceptance/reference.py stored."""
        expected = reference.stored(self.size, self.args.figures or reference.STORED)
        network = reference.network(self.size)
        self.seeded = checkpoint.values(network)
        start = time.perf_counter()
        found = reference.logits(set_precision(network, self.run.amp_level), self.size)
        seconds = time.perf_counter() - start
        bound = BOUNDS['float32' if self.run.amp_level == 'O0' else 'float16 or HF32']
        equal(found.shape, expected.shape, 'logits of the shape')
        difference = within(
            float(np.abs(found - expected).max() / np.abs(expected).max()),
            bound,
            'difference from the float32 logits of a CPU, in parts of the largest,',
        )
        equal(found.argmax(1).tolist(), expected.argmax(1).tolist(), 'likeliest classes')
        return {
            'text': f'{self.size} network, {difference:.1e} of the largest logit (bound {bound:g}), same top-1',
            'difference': difference,
            'bound': bound,
            'first_call_seconds': seconds,
        }

    def augmentation(self):
        """The colour augmentation on the device computes what NumPy does."""
        rng = np.random.default_rng(3)
        image, draws = rng.integers(0, 256, (4, 3, 299, 299), np.uint8), []
        for _ in image:
            draws.append(preprocess.draw_augmentation(rng)[1])
        draws = np.stack(draws)
        dtype = ms.float32 if self.run.amp_level == 'O0' else ms.float16
        found = preprocess.Augment(dtype)(Tensor(image), Tensor(draws)).asnumpy().astype(np.float32)
        drawn = (draws * preprocess.DRAWN).T[..., None, None, None]
        expected = preprocess.colour(image.astype(np.float32), *drawn, np.maximum, np.minimum)
        difference = within(float(np.abs(found - expected).max()), 1 / 255, 'difference from NumPy')
        return {'text': f'{difference:.1e} from NumPy (bound 1/255)', 'difference': difference, 'bound': 1 / 255}

    def records(self):
        """Draw a data set and read of it."""
        data = demo_images.make(self.output / 'data', train_per_class=40, validation_per_class=3)
        self.steps = Steps(self.run, data, self.output)
        lengths = [len(self.steps.records.read(record)) for record in range(50)]
        return {'text': f'{len(self.steps.records)} images drawn, {sum(lengths) / 50e3:.0f} KB each'}

    def weights(self):
        """Write the network of `forward` as a checkpoint, for export.py."""
        path = self.output / 'seeded.ckpt'
        checkpoint.write(path, self.seeded, {'step': 0, 'epoch': 0, 'config': recorded(reference.NETWORKS[self.size])})
        return {'text': str(path)}


def speeds(device: Device) -> list[tuple]:
    """[(name, check, remedy)]; `device.args.device_target` is "Ascend" or "CPU"."""
    level, data, overflow = device.args.jit_level, device.output / 'data', device.args.drop_overflow_update
    return [
        (f'speed, batch {size}{level and f", {level}"}', lambda size=size: measure(device.run, data, size, overflow), PLACE)
        for size in SIZES[device.args.device_target]
    ]


def checks(device: Device) -> Iterator[tuple]:
    """(name, check, remedy) in the order in which they are made; the checks of `Steps` need `device.records` before."""

    def of_steps(name):
        return lambda: getattr(device.steps, name)()

    def either(name):
        return lambda: device.steps.either(name)

    yield 'device', device.start, f'python -m src.environment says what is missing; {PLACE}'
    # The first Ascend 910 compiles at O2 only.
    by_host = '' if runtime.chip() == 'ascend910' else '; --jit_level O0 goes back to the host after every step'
    state = STATE + by_host
    yield from [
        (
            'construction',
            device.construction,
            'MindSpore refuses a layer on this chip: src/inceptionv4.py and tests/test_ascend_contract.py',
        ),
        ('forward', device.forward, FORWARD),
        ('augmentation', device.augmentation, 'src/data/preprocess.py, colour'),
        ('records', device.records, 'a disk with some 500 MB free: --output DIR'),
        ('overflow', either('overflow'), OVERFLOW),
        ('steps without sinks', of_steps('without_sinks'), PLACE),
        ('sinks of 10', either('sinks'), state),
        ('overflow inside a sink', either('overflow_in_sinks'), OVERFLOW + by_host),
        ('evaluation between sinks', of_steps('evaluation_between'), state),
        ('state in a checkpoint', of_steps('checkpoint'), f'{state}; unset MS_ENABLE_CKPT_D2H_ASYNC'),
        ('shorter last sink', of_steps('shorter_sink'), f'{state}; --iterations_per_loop may divide the steps'),
        ('resumption', of_steps('resumption'), f'{state}; src/training/resume.py'),
        ('weights for export', device.weights, 'a disk with some 200 MB free: --output DIR'),
    ]


def main():
    """The command line, for src/acceptance/programs.py: `--events` is a file descriptor that takes the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--device_target', default='auto')
    parser.add_argument('--device_id', type=int, default=0)
    parser.add_argument('--output')
    parser.add_argument('--figures')
    parser.add_argument('--events', type=int)
    parser.add_argument('--only', choices=('device', 'steps', 'speed'), help='the checks of this process')
    parser.add_argument('--jit_level', default='', help='other than the default, for the speed')
    parser.add_argument('--drop_overflow_update', default='branch', help='for the speed')
    args = parser.parse_args()
    tell, device = Teller(args.events), Device(args)
    if args.only == 'device':
        chosen = itertools.islice(checks(device), 1)
    else:
        device.start()
        chosen = speeds(device) if args.only == 'speed' else itertools.islice(checks(device), 1, None)
    sys.exit(0 if all(run(*check, tell) for check in chosen) else 1)


if __name__ == '__main__':
    main()
