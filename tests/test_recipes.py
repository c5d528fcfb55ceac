"""benchmarks/recipes.py: what it reads from a training's log, what it counts, and how it scales a recipe."""

from pathlib import Path

import pytest

from benchmarks import recipes
from src.training.stages import make_stages

LOG = """\
2934 training images, labels from 1, 5 classes (those with names), 90 steps of 32 images x 1 an epoch; 180 steps
time to the first step, compilation included: 30.0 s
     step   epoch    top1    top5     loss  checkpoint_time(UTC)
timed: 89 steps, 178.000 s, 89.000 CPU s
       90     1.0   30.50  100.00   1.5000  2026-01-01 00:00:00
time to the first step, compilation included: 30.0 s
     step   epoch    top1    top5     loss  checkpoint_time(UTC)
timed: 178 steps, 534.000 s, 178.000 CPU s
      180     2.0   45.25       -   1.2500  2026-01-01 00:05:00
"""


def test_log_of_a_training():
    points, complete = recipes.read_log(LOG, (75, 96), [1, 1, 1])
    assert complete
    small, full = (recipes.training_flop(size, [1, 1, 1]) / 1e12 for size in (75, 96))
    # Two steps compiled and were not timed: their time is that of the others.
    assert points[0] == (90, 1.0, 2880, pytest.approx(2880 * small), 180.0, 90.0, 30.5, 1.5)
    assert points[1] == (180, 2.0, 5760, pytest.approx(2880 * (small + full)), 540.0, 180.0, 45.25, 1.25)
    assert not recipes.read_log(LOG.replace('180 steps', '270 steps'), (75,), [1, 1, 1])[1]
    assert recipes.read_log('', (75,), [1, 1, 1]) == ([], False)


def test_computing():
    # InceptionV4 at 299 pixels: 12.3 G multiplications (timm's benchmark tables), three times that for a training step.
    assert recipes.training_flop(299, (4, 7, 3)) == pytest.approx(3 * 2 * 12.28e9, rel=0.005)
    # One more block C on a grid of 1 x 1, by hand from figure 6: channels in x channels out x kernel.
    block = 1536 * 256 * 2 + 2 * 384 * 256 * 3 + 2 * 1536 * 384 + 384 * 448 * 3 + 448 * 512 * 3 + 2 * 512 * 256 * 3
    assert recipes.training_flop(75, (1, 1, 2)) - recipes.training_flop(75, (1, 1, 1)) == 6 * block


def test_images_of_stages():
    stages = make_stages((75, 96), 10)
    one = [recipes.computed_images(step, stages, 4, (1, 1, 1)) for step in (5, 6)]
    assert one[0] == (20, pytest.approx(20 * recipes.training_flop(75, (1, 1, 1)) / 1e12))
    assert one[1][1] - one[0][1] == pytest.approx(4 * recipes.training_flop(96, (1, 1, 1)) / 1e12)


def test_scaled_recipe(tmp_path):
    path = tmp_path / 'fast.yaml'
    path.write_text('max_epochs: 60\nT_max: 60\nwarmup_epochs: 5\nimage_size: 299\nlr: 0.1\n')
    options = recipes.scaled(path, 10, 100, 112, {'lr': '0.02'})
    assert (options['max_epochs'], options['T_max'], options['warmup_epochs']) == (6, 6, '0.5')
    assert (options['image_size'], options['lr'], options['config_path']) == (112, '0.02', Path(path))


def test_first_at_and_middle():
    points = recipes.read_log(LOG, (75, 96), [1, 1, 1])[0]
    assert recipes.first_at(points, 30.5) is points[0] and recipes.first_at(points, 40) is points[1]
    assert recipes.first_at(points, 50) is None
    assert recipes.middle([3, 1, 2], 1) == '2.0 (1.0 to 3.0)'
    assert recipes.middle([3, None, 2]) == '3 (2 to never)'
    assert recipes.middle([None, None, 2]) == 'never (2 to never)'


def test_table_and_plot(tmp_path):
    points = recipes.read_log(LOG, (75, 96), [1, 1, 1])[0]
    trainings = {'original': [points, points, points], 'fast': [points[:1], points, points]}
    lines = list(recipes.table(trainings, 45))
    assert lines[2].startswith('| original | 180 (180 to 180) | 540 (540 to 540) | ')
    assert lines[3].startswith('| fast | 180 (180 to never) | ') and '| 45.2 (30.5 to 45.2) |' in lines[3]
    recipes.write_csv(trainings, ['1', '2', '3'], tmp_path / 'all.csv')
    assert (tmp_path / 'all.csv').read_text().splitlines()[1].startswith('original,1,90,1,2880,')
    recipes.plot(trainings, 45, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')


def test_complete_training_is_not_repeated(tmp_path, monkeypatch):
    started = []

    def run(command, **_):
        started.append(command)
        (tmp_path / 'inception_v4.log').write_text(LOG)
        return recipes.subprocess.CompletedProcess(command, 0, '', '')

    monkeypatch.setattr(recipes.subprocess, 'run', run)
    cores = recipes.queue.Queue()
    cores.put([0, 1])
    options = {'config_path': recipes.ROOT / 'recipes/original.yaml', 'block_counts': '1,1,1', 'seed': '1'}
    first = recipes.train(tmp_path, options, cores)
    assert started[0][:3] == ['taskset', '-c', '0,1'] and '--overwrite=true' in started[0]
    assert recipes.train(tmp_path, options, cores) == first and len(started) == 1
    recipes.train(tmp_path, {**options, 'seed': '2'}, cores)
    assert len(started) == 2
