"""Whole training runs: compilation, signals, the end of the process, all ranks stopped and resumed. Needs no MindSpore."""

import re
import shutil
import signal

import pytest

from tests.npu.programs import ROOT, SMALL, losses, text_of, train

# Of the whole network on an NPU: sinks of ten steps.
WHOLE = '--iterations_per_loop 10 --display_every 10 --max_train_steps 200 --save_checkpoint_steps 200'.split()
GRAPH = re.compile(r'^training graph (compiled|from the compile cache) and run once in ([\d.]+) s', re.M)


@pytest.fixture(scope='module')
def common(target, output, overflow, request) -> list:
    """Options of the training runs on one device, which begin without compiled graphs."""
    shutil.rmtree(output / 'graphs', ignore_errors=True)
    where = ['--device_target', target, '--device_id', request.config.getoption('device_id'), '--data_dir', output / 'data']
    length = [*SMALL, '--max_train_steps', '12'] if target == 'CPU' else WHOLE
    return [*where, *length, *overflow, '--log_dir', output / 'training', '--compile_cache', output / 'graphs']


@pytest.mark.remedy('docs/ascend.md, "When it goes wrong"')
def test_compilation(common, output, figures):
    """Cold: the time of the first sink, in which the training graph is compiled."""
    log = output / 'compiled.log'
    assert train([ROOT / 'train.py', *common, '--overwrite', 'true'], log) == 0, text_of(log)[-300:]
    how, seconds = GRAPH.search(text_of(log)).groups()
    assert how == 'compiled'
    figures(text=f'first sink after {seconds} s; the process ended after its last step', seconds=float(seconds))


@pytest.mark.remedy('--compile_cache off; src/training/stopping.py')
def test_compiled_graph_and_sigterm(common, output, figures):
    """Warm, and ended by SIGTERM after the first sink."""
    log = output / 'cached.log'
    status = train([ROOT / 'train.py', *common, '--overwrite', 'true'], log, 1, signal.SIGTERM)
    assert status == 143, text_of(log)[-300:]
    how, seconds = GRAPH.search(text_of(log)).groups()
    assert how == 'from the compile cache'
    assert len(list((output / 'training').glob('inceptionv4-*.ckpt'))) == 1
    figures(text=f'first sink after {seconds} s; SIGTERM: 143 and a checkpoint', seconds=float(seconds))


@pytest.mark.remedy('src/training/stopping.py')
def test_ctrl_c(common, output, figures):
    log = output / 'interrupted.log'
    assert train([ROOT / 'train.py', *common, '--resume', 'auto'], log, 1, signal.SIGINT) == 130, text_of(log)[-300:]
    figures(text='130 and a checkpoint')


@pytest.fixture(scope='module')
def ranks(target, output, overflow, request):
    """`ranks(log, *options, after_step=0)`: exit status of a small training on all ranks of the table."""
    table = request.config.getoption('table')
    if not table:
        pytest.skip('no RANK_TABLE was given')
    for name in ('results', 'uninterrupted'):
        shutil.rmtree(output / name, ignore_errors=True)
    steps = 10 if target == 'CPU' else 1000  # an NPU takes milliseconds for one
    common = ['--data_dir', output / 'data', *SMALL, *overflow, '--max_train_steps', steps, '--device_target', target]

    def run_ranks(log, *options, after_step=0):
        argv = ['-m', 'src.cluster.launch', table, ROOT / 'train.py', *common, *options]
        return train(argv, output / log, after_step, signal.SIGTERM if after_step else 0)

    return run_ranks


@pytest.mark.remedy('docs/reliability.md; stopped.log')
def test_all_ranks_stop(ranks, output, figures):
    """A SIGTERM ends all ranks after the same step with a checkpoint of it."""
    assert ranks('stopped.log', after_step=5) == 143, text_of(output / 'stopped.log')[-300:]
    step = int(re.search(r'stopped after step (\d+) of', text_of(output / 'stopped.log'))[1])
    saved = sorted((output / 'results').glob('*/0/ckpt/inceptionv4-*_*.ckpt'), key=step_of)
    assert step_of(saved[0]) < step_of(saved[-1]) == step
    shutil.copyfile(saved[0], output / 'before.ckpt')
    figures(text=f'SIGTERM: all ranks ended at step {step}, checkpoint written', step=step)


@pytest.mark.remedy('src/training/resume.py; resumed.log')
def test_all_ranks_resume(ranks, target, output, figures):
    """The stopped training, resumed, has the losses of one that resumes from an older checkpoint and is not stopped.

    Up to 12 steps after the stop are compared: differences in an NPU's rounding grow with every step.
    """
    assert ranks('resumed.log', '--resume', 'auto') == 0, text_of(output / 'resumed.log')[-300:]
    options = ['--resume', output / 'before.ckpt', '--log_dir', output / 'uninterrupted']
    assert ranks('uninterrupted.log', *options) == 0, text_of(output / 'uninterrupted.log')[-300:]
    before, after, whole = (losses(output / f'{name}.log') for name in ('stopped', 'resumed', 'uninterrupted'))
    stop = max(before)
    assert min(after) > stop
    differences = {n: abs({**before, **after}[n] / whole[n] - 1) for n in whole if min(before) <= n <= stop + 12}
    assert max(differences) > stop
    worst = max(differences.values())
    assert worst <= (2e-3 if target == 'CPU' else 1e-2)  # the log has three digits
    figures(text=f'as without the stop at {stop}: losses within {worst:.1e}', difference=worst)


def step_of(path):
    return int(path.stem.rpartition('_')[2])
