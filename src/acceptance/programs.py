"""Checks made by starting the project's own programs: ranks, stop and resumption, export; needs no MindSpore."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from src.acceptance.report import Failed, Skipped, equal, within

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800  # seconds: a compilation takes minutes, ranks that wait for each other forever


@contextlib.contextmanager
def program(argv, log, cwd=None, **options):
    """A program of its own session with its output in `log`; none of it is left when the block ends."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    with open(log, 'wb') as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, argv)],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={'GLOG_v': '3', **os.environ, 'PYTHONPATH': path},
            start_new_session=True,
            **options,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # the launcher ends its ranks
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(90)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tail(log, lines=4):
    """The end of a log, in one line."""
    return ' | '.join(Path(log).read_text(errors='replace').split('\n')[-lines - 1 :]).strip(' |')[-400:]


def on_device(arguments, log, tell):
    """Start src.acceptance.device and `tell` its results as they come; True unless a check failed."""
    reader, writer = os.pipe()
    begun, failed = None, False
    with program(['-m', 'src.acceptance.device', *arguments, '--events', writer], log, pass_fds=[writer]) as process:
        os.close(writer)
        for text in _lines(reader):
            result = json.loads(text)
            begun = None if 'result' in result else result
            failed |= result.get('result') == 'FAILED'
            tell(result)
        os.close(reader)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        status = process.poll()
    if begun or status and not failed:
        ended = 'nothing for half an hour' if status is None else f'the process ended with status {status}'
        tell(
            {
                **(begun or {'name': 'device', 'remedy': ''}),
                'result': 'FAILED',
                'seconds': 0.0,
                'expected': 'a result',
                'found': f'{ended}: {tail(log)}',
            }
        )
        return False
    return not failed


def _lines(reader):
    """Lines from a pipe until it is closed, or nothing comes for PATIENCE seconds."""
    buffer = b''
    while select.select([reader], [], [], PATIENCE)[0] and (part := os.read(reader, 1 << 16)):
        *whole, buffer = (buffer + part).split(b'\n')
        yield from whole


class Ranks:
    """Checks with the launcher; `table`: file or number, `target`: Ascend or CPU."""

    def __init__(self, table, target, data, output):
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

    def together(self, tell):
        """`tell` what src/acceptance/ranks.py finds; True unless a check failed."""
        results, log = self.output / 'ranks.jsonl', self.output / 'ranks.log'
        results.unlink(missing_ok=True)
        options = ['--data_dir', self.data, '--results', results]
        with self._launch(ROOT / 'src/acceptance/ranks.py', options, 'ranks.log') as process:
            status = self._wait(process)
        found = [json.loads(text) for text in results.read_text().splitlines()] if results.exists() else []
        for result in found:
            tell(result)
        if status and not (found and found[-1].get('result') == 'FAILED'):
            last = found[-1] if found else {'name': 'ranks'}
            tell(
                {
                    'name': last['name'],
                    'result': 'FAILED',
                    'seconds': 0.0,
                    'expected': 'all ranks to end well',
                    'found': f'status {status}: {tail(log)}',
                    'remedy': f'{log}, and docs/ascend.md, "When it goes wrong"',
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
        """(exit status, {step: loss}) of train.py on all ranks; SIGTERM once the log has the step `stop_after`."""
        steps = 10 if self.target == 'CPU' else 1000  # an NPU takes milliseconds for one
        common = [
            '--data_dir',
            self.data,
            '--num_classes',
            10,
            '--block_counts',
            '1,1,1',
            '--image_size',
            75,
            '--batch_size',
            4,
            '--num_workers',
            1,
            '--display_every',
            1,
            '--iterations_per_loop',
            4,
            '--save_checkpoint_steps',
            4,
            '--keep_checkpoint_max',
            3,
            '--lr',
            0.002,
            '--lr_schedule',
            'constant',
            '--max_train_steps',
            steps,
        ]
        with self._launch(ROOT / 'train.py', [*map(str, common), *options], log) as process:
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

    def stopped(self):
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

    def resumed(self):
        """The stopped training goes on; one from an older checkpoint, which passes that step without a stop, must have the
        same losses. Within 12 steps of the stop, since what an NPU rounds differently grows with every step."""
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


def exported(file_format, target, output):
    if file_format == 'ONNX' and not find_spec('onnx'):
        raise Skipped('the package onnx is not installed (requirements-export.txt)')
    if file_format == 'AIR' and target != 'Ascend':
        raise Skipped('only an NPU writes it')
    path, log = output / f'inceptionv4.{file_format.lower()}', output / f'export-{file_format}.log'
    with program(
        [ROOT / 'export.py', '--ckpt_path', output / 'seeded.ckpt', '--file_format', file_format, '--file_name', path],
        log,
        cwd=output,
    ) as process:
        if status := process.wait(PATIENCE):
            raise Failed('exit status 0', f'{status}: {tail(log)}')
    found = json.loads(path.with_suffix('.json').read_text())['deviation']
    worst = max(found['random'], found['drawn'])
    return {
        'text': f'{path.stat().st_size / 1e6:.0f} MB, deviates by {worst:.1e} (bound {found["bound"]:g})',
        'deviation': worst,
        'bound': found['bound'],
    }


def converted(soc_version, output):
    """docs/deploy.md has the command."""
    path = output / 'inceptionv4.onnx'
    if not shutil.which('atc'):
        raise Skipped('no atc here')
    if not path.exists() or not soc_version:
        raise Skipped('no ONNX file was written' if soc_version else 'the name of the chip is not known')
    command = [
        'atc',
        '--framework=5',
        f'--model={path}',
        '--input_shape=input:8,3,299,299',
        '--input_format=NCHW',
        f'--output={output / "inceptionv4"}',
        f'--soc_version={soc_version}',
    ]
    done = subprocess.run(
        command, cwd=output, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE
    )
    (output / 'atc.log').write_text(done.stdout)
    if done.returncode or not path.with_suffix('.om').exists():
        raise Failed('a file inceptionv4.om', f'status {done.returncode}: {done.stdout.strip()[-300:]}')
    return {'text': f'inceptionv4.om for {soc_version}, {path.with_suffix(".om").stat().st_size / 1e6:.0f} MB'}
