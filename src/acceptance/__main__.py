"""Check one after another what the project needs of this machine, up to the first check that fails.

    python -m src.acceptance [RANK_TABLE] [--device_target auto|Ascend|CPU] [--device_id N] [--output DIR]

RANK_TABLE: file of one server, or a number of ranks; without it two ranks start, and all else is checked on one device. On a
CPU it is a rehearsal with a small network. Exit status: 0, 1 if a check failed, 2 for unusable arguments.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
from functools import partial
from pathlib import Path

from src import environment, files
from src.acceptance import exports, programs
from src.acceptance.launches import Launches
from src.acceptance.report import Failed, line, run, warning
from src.acceptance.trainings import Trainings
from src.cluster import rank_table
from src.data import jpeg
from src.errors import InputError, Parser, entry_point


def check_environment(target: str) -> dict:
    """CANN, Python and what else is installed belong together. Gives the figures of the check."""
    found, cores = environment.look(), len(os.sched_getaffinity(0))
    if target != 'CPU' and found.npus and (problems := environment.problems(found)):
        raise Failed(
            'a CANN that works with this Python', '; '.join(problems), 'do what the line above says, then start again'
        )
    decoder = 'libturbojpeg' if jpeg.library() else 'Pillow'
    cann, driver = (
        f'{name} {version}' if version else f'no {name}'
        for name, version in (('CANN', found.version), ('driver', found.driver))
    )
    text = f'{len(found.npus)} NPUs, {cann}, {driver}, Python {platform.python_version()}, {cores} cores, {decoder}'
    figures = {
        'text': text,
        'npus': len(found.npus),
        'cann': found.version,
        'driver': found.driver,
        'python': platform.python_version(),
        'machine': platform.machine(),
        'cores': cores,
        'decoder': decoder,
    }
    warnings = []
    if decoder == 'Pillow':
        warnings.append('JPEGs are decoded by Pillow, slower: install libturbojpeg 3 (docs/input_pipeline.md)')
    if sys.version_info >= (3, 12, 9):
        warnings.append(
            "this Python's multiprocessing keeps signals blocked in CANN's compilers, which may keep a process from ending; "
            'Python 3.11 is recommended'
        )
    return figures | ({'warning': '; '.join(warnings)} if warnings else {})


class Session:
    """Runs the checks and shows their results: lines on the screen as they come, at the end a table and acceptance.json.

    Args:
        args: of `parse`.
        output: directory of logs and results.
    """

    def __init__(self, args: argparse.Namespace, output: Path):
        self.args, self.output, self.results = args, output, []

    def tell(self, result: dict):
        """Show a result, or that a check begins; see `report.run`."""
        if 'result' not in result:
            if sys.stdout.isatty():
                print(f'{result["name"]} ...', end='\r', flush=True)
            return
        self.results.append(result)
        print(line(result), flush=True)
        if warning(result):
            print(f'  warning: {warning(result)}', flush=True)

    def run(self) -> bool:
        """Run the checks up to the first that fails; True unless one did."""
        if not run(
            'environment', partial(check_environment, self.args.device_target), 'python -m src.environment', self.tell
        ):
            return False
        if not self._on_device('device', self.args.device_target):
            return False
        device = next(result['figures'] for result in self.results if result['name'] == 'device')
        target = device['device_target']
        if not (self._two_ranks(target) and self._on_device('steps', target)):
            return False
        works = [result.get('figures', {}).get('drop_overflow_update') for result in self.results]
        overflow = ['--drop_overflow_update', 'select' if 'select' in works else 'branch']
        trainings = Trainings(target, self.args.device_id, self.output / 'data', self.output, overflow)
        return (
            all(
                run(name, check, f'{remedy}; the logs in {self.output}', self.tell)
                for name, check, remedy in (
                    ('compilation', trainings.compiled, 'docs/ascend.md, "When it goes wrong"'),
                    ('compiled graph, SIGTERM', trainings.cached, '--compile_cache off; src/training/interruption.py'),
                    ('Ctrl-C', trainings.interrupted, 'src/training/interruption.py'),
                )
            )
            and self._on_device('speed', target, *overflow)
            # On the first generation nothing else than O2 is known to work.
            and (device['chip'] in ('', 'ascend910') or self._on_device('speed', target, *overflow, '--jit_level', 'O0'))
            and self._ranks(target)
            and self._export(device)
        )

    def _on_device(self, checks, target, *options):
        """Run the `checks` of src/acceptance/device.py in a process of their own, which has the device for itself."""
        arguments = ['--device_target', target, '--device_id', str(self.args.device_id), '--output', str(self.output)]
        arguments += ['--figures', self.args.figures] if self.args.figures else []
        return programs.on_device([*arguments, '--only', checks, *options], self.output / f'{checks}.log', self.tell)

    def _two_ranks(self, target):
        """The first thing to know of a server: whether ranks start at all."""
        if target == 'Ascend' and len(environment.npus()) < 2:
            text = 'one NPU here'
            self.tell({'name': 'two ranks', 'result': 'skipped', 'seconds': 0.0, 'figures': {'text': text}})
            return True
        return Launches('2', target, self.output / 'data', self.output).together(self.tell, '--first', name='two ranks')

    def _ranks(self, target):
        if not self.args.rank_table:
            self.tell({'name': 'ranks', 'result': 'skipped', 'seconds': 0.0, 'figures': {'text': 'no RANK_TABLE was given'}})
            return True
        launches = Launches(self.args.rank_table, target, self.output / 'data', self.output)
        return (
            launches.together(self.tell)
            and run('stop', launches.stopped, f'docs/reliability.md; {self.output}/stopped.log', self.tell)
            and run(
                'resumption of all ranks', launches.resumed, f'src/training/resume.py; {self.output}/resumed.log', self.tell
            )
        )

    def _export(self, device):
        return all(
            run(
                f'export {name}',
                partial(exports.exported, name, device['device_target'], self.output),
                f'docs/deploy.md; {self.output}/export-{name}.log',
                self.tell,
            )
            for name in ('MINDIR', 'ONNX', 'AIR')
        ) and run(
            'atc',
            partial(exports.converted, device['device'], self.output),
            f'docs/deploy.md; {self.output}/atc.log',
            self.tell,
        )

    def end(self, passed: bool):
        """Print the table of results and write acceptance.json."""
        counts = {kind: sum(result['result'] == kind for result in self.results) for kind in ('ok', 'skipped', 'FAILED')}
        print('\n' + '\n'.join(map(line, self.results)))
        path = self.output / 'acceptance.json'
        with files.replacing(path) as temporary:
            temporary.write_text(
                json.dumps(
                    {
                        'passed': passed,
                        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
                        'rank_table': self.args.rank_table,
                        'checks': self.results,
                    },
                    indent=1,
                )
                + '\n'
            )
        print(
            f'\n{"passed" if passed else "NOT passed"}: {counts["ok"]} ok, {counts["skipped"]} skipped, '
            f'{counts["FAILED"]} failed; {sum(result["seconds"] for result in self.results):.0f} s; {path}'
        )


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments of the command line; InputError for unusable ones."""
    parser = Parser(
        prog='scripts/run_acceptance.sh',
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('rank_table', nargs='?', metavar='RANK_TABLE')
    parser.add_argument('--device_target', default='auto', choices=('auto', 'Ascend', 'CPU'))
    parser.add_argument('--device_id', type=int, default=0)
    parser.add_argument('--output', default='results/acceptance', help='directory of its logs, data and result')
    parser.add_argument('--figures', help='the logits to compare with (python -m src.acceptance.reference FILE)')
    args = parser.parse_args(argv)
    if args.device_id < 0:
        raise InputError(f'device_id {args.device_id}; give one from 0')
    if args.figures and not os.path.isfile(args.figures):
        raise InputError(f'--figures {args.figures}: no such file')
    table = args.rank_table
    if table and table.isdecimal() and not os.path.exists(table):
        if not 2 <= int(table[:6]) <= 64:
            raise InputError(f'RANK_TABLE {table}: a number of ranks must be 2 to 64')
    elif table:
        if len(rank_table.read(table).servers) > 1:
            raise InputError(f'{table}: more than one server; run the check on each with a table of its own')
        args.rank_table = os.path.abspath(table)
    return args


def _interrupted(number, frame):
    raise KeyboardInterrupt


@entry_point
def main(argv: list[str] | None = None):
    """The command line."""
    args = parse(argv)
    output = Path(args.output).resolve()
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'--output {output}: {error.strerror}; choose another directory') from None
    signal.signal(signal.SIGTERM, _interrupted)
    session = Session(args, output)
    passed = session.run()
    session.end(passed)
    sys.exit(0 if passed else 1)


if __name__ == '__main__':
    main()
