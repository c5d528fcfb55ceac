"""The check of a new machine: scripts/run_acceptance.sh runs these tests in order, up to the first that fails.

Every call of pytest adds its results to OUTPUT/acceptance.json. A failed check shows what was expected and found, and the
remedy of its marker `remedy`.
"""

import json
import os
from pathlib import Path

import pytest

from src import environment
from src.files import replacing

PATIENCE = 1800  # seconds: a compilation takes minutes, while ranks that wait for each other never end
BRANCH = 'without a branch on overflow'  # in the remedy of what it can make fail
SILENT = os.environ.get('RANK_ID', '0') != '0'  # of several ranks only the first reports


def pytest_addoption(parser):
    """Those of scripts/run_acceptance.sh, and what its launcher passes to each rank."""
    add = parser.getgroup('acceptance').addoption
    add('--device_target', default='auto', choices=('auto', 'Ascend', 'CPU'))
    add('--device_id', type=int, default=0)
    add('--output', type=Path, default='results/acceptance', help='directory of its logs, data and result')
    add('--table', default='', help='rank table, or a number of ranks')
    add('--jit_level', default='O2', help='of the speed')
    add('--drop_overflow_update', default='branch', choices=('branch', 'select'), help='that of train.py')
    add('--rank_size', type=int, default=1)
    add('--first', action='store_true', help='forget earlier results')


def pytest_configure(config):
    config.option.output = Path(config.option.output).resolve()
    config.option.output.mkdir(parents=True, exist_ok=True)
    if config.option.first:
        (config.option.output / 'acceptance.json').unlink(missing_ok=True)


def results(config):
    """The results of all calls so far: name, result, seconds, figures, and of a failure what was found and the remedy."""
    path = config.option.output / 'acceptance.json'
    return json.loads(path.read_text()) if path.exists() else []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep the result of a check."""
    report = yield
    report.figures = dict(item.user_properties)
    if SILENT or (call.when != 'call' and report.passed) or call.when == 'teardown':
        return report
    result = {'name': item.name.removeprefix('test_'), 'result': report.outcome, 'seconds': round(call.duration, 2)}
    result['figures'] = {'text': str(call.excinfo.value)} if report.skipped else report.figures
    if report.failed:
        remedy = item.get_closest_marker('remedy').args[0]
        result |= {'found': f'{call.excinfo.typename}: {call.excinfo.value}'[:1000], 'remedy': remedy}
        report.sections.append(('remedy', remedy))
    with replacing(item.config.option.output / 'acceptance.json') as path:  # other ranks may read it
        path.write_text(json.dumps([*results(item.config), result], indent=1, default=float) + '\n')
    return report


def pytest_sessionfinish(session):
    """Status 10 after a failure at the branch on overflow: run_acceptance.sh then tries without."""
    failed = [one for one in results(session.config) if one['result'] == 'failed']
    if failed and BRANCH in failed[-1]['remedy'] and session.config.option.drop_overflow_update == 'branch':
        session.exitstatus = 10


def pytest_report_teststatus(report):
    """What a check found stands in its line; a warning, too."""
    if report.passed and report.when == 'call':
        warning = report.figures.get('warning')
        return 'passed', '.', f'ok  {report.figures["text"]}' + (f'\n  warning: {warning}' if warning else '')
    return None


@pytest.fixture
def figures(record_property):
    """`figures(text=..., name=value, ...)` records what a check found; `warning` is shown, too."""
    return lambda **values: [record_property(name, value) for name, value in values.items()]


@pytest.fixture(scope='session')
def option(request):
    """The options of the command line; `output` is absolute."""
    return request.config.option


@pytest.fixture(scope='session')
def output(option):
    """Directory of logs, data and results."""
    return option.output


@pytest.fixture(scope='session')
def target(option):
    """'Ascend' or 'CPU'; needs no MindSpore, which would take the device."""
    return option.device_target if option.device_target != 'auto' else 'Ascend' if environment.npus() else 'CPU'
