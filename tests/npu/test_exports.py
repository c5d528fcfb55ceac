"""export.py writes its formats, what the files compute is near the network's output, and atc takes the ONNX file."""

import json
import shutil
import subprocess
from importlib.util import find_spec

import pytest

from tests.npu.conftest import PATIENCE, results
from tests.processes import ROOT, Program

pytestmark = pytest.mark.remedy('docs/deploy.md')


@pytest.mark.parametrize('file_format', ['MINDIR', 'ONNX', 'AIR'])
def test_export(file_format, target, output, figures):
    if file_format == 'ONNX' and not find_spec('onnx'):
        pytest.skip('the package onnx is not installed (requirements-export.txt)')
    if file_format == 'AIR' and target != 'Ascend':
        pytest.skip('only an NPU writes it')
    path = output / f'inceptionv4.{file_format.lower()}'
    options = ['--ckpt_path', output / 'seeded.ckpt', '--file_format', file_format, '--file_name', path]
    with Program(output, ROOT / 'export.py', *options, output=f'export-{file_format}.log') as program:
        assert program.process.wait(PATIENCE) == 0, program.text[-400:]
    found = json.loads(path.with_name(f'{path.name}.json').read_text())['deviation']
    worst, bound = found['largest'], found['bound']
    text = f'{path.stat().st_size / 1e6:.0f} MB, deviates by {worst:.1e} (bound {bound:g})'
    figures(text=text, deviation=worst, bound=bound)


def test_atc(output, figures, request):
    """With the command of docs/deploy.md."""
    chip = next((r['figures'].get('device') for r in results(request.config) if r['name'] == 'device'), '')
    path = output / 'inceptionv4.onnx'
    if not (shutil.which('atc') and path.exists() and chip):
        pytest.skip('no atc here, no ONNX file, or the name of the chip is not known')
    command = ['atc', '--framework=5', f'--model={path}', '--input_shape=input:8,3,299,299', '--input_format=NCHW']
    command += [f'--output={output / "inceptionv4"}', f'--soc_version={chip}']
    done = subprocess.run(command, cwd=output, text=True, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0 and path.with_suffix('.om').exists(), (done.stdout + done.stderr)[-300:]
    figures(text=f'inceptionv4.om for {chip}, {path.with_suffix(".om").stat().st_size / 1e6:.0f} MB')
