"""Whole training runs: compilation, signals, the end of the process, all ranks stopped and resumed. Needs no MindSpore."""

import re
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from tests.npu.conftest import PATIENCE
from tests.processes import ROOT, Program, wait

ENDS = 30  # seconds for a process to be gone after its last step
# A small network, a checkpoint and a log line after few steps.
SMALL = (
    '--num_classes 10 --block_counts 1,1,1 --image_size 75 --batch_size 4 --num_workers 1 --display_every 1 '
    '--iterations_per_loop 4 --save_checkpoint_steps 4 --keep_checkpoint_max 3 --lr 0.002 --lr_schedule constant'
).split()
# Of the whole network on an NPU: sinks of ten steps.
WHOLE = '--iterations_per_loop 10 --display_every 10 --max_train_steps 200 --save_checkpoint_steps 200'.split()
GRAPH = r'^training graph (compiled|from the compile cache) and run once in ([\d.]+) s'


def losses(text):
    """{step: loss} of the lines of a log."""
    return {int(step): float(loss) for step, loss in re.findall(r'^step: (\d+) .*? loss: (\S+)', text, re.M)}


def train(output, log, status, *command, after_step=0, number=signal.SIGTERM):
    """What a training printed, which gets the signal `number` after `after_step` steps, if any, and must end with one of
    `status`, ENDS seconds after its last step at most."""
    with Program(output, *command, output=log) as run:
        if after_step:
            run.reach(lambda: max(losses(run.text), default=0) >= after_step, PATIENCE)
            about = Path(f'/proc/{run.process.pid}/status').read_text()
            blocked = int(re.search(r'^SigBlk:\s+(\w+)', about, re.M)[1], 16) >> number - 1 & 1
            assert not blocked, f'{number.name} is blocked in the main thread'
            run.process.send_signal(number)
        run.reach('^(trained|.*stopped after step) ', PATIENCE)
        assert wait(lambda: run.process.poll() is not None, ENDS), (
            f'the process stays {ENDS} s after its last step; its children: '
            f'{[" ".join(one.cmdline())[:99] for one in psutil.Process(run.process.pid).children()]}'
        )
        assert run.process.returncode in status, run.text[-300:]
    return run.text


@pytest.fixture(scope='module')
def common(target, output, option):
    """The command of the training runs on one device, which begin without compiled graphs."""
    shutil.rmtree(output / 'graphs', ignore_errors=True)
    where = ['--device_target', target, '--device_id', option.device_id, '--data_dir', output / 'data']
    length = [*SMALL, '--max_train_steps', '12'] if target == 'CPU' else WHOLE
    where += ['--log_dir', output / 'training', '--compile_cache', output / 'graphs']
    return [ROOT / 'train.py', *where, '--drop_overflow_update', option.drop_overflow_update, *length]


@pytest.mark.remedy('docs/ascend.md, "When it goes wrong"')
def test_compilation(common, output, figures):
    """Cold: the time of the first sink, in which the training graph is compiled."""
    text = train(output, 'compiled.log', [0], *common, '--overwrite', 'true')
    [(how, seconds)] = re.findall(GRAPH, text, re.M)
    assert how == 'compiled'
    figures(text=f'first sink after {seconds} s; the process ended after its last step', seconds=float(seconds))


@pytest.mark.remedy('--compile_cache off; src/training/stopping.py')
def test_compiled_graph_and_sigterm(common, output, figures):
    """Warm, and ended by SIGTERM after the first sink."""
    text = train(output, 'cached.log', [143], *common, '--overwrite', 'true', after_step=1)
    [(how, seconds)] = re.findall(GRAPH, text, re.M)
    assert how == 'from the compile cache'
    assert len(list((output / 'training').glob('inceptionv4-*.ckpt'))) == 1
    figures(text=f'first sink after {seconds} s; SIGTERM: 143 and a checkpoint', seconds=float(seconds))


@pytest.mark.remedy('src/training/stopping.py')
def test_ctrl_c(common, output, figures):
    """Within a graph MindSpore makes a SIGTERM of it."""
    train(output, 'interrupted.log', [130, 143], *common, '--resume', 'auto', after_step=1, number=signal.SIGINT)
    figures(text='ended, and a checkpoint')


@pytest.fixture(scope='module')
def ranks(target, output, option):
    """The command of a small training on all ranks of the table."""
    if not option.table:
        pytest.skip('no RANK_TABLE was given')
    for name in ('results', 'uninterrupted'):
        shutil.rmtree(output / name, ignore_errors=True)
    steps = 10 if target == 'CPU' else 1000  # an NPU takes milliseconds for one
    options = ['--data_dir', output / 'data', *SMALL, '--max_train_steps', steps]
    options += ['--drop_overflow_update', option.drop_overflow_update]
    return ['-m', 'src.cluster.launch', option.table, ROOT / 'train.py', *options, '--device_target', target]


@pytest.mark.remedy('docs/reliability.md; stopped.log')
def test_all_ranks_stop(ranks, output, figures):
    """A SIGTERM ends all ranks after the same step with a checkpoint of it."""
    text = train(output, 'stopped.log', [143], *ranks, after_step=5)
    step = int(re.search(r'stopped after step (\d+) of', text)[1])
    saved = sorted((output / 'results').glob('*/0/ckpt/inceptionv4-*_*.ckpt'), key=step_of)
    assert step_of(saved[0]) < step_of(saved[-1]) == step
    shutil.copyfile(saved[0], output / 'before.ckpt')
    figures(text=f'SIGTERM: all ranks ended at step {step}, checkpoint written', step=step)


@pytest.mark.remedy('src/training/resume.py; resumed.log')
def test_all_ranks_resume(ranks, target, output, figures):
    """The stopped training, resumed, has the losses of one that resumes from an older checkpoint and is not stopped.

    Up to 12 steps after the stop are compared: differences in an NPU's rounding grow with every step.
    """
    before = losses((output / 'stopped.log').read_text())
    after = losses(train(output, 'resumed.log', [0], *ranks, '--resume', 'auto'))
    older = ['--resume', output / 'before.ckpt', '--log_dir', output / 'uninterrupted']
    whole, stop = losses(train(output, 'uninterrupted.log', [0], *ranks, *older)), max(before)
    assert min(after) > stop
    worst = max(abs({**before, **after}[n] / whole[n] - 1) for n in whole if min(before) <= n <= stop + 12)
    assert worst <= (2e-3 if target == 'CPU' else 1e-2)  # the log has three digits
    figures(text=f'as without the stop at {stop}: losses within {worst:.1e}', difference=worst)


def step_of(path):
    return int(path.stem.rpartition('_')[2])
