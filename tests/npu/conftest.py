"""The check of a new machine: scripts/run_acceptance.sh runs these tests in order, up to the first that fails.

Every call of pytest adds its results to OUTPUT/acceptance.json. A failed check shows what was expected and found, and the
remedy of its marker `remedy`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from src import environment

SILENT = os.environ.get('RANK_ID', '0') != '0'  # of several ranks only the first reports


def pytest_addoption(parser):
    """Those of scripts/run_acceptance.sh, and what its launcher passes to each rank."""
    group = parser.getgroup('acceptance')
    group.addoption('--device_target', default='auto', choices=('auto', 'Ascend', 'CPU'))
    group.addoption('--device_id', type=int, default=0)
    group.addoption('--output', default='results/acceptance', help='directory of its logs, data and result')
    group.addoption('--table', default='', help='rank table, or a number of ranks')
    group.addoption('--jit_level', default='O2', help='of the speed')
    group.addoption('--rank_size', type=int, default=1)
    group.addoption('--first', action='store_true', help='forget earlier results')
    group.addoption('--last', action='store_true', help='show all results at the end')


def pytest_configure(config):
    """The directory of results."""
    Path(config.getoption('output')).mkdir(parents=True, exist_ok=True)
    if config.getoption('first'):
        results_file(config).unlink(missing_ok=True)


def results_file(config) -> Path:
    """The JSON file with the results of all calls so far."""
    return Path(config.getoption('output'), 'acceptance.json')


def results(config) -> list[dict]:
    """The results so far: name, result, seconds, figures."""
    path = results_file(config)
    return json.loads(path.read_text()) if path.exists() else []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Keep the result of a check."""
    report = yield
    report.figures = dict(item.user_properties)
    if SILENT or (call.when != 'call' and report.passed) or call.when == 'teardown':
        return report
    result = {'name': item.name.removeprefix('test_'), 'result': report.outcome, 'seconds': round(call.duration, 2)}
    if report.failed:
        remedy = item.get_closest_marker('remedy')
        result |= {
            'found': f'{call.excinfo.typename}: {call.excinfo.value}'[:1000],
            'remedy': remedy.args[0] if remedy else '',
        }
        report.sections.append(('remedy', result['remedy']))
    elif report.skipped:
        result['figures'] = {'text': str(call.excinfo.value)}
    else:
        result['figures'] = report.figures
    results_file(item.config).write_text(json.dumps([*results(item.config), result], indent=1, default=float) + '\n')
    return report


def pytest_report_teststatus(report):
    """What a check found stands in its line; a warning, too."""
    figures = getattr(report, 'figures', {})
    if report.passed and report.when == 'call' and figures:
        warning = f'\n  warning: {figures["warning"]}' if figures.get('warning') else ''
        return 'passed', '.', f'ok  {figures.get("text", "")}{warning}'
    return None


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """The results of all calls, after the last one or a failure."""
    if SILENT or not (exitstatus or config.getoption('last')):
        return
    found = results(config)
    terminalreporter.section('results')
    for result in found:
        text = result.get('figures', {}).get('text') or result.get('found', '')
        terminalreporter.line(f'{result["name"]:<28} {result["result"]:<8}{result["seconds"]:>7.1f} s  {text}'.rstrip())
        if result.get('remedy'):
            terminalreporter.line(f'  remedy: {result["remedy"]}')
    counts = Counter(result['result'] for result in found)
    end = 'NOT passed' if exitstatus else 'passed'
    terminalreporter.line(f'{end}: {counts["passed"]} ok, {counts["skipped"]} skipped, {counts["failed"]} failed')


@pytest.fixture
def figures(record_property):
    """`figures(text=..., name=value, ...)` records what a check found; `warning` is shown, too."""
    return lambda **values: [record_property(name, value) for name, value in values.items()]


@pytest.fixture(scope='session')
def output(request) -> Path:
    """Directory of logs, data and results, absolute."""
    return Path(request.config.getoption('output')).resolve()


@pytest.fixture(scope='session')
def target(request) -> str:
    """'Ascend' or 'CPU'; needs no MindSpore, which would take the device."""
    option = request.config.getoption('device_target')
    return option if option != 'auto' else 'Ascend' if environment.npus() else 'CPU'


@pytest.fixture(scope='session')
def overflow(request) -> list[str]:
    """The option with which train.py skips steps that overflow: what the checks of one device found to work."""
    works = [result.get('figures', {}).get('drop_overflow_update') for result in results(request.config)]
    return ['--drop_overflow_update', 'select' if 'select' in works else 'branch']
