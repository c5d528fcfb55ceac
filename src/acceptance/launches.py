"""The checks that use the launcher: what all ranks do together, and a training that is stopped and resumed; needs no
MindSpore."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from src.acceptance.programs import PATIENCE, ROOT, program, tail
from src.acceptance.report import Failed, equal, within

# Of the training that is stopped and resumed: a small network, a checkpoint and a log line after few steps.
OPTIONS = (
    '--num_classes 10 --block_counts 1,1,1 --image_size 75 --batch_size 4 --num_workers 1 --display_every 1 '
    '--iterations_per_loop 4 --save_checkpoint_steps 4 --keep_checkpoint_max 3 --lr 0.002 --lr_schedule constant'
)
# Why ranks do not start. The first end in `init()`, the others when they connect.
CAUSES = (
    'unset RANK_TABLE_FILE, RANK_TABLE and MINDSPORE_HCCL_CONFIG_PATH, with which MindSpore 2.8 refuses to start; python -m '
    'src.environment says what else is missing; hccn_tool -i 0 -ip -g shows the address that HCCL needs of each NPU; '
    'docs/ascend.md, "When it goes wrong"'
)


class Launches:
    """The checks, in the order in which they are made.

    Args:
        table: file of a rank table, or a number of ranks.
        target: "Ascend" or "CPU".
        data: directory of the data set.
        output: directory of logs and results.
    """

    def __init__(self, table: str, target: str, data: Path, output: Path):
        self.table, self.target, self.data = table, target, data
        self.output = Path(output)
        for name in ('results', 'uninterrupted'):
            shutil.rmtree(self.output / name, ignore_errors=True)  # of an earlier check

    def _launch(self, script, options, log):
        return program(
            ['-m', 'src.cluster.launch', self.table, script, *options, '--device_target', self.target],
            self.output / log,
            cwd=self.output,
        )

    def together(self, tell: Callable[[dict], None], *options: str, name: str = 'ranks') -> bool:
        """Run src/acceptance/ranks.py on all ranks and `tell` its results; True unless a check failed."""
        results, log = self.output / f'{name}.jsonl', self.output / f'{name}.log'
        results.unlink(missing_ok=True)
        options = ['--data_dir', self.data, '--results', results, *options]
        with self._launch(ROOT / 'src/acceptance/ranks.py', options, log.name) as process:
            status = self._wait(process)
        found = [json.loads(text) for text in results.read_text().splitlines()] if results.exists() else []
        for result in found:
            tell(result)
        if status and not (found and found[-1].get('result') == 'FAILED'):
            last = found[-1] if found else {'name': name}
            tell(
                {
                    'name': last['name'],
                    'result': 'FAILED',
                    'seconds': 0.0,
                    'expected': 'all ranks to end well',
                    'found': f'status {status}: {tail(log)}',
                    'remedy': f'{log}; {CAUSES}',
                }
            )
        return not status

    @staticmethod
    def _wait(process):
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed('an end', f'none for {PATIENCE} s') from None

    def _train(self, log, *options, stop_after=None):
        """(exit status, {step: loss}) of train.py on all ranks, with SIGTERM once its log has the step `stop_after`."""
        steps = 10 if self.target == 'CPU' else 1000  # an NPU takes milliseconds for one
        common = ['--data_dir', str(self.data), *OPTIONS.split(), '--max_train_steps', str(steps)]
        with self._launch(ROOT / 'train.py', [*common, *options], log) as process:
            while stop_after is not None and process.poll() is None:
                if max(self._losses(log), default=0) >= stop_after:
                    process.send_signal(signal.SIGTERM)
                    break
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
            return self._wait(process), self._losses(log)

    def _losses(self, log):
        text = (self.output / log).read_text(errors='replace')
        return {int(step): float(loss) for step, loss in re.findall(r'^step: (\d+) .*? loss: (\S+)', text, re.MULTILINE)}

    def stopped(self) -> dict:
        """A SIGTERM ends all ranks after the same step with a checkpoint of it. Gives the figures of the check."""
        status, self.losses = self._train('stopped.log', stop_after=5)
        equal(status, 143, f'exit status ({self.output}/stopped.log)')
        text = (self.output / 'stopped.log').read_text(errors='replace')
        self.step = int(re.search(r'stopped after step (\d+) of', text)[1])
        self.checkpoints = sorted((self.output / 'results').glob('*/0/ckpt/inceptionv4-*_*.ckpt'), key=_step)
        equal(_step(self.checkpoints[-1]), self.step, 'newest checkpoint at step')
        if _step(self.checkpoints[0]) >= self.step:
            raise Failed('an older checkpoint beside the newest', 'none')
        self.oldest = self.output / 'before.ckpt'
        shutil.copyfile(self.checkpoints[0], self.oldest)
        return {'text': f'SIGTERM: all ranks ended at step {self.step}, checkpoint written', 'step': self.step}

    def resumed(self) -> dict:
        """The stopped training, resumed, has the same losses as one that is resumed from an older checkpoint and is not
        stopped at that step. Gives the figures of the check.

        Up to 12 steps after the stop are compared: differences in an NPU's rounding grow with every step.
        """
        status, after = self._train('resumed.log', '--resume', 'auto')
        equal(status, 0, f'exit status ({self.output}/resumed.log)')
        status, whole = self._train(
            'uninterrupted.log', '--resume', str(self.oldest), '--log_dir', str(self.output / 'uninterrupted')
        )
        equal(status, 0, f'exit status ({self.output}/uninterrupted.log)')
        losses = {**self.losses, **after}
        steps = [step for step in whole if step in losses and step <= self.step + 12]
        if min(after) <= self.step or not any(step > self.step for step in steps):
            raise Failed(f'steps from {self.step + 1}', f'from {min(after)}')
        bound = 2e-3 if self.target == 'CPU' else 1e-2  # the log has three digits
        worst = within(
            max(abs(losses[step] / whole[step] - 1) for step in steps),
            bound,
            f'relative difference of the losses at steps {min(steps)} to {max(steps)}',
        )
        return {
            'text': f'steps {min(steps)} to {max(steps)} as without the stop at {self.step}: losses within {worst:.1e}',
            'difference': worst,
            'bound': bound,
            'steps': steps,
        }


def _step(path):
    return int(path.stem.rpartition('_')[2])
