"""The checks that all ranks make together. The launcher runs this file on every rank; rank 0 writes the results."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

import numpy as np
from mindspore import nn

from src import collective, runtime
from src.acceptance.launches import CAUSES
from src.acceptance.report import Failed, Teller, equal, run
from src.acceptance.speed import SIZES, measure
from src.acceptance.training import SMALL, Recorder, make_step, train, training_data
from src.data.records import open_records
from src.evaluation import evaluation
from src.inceptionv4 import InceptionV4
from src.options import load_settings
from src.weights import checkpoint

SINK, BATCH = 10, 4
COLLECTIVE = "src/collective.py; CANN's logs are in ~/ascend/log; python -m src.cluster.rank_table check TABLE"


def agree(fine: bool, expected: str, found: str):
    """Failed on all ranks unless `fine` is true on all of them: otherwise some would wait for a rank that has ended."""
    if collective.any_rank(not fine):
        raise Failed(f'{expected} on all ranks', found)


def flat(cell: nn.Cell, wanted: Callable[[str], bool]) -> np.ndarray:
    """The values of all parameters whose name is `wanted`, in one axis."""
    return np.concatenate([value.ravel() for name, value in checkpoint.values(cell).items() if wanted(name)])


class Ranks:
    """The checks, each a method that gives its figures, in the order in which they must be made."""

    def __init__(self, args):
        self.args = args

    def start(self):
        """MindSpore connects the ranks."""
        # Every rank has another seed, so that only the values that rank 0 sends can make them equal.
        self.run = runtime.start(
            load_settings([]).but(
                device_target=self.args.device_target,
                rank_size=self.args.rank_size,
                seed=1 + int(os.environ.get('RANK_ID', '0')),
            )
        )
        known = self.run.rank, self.run.world
        equal(known, (int(os.environ['RANK_ID']), self.args.rank_size), 'rank and number of ranks')
        return {'text': runtime.describe(self.run, self.args.device_target), 'ranks': self.run.world}

    def stopping(self):
        """All ranks know that one of them is asked to stop."""
        last = self.run.rank == self.run.world - 1
        found = collective.any_rank(False), collective.any_rank(last)
        agree(found == (False, True), 'a request to stop that one rank has', f'none: {found[0]}, one: {found[1]}')
        return {'text': f'that of rank {self.run.world - 1} is known to all'}

    def sharing(self):
        """Parameters become those of rank 0: the seeds differ, and the last rank has moving means of 7."""
        self.step = make_step(self.run, SMALL)
        if self.run.rank == self.run.world - 1:
            values = checkpoint.values(self.step)
            sevens = {name: np.full_like(value, 7) for name, value in values.items() if name.endswith('.moving_mean')}
            checkpoint.load_into(self.step, sevens, 'sevens', [name for name in values if name not in sevens])
        before = flat(self.step, lambda name: not name.startswith('ema.'))
        if not collective.any_rank((before != collective.from_first(before)).any()):
            raise Failed('ranks that differ before', 'equal ones')
        collective.share(self.step.get_parameters())
        values = flat(self.step, lambda name: True).astype(np.float32)
        agree((values == collective.from_first(values)).all(), 'the values of rank 0', 'others')
        agree(not (flat(self.step, lambda name: name.endswith('.moving_mean')) == 7).any(), 'no moving mean of 7', 'some')
        return {'text': f'{len(values) / 1e6:.1f} million values of rank 0'}

    def training(self):
        """After some steps the weights are the same on all ranks, and the batch norm statistics are not."""
        steps = 40 if self.run.sink else 10  # a CPU takes a second for one
        data = training_data(
            open_records(self.args.data_dir, 'train'), SMALL, BATCH, 0, steps, self.run.rank, self.run.world
        )
        outputs = train(self.run, self.step, data, steps // SINK, SINK, Recorder()).outputs
        weights = {parameter.name for parameter in self.step.optimizer.parameters}
        values = flat(self.step, lambda name: name in weights)
        difference = np.abs(values - collective.from_first(values)).max()
        agree(difference == 0, f'the weights of rank 0 after {steps} steps', f'here a difference of {difference:.1e}')
        statistics = flat(self.step, lambda name: name.endswith(evaluation.STATISTICS))
        if not collective.any_rank((statistics != collective.from_first(statistics)).any()):
            raise Failed("batch norm statistics of each rank's own images", 'the same on all')
        return {'text': f'{steps} steps, loss {outputs[steps].loss:.3f}, all ranks hold the same weights'}

    def statistics(self):
        """What is evaluated is the same on all ranks."""
        network = InceptionV4(**SMALL)
        evaluation.take_weights(network, self.step, self.run.world)
        values = flat(network, lambda name: True)
        agree((values == collective.from_first(values)).all(), 'the network that rank 0 evaluates', 'another')
        return {'text': "every rank evaluates rank 0's network"}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--device_target')
    parser.add_argument('--rank_size', type=int)
    parser.add_argument('--data_dir')
    parser.add_argument('--results')
    parser.add_argument('--first', action='store_true', help='only whether two ranks start and know each other')
    args = parser.parse_args()
    ranks = Ranks(args)
    tell = Teller(args.results) if os.environ.get('RANK_ID', '0') == '0' else lambda result: None
    name = 'two ranks' if args.first else 'ranks'
    checks = [
        (name, ranks.start, CAUSES),
        ('all-reduce' if args.first else 'stop agreed on', ranks.stopping, COLLECTIVE),
        ("rank 0's values", ranks.sharing, COLLECTIVE),
        ('weights of all ranks', ranks.training, COLLECTIVE),
        ('network evaluated', ranks.statistics, COLLECTIVE),
        *(
            (f'speed of all, batch {size}', lambda size=size: measure(ranks.run, args.data_dir, size), COLLECTIVE)
            for size in (SIZES['Ascend'] if args.device_target == 'Ascend' else ())
        ),
    ]
    sys.exit(0 if all(run(*check, tell) for check in checks[: 2 if args.first else None]) else 1)


if __name__ == '__main__':
    main()
