"""The checks of export.py and of CANN's converter, atc; needs no MindSpore."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from src.acceptance.programs import PATIENCE, ROOT, program, tail
from src.acceptance.report import Failed, Skipped


def exported(file_format: str, target: str, output: Path) -> dict:
    """export.py writes the file, and what the file computes is near the network's output. Gives the figures of the check."""
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
    worst = max(found['random'], found['smooth'])
    return {
        'text': f'{path.stat().st_size / 1e6:.0f} MB, deviates by {worst:.1e} (bound {found["bound"]:g})',
        'deviation': worst,
        'bound': found['bound'],
    }


def converted(soc_version: str, output: Path) -> dict:
    """atc converts the ONNX file for the chip, with the command of docs/deploy.md. Gives the figures of the check."""
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
