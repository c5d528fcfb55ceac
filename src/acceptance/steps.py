"""Checks of the training step on one device: overflow, sinks, and what must not change between them.

A small network, which every device compiles in seconds, trains 20 steps without sinks; everything after that starts at the
same state and must come to the same losses.
"""

import time

import mindspore as ms
import numpy as np
from mindspore.train import Callback, Model

from src.acceptance.reference import NETWORKS
from src.acceptance.report import Failed, Skipped, equal, within
from src.config import load
from src.data import dataset
from src.data.records import open_records
from src.evaluation import evaluation
from src.evaluation.evaluation import STATISTICS
from src.inceptionv4 import InceptionV4, set_precision
from src.training import resume
from src.training.optimizer import make_optimizer
from src.training.step import NetworkWithLoss, TrainStep, on_host
from src.weights import checkpoint

SMALL = NETWORKS['small']
BATCH = 8
STEPS, SINK = 20, 10
# Two graphs of one training on one device: relative difference of losses; of the weights' and their slots' changes.
LOSS_BOUND = {'float32': 1e-4, 'float16': 1e-2}
CHANGE_BOUND = {'float32': 1e-3, 'float16': 1e-1}
# Scales with which gradients, or the squares of their norm, surely overflow three times, but not much oftener.
HUGE_SCALE = {'float32': 2.0**62, 'float16': 2.0**26}


def recorded(options):
    """The configuration that a checkpoint of a network of `options` records."""
    return {**load([]), **{name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}}


def make_step(run, options, state=None):
    """A `TrainStep` with dynamic loss scale and moving averages on a network of `options`, in the precision of `run`;
    `state` ({name: ndarray}): what its parameters are, of which some may be missing."""
    network = set_precision(InceptionV4(**options), run.amp_level)
    optimizer = make_optimizer(
        'rmsprop',
        network,
        np.full(100000, 0.002, np.float32),
        weight_decay=1e-5,
        momentum=0.9,
        on_cpu=run.device_target == 'CPU',
    )
    with_loss = NetworkWithLoss(network, 0.1, None, ms.float32 if run.amp_level == 'O0' else ms.float16)
    step = TrainStep(with_loss, optimizer, 'dynamic', ema_decay=0.9)
    if state:
        checkpoint.load_into(step, state, 'acceptance', [name for name in step.parameters_dict() if name not in state])
    return step


def training_data(records, options, batch_size, start, stop, rank=0, world=1, num_workers=1):
    return dataset.training_dataset(
        records,
        offset=1,
        image_size=options.get('image_size', 299),
        batch_size=batch_size,
        seed=1,
        keep_prob=0.8,
        start=start,
        stop=stop,
        rank=rank,
        world=world,
        num_workers=num_workers,
    )


class Recorder(Callback):
    """{step: Outputs} at the ends of sinks, or of steps where there are none, and when that was; `after` is called at
    step `at`, when that step's outputs are known."""

    def __init__(self, first=0, at=None, after=None):
        self.first, self.at, self.after = first, at, after
        self.outputs, self.times = {}, {}

    def on_train_step_end(self, run_context):
        cb_params = run_context.original_args()
        step = self.first + cb_params.cur_step_num
        self.outputs[step] = on_host(cb_params.net_outputs)
        self.times[step] = time.perf_counter()
        if step == self.at:
            self.after()


def train(run, step, data, count, length, recorder):
    """As train.py does it: `count` sinks of `length` steps, or all of `data` step by step on a device without sinks."""
    Model(step).train(
        count if run.sink else 1, data, [recorder], dataset_sink_mode=run.sink, sink_size=length if run.sink else -1
    )
    return recorder


def copies(step):
    return {name: value.copy() for name, value in checkpoint.values(step).items()}


def change_difference(before, expected, found):
    """How far the changes since `before` are apart, over all weights and slots, in parts of the changes' norm."""
    names = [name for name, value in before.items() if value.ndim and value.dtype == np.float32]
    away, moved = (
        sum(float(np.square(end[name] - start[name], dtype=np.float64).sum()) for name in names)
        for end, start in ((found, expected), (expected, before))
    )
    return (away / moved) ** 0.5 if moved else float('inf')


class Steps:
    """The checks, in the order in which they must be made; `data`: directory of records."""

    def __init__(self, run, data, output):
        self.run, self.output = run, output
        self.records, self.validation = (open_records(data, split) for split in ('train', 'validation'))
        self.precision = 'float32' if run.amp_level == 'O0' else 'float16'

    def _data(self, start, stop):
        return training_data(self.records, SMALL, BATCH, start, stop)

    def _same_losses(self, recorder):
        """Largest relative difference from the losses without sinks, at the steps that `recorder` knows."""
        worst = max(abs(outputs.loss / self.losses[step] - 1) for step, outputs in recorder.outputs.items())
        steps = ', '.join(map(str, recorder.outputs))
        return within(worst, LOSS_BOUND[self.precision], f'relative difference of the losses at steps {steps}')

    def overflow(self):
        """Three steps whose gradients overflow leave everything but the counters as it was; then the scale recovers."""
        self.step = make_step(self.run, SMALL, {'scale_sense': np.float32(HUGE_SCALE[self.precision])})
        before, runs = copies(self.step), []
        for batch in self._data(0, 3).create_tuple_iterator(num_epochs=1):
            runs.append(int(self.step.set_train()(*batch)[3].asnumpy()))
        equal(runs, [1, 2, 3], 'steps in a row without an update')
        after = copies(self.step)
        counted = {
            'global_step',
            'overflows',
            'overflow_run',
            'scale_sense',
            'last_overflow_iterator_step',
            'current_iterator_step',
        }
        changed = [
            name
            for name, value in before.items()
            if (value != after[name]).any() and name not in counted and not name.endswith(STATISTICS)
        ]  # those of the forward pass move
        equal(changed, [], 'parameters that changed:')
        equal(int(after['global_step'].item()), 3, 'global_step')
        equal(float(after['scale_sense']) * 8, HUGE_SCALE[self.precision], '8 times the loss scale')
        for batch in self._data(3, 43).create_tuple_iterator(num_epochs=1):
            outputs = on_host(self.step(*batch))
            if not outputs.overflow_run:
                break
        equal(outputs.overflow_run, 0, 'steps in a row without an update after the scale was halved 40 times:')
        self.state = copies(self.step)
        weight = 'conv2d_1a_3x3.conv.weight'
        if not (np.isfinite(self.state[weight]).all() and (self.state[weight] != before[weight]).any()):
            raise Failed(f'{weight} changed by the first step without overflow', 'as it was, or not finite')
        told = 'a flag of the device' if self.step.saturates else 'gradients that are not finite'
        return {
            'text': f'3 steps skipped, told by {told}; recovered after {outputs.overflows:.0f}, '
            f'scale {outputs.loss_scale:g}',
            'skipped': outputs.overflows,
            'loss_scale': outputs.loss_scale,
            'told_by': told,
        }

    def without_sinks(self):
        count = STEPS if self.run.sink else 11
        losses = [
            float(self.step(*batch)[0].asnumpy()) for batch in self._data(0, count).create_tuple_iterator(num_epochs=1)
        ]
        self.losses, self.after = dict(enumerate(losses, 1)), copies(self.step)
        if not np.isfinite(losses).all():
            raise Failed('finite losses', losses)
        return {'text': f'{count} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}', 'losses': losses}

    def sinks(self):
        if not self.run.sink:
            raise Skipped(f'a {self.run.device_target} has no sinks')
        step = make_step(self.run, SMALL, self.state)
        recorder = train(self.run, step, self._data(0, STEPS), STEPS // SINK, SINK, Recorder())
        worst = self._same_losses(recorder)
        change = within(
            change_difference(self.state, self.after, copies(step)),
            CHANGE_BOUND[self.precision],
            'difference of the changes of weights and slots, in parts of them,',
        )
        self.looped = step
        return {
            'text': f'losses within {worst:.1e}, changes of all state within {change:.1e}',
            'loss': worst,
            'change': change,
            'bound': [LOSS_BOUND[self.precision], CHANGE_BOUND[self.precision]],
        }

    def overflow_in_sinks(self):
        """The graph with the branch on overflow was compiled into the loop; now the branch is taken there."""
        if not self.run.sink:
            raise Skipped(f'a {self.run.device_target} has no sinks')
        step = make_step(self.run, SMALL, {**self.state, 'scale_sense': np.float32(HUGE_SCALE[self.precision])})
        recorder = train(self.run, step, self._data(0, 3), 1, 3, Recorder())
        equal(recorder.outputs[3].overflow_run, 3, 'steps in a row without an update')
        after = copies(step)
        changed = [
            parameter.name
            for parameter in step.optimizer.parameters
            if (after[parameter.name] != self.state[parameter.name]).any()
        ]
        equal(changed, [], 'weights that changed:')
        return {'text': '3 of 3 steps skipped inside one sink'}

    def evaluation_between(self):
        self.step = make_step(self.run, SMALL, self.state)
        data = dataset.evaluation_dataset(self.validation, offset=1, image_size=SMALL['image_size'], batch_size=BATCH)
        evaluation_step, results = evaluation.make_step(SMALL, self.run.amp_level), []

        def evaluate():
            evaluation.take_weights(evaluation_step.network, self.step)
            results.append(evaluation.evaluate(evaluation_step, data, len(self.validation)))

        worst = self._same_losses(train(self.run, self.step, self._data(0, 8), 2, 4, Recorder(at=4, after=evaluate)))
        equal(len(results), 1, 'number of evaluations')
        return {
            'text': f'{results[0].images} images after step 4, losses to step 8 within {worst:.1e}',
            'loss': worst,
            'bound': LOSS_BOUND[self.precision],
        }

    def checkpoint(self):
        """After 2 sinks a checkpoint holds all state as it is then, not as it was copied to the device."""
        self.path = checkpoint.save(self.output, self.step, step=8, epoch=0, config=recorded(SMALL))
        saved, _ = checkpoint.load(self.path)
        weights = [parameter.name for parameter in self.step.optimizer.parameters]
        names = [
            *weights,
            *(checkpoint.AVERAGE + name for name in weights),
            *(name for name in saved if name.startswith(resume.OPTIMIZER_STATE) or name.endswith(STATISTICS)),
        ]
        stale = [name for name in names if np.array_equal(saved[name], self.state[name])]
        equal(stale, [], 'parameters that 8 steps did not change:')
        equal(saved['global_step'].item(), self.state['global_step'].item() + 8, 'global_step')
        return {'text': f'{len(names)} weights, slots, averages and statistics changed', 'parameters': len(names)}

    def shorter_sink(self):
        """The same step with a second data set and sinks of another length, for which it is compiled again."""
        worst = self._same_losses(train(self.run, self.step, self._data(8, 11), 1, 3, Recorder(8)))
        done = int(self.step.optimizer.global_step.asnumpy().item() - self.state['global_step'].item())
        equal(done, 11, 'steps done')
        return {'text': f'8 steps and 3, losses within {worst:.1e}', 'loss': worst, 'bound': LOSS_BOUND[self.precision]}

    def resumption(self):
        parameters, _ = checkpoint.load(self.path)
        self.step = make_step(self.run, SMALL)
        resume.load(self.step, self.path, parameters, int(parameters['global_step'].item()))
        worst = self._same_losses(train(self.run, self.step, self._data(8, 11), 1, 3, Recorder(8)))
        return {
            'text': f'steps 9 to 11 from the checkpoint, losses within {worst:.1e}',
            'loss': worst,
            'bound': LOSS_BOUND[self.precision],
        }

    def speed(self):
        """Images a second, and the part of the time in which the device waits for them: the same steps once more with a
        batch that is there already tell it."""
        options, batch_size, length = ({}, 128, SINK) if self.run.sink else (SMALL, BATCH, 2)
        step = make_step(self.run, options) if self.run.sink else self.step
        real, fixed = 5 * length, 3 * length
        workers = dataset.workers(0)
        decoded = training_data(self.records, options, batch_size, 0, real, num_workers=workers)
        return speed(self.run, step, decoded, fixed, length, batch_size, workers)


def speed(run, step, decoded, fixed, length, batch_size, workers):
    import mindspore.dataset as ds

    batch = next(decoded.create_tuple_iterator(num_epochs=1, output_numpy=True))
    names = ['image', 'draws', 'mask', 'label']
    ready = ds.NumpySlicesDataset(tuple(value[None] for value in batch), names, shuffle=False).repeat(fixed)
    times = train(run, step, decoded.concat(ready), 5 + fixed // length, length, Recorder()).times
    # The first sink contains the compilation, the second what was decoded meanwhile, the sixth is of both kinds.
    with_data, alone = times[5 * length] - times[2 * length], times[8 * length] - times[6 * length]
    images = 3 * length * batch_size / with_data
    wait = max(0.0, 1 - alone / 2 * 3 / with_data)
    text = f'{images:.1f} images/s at batch {batch_size}, {100 * wait:.0f} % of the time waits for data ({workers} decoding)'
    figures = {'text': text, 'images_per_second': images, 'data_wait': wait, 'batch_size': batch_size, 'workers': workers}
    if wait > 0.1:
        figures['warning'] = (
            'more than 10 % of the time waits for data: more cores or --num_workers, and libturbojpeg 3 '
            'if Pillow decodes (docs/scaling.md)'
        )
    return figures
