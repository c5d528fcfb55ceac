"""Checks of the training step on one device: overflow, sinks, evaluation and checkpoints between them, resumption.

A small network, which every device compiles in seconds, trains 20 steps without sinks. Every later check starts from the
same state and must get the same losses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from src.acceptance.report import Failed, Skipped, equal, within
from src.acceptance.training import (
    BATCH,
    SMALL,
    Recorder,
    change_difference,
    copies,
    make_step,
    recorded,
    train,
    training_data,
)
from src.data import pipeline
from src.data.records import open_records
from src.evaluation import evaluation
from src.evaluation.evaluation import STATISTICS
from src.options import load_settings
from src.runtime import Run
from src.training import resume
from src.training.step import on_host
from src.weights import checkpoint

STEPS, SINK = 20, 10
# Bounds for two graphs of the same training on one device: relative difference of the losses, and of the changes of weights
# and slots (`change_difference`).
LOSS_BOUND = {'float32': 1e-4, 'float16': 1e-2}
CHANGE_BOUND = {'float32': 1e-3, 'float16': 1e-1}
# Loss scales so large that the gradients, or the squares of their norm, overflow at three halvings, and soon no more.
HUGE_SCALE = {'float32': 2.0**62, 'float16': 2.0**26}


class Steps:
    """The checks, each a method that gives its figures, in the order in which they must be made.

    Args:
        run: the device, of `runtime.start`.
        data: directory of a data set.
        output: directory for a checkpoint.
    """

    def __init__(self, run: Run, data: Path, output: Path):
        self.run, self.output = run, output
        self.records, self.validation = (open_records(data, split) for split in ('train', 'validation'))
        self.precision = 'float32' if run.amp_level == 'O0' else 'float16'
        self.drop_overflow_update = 'branch'

    def either(self, name):
        """The check `name` with the branch on overflow and, if that fails, without it; says which one works."""
        warning = {}
        try:
            figures = getattr(self, name)()
        except Skipped:
            raise
        except Exception as error:
            if self.drop_overflow_update == 'select':
                raise
            self.drop_overflow_update, first = 'select', f'{error}'.strip().split('\n')[0][:150]
            figures = getattr(self, name)()
            warning = {'warning': f'train with --drop_overflow_update select; with a branch on overflow: {first}'}
        figures['text'] += f', drop_overflow_update {self.drop_overflow_update}'
        return {**figures, **warning, 'drop_overflow_update': self.drop_overflow_update}

    def _step(self, state=None):
        return make_step(self.run, SMALL, state, self.drop_overflow_update)

    def _data(self, start, stop):
        return training_data(self.records, SMALL, BATCH, start, stop)

    def _same_losses(self, recorder):
        """Largest relative difference from the losses without sinks, at the steps that `recorder` kept; Failed if it is
        over the bound."""
        worst = max(abs(outputs.loss / self.losses[step] - 1) for step, outputs in recorder.outputs.items())
        steps = ', '.join(map(str, recorder.outputs))
        return within(worst, LOSS_BOUND[self.precision], f'relative difference of the losses at steps {steps}')

    def overflow(self):
        """Three steps whose gradients overflow change nothing but counters; then the loss scale recovers."""
        self.step = self._step({'scale_sense': np.float32(HUGE_SCALE[self.precision])})
        before, runs = copies(self.step), []
        for batch in self._data(0, 3).create_tuple_iterator(num_epochs=1):
            runs.append(int(self.step.set_train()(*batch)[3].asnumpy()))
        equal(runs, [1, 2, 3], 'steps in a row without an update')
        after = copies(self.step)
        counted = 'global_step overflows overflow_run scale_sense last_overflow_iterator_step current_iterator_step'.split()
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
        """Finite losses in a training that goes back to the host after every step. They are what later checks compare."""
        count = STEPS if self.run.sink else 11
        losses = [
            float(self.step(*batch)[0].asnumpy()) for batch in self._data(0, count).create_tuple_iterator(num_epochs=1)
        ]
        self.losses, self.after = dict(enumerate(losses, 1)), copies(self.step)
        if not np.isfinite(losses).all():
            raise Failed('finite losses', losses)
        return {'text': f'{count} steps, loss {losses[0]:.3f} to {losses[-1]:.3f}', 'losses': losses}

    def sinks(self):
        """The same losses and the same changes of all state in sinks."""
        if not self.run.sink:
            raise Skipped(f'a {self.run.device_target} has no sinks')
        step = self._step(self.state)
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
        """Steps that overflow are skipped inside a sink, too, where the graph branches on the device."""
        if not self.run.sink:
            raise Skipped(f'a {self.run.device_target} has no sinks')
        step = self._step({**self.state, 'scale_sense': np.float32(HUGE_SCALE[self.precision])})
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
        """An evaluation between sinks does not change the training."""
        self.step = self._step(self.state)
        settings = load_settings([]).but(image_size=SMALL['image_size'], batch_size=BATCH, num_workers=1)
        data = pipeline.evaluation_dataset(self.validation, 1, settings, self.run)
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
        """A checkpoint after 2 sinks holds all state as it is then, not as it was copied to the device."""
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
        """A step made anew goes on from the checkpoint with the same losses."""
        parameters, _ = checkpoint.load(self.path)
        self.step = self._step()
        resume.load(self.step, resume.Saved(self.path, parameters, {}), int(parameters['global_step'].item()))
        worst = self._same_losses(train(self.run, self.step, self._data(8, 11), 1, 3, Recorder(8)))
        return {
            'text': f'steps 9 to 11 from the checkpoint, losses within {worst:.1e}',
            'loss': worst,
            'bound': LOSS_BOUND[self.precision],
        }
