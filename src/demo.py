"""The demo: draw images, train, evaluate and export with the project's own entry points, and show the results.

`python -m src.demo [OUTPUT_DIR] [--seed N] [--option value ...]`; the options go to train.py, too.
"""

import json
import re
import sys
import time
from pathlib import Path

from src import config as configuration
from src.data import demo_images
from src.errors import entry_point
from src.programs import ROOT, print_table, run


@entry_point
def main():
    """The command line."""
    arguments = sys.argv[1:]
    output = Path(arguments.pop(0) if arguments and not arguments[0].startswith('--') else 'demo').resolve()
    config = configuration.load(['--config_path', str(ROOT / 'scripts/demo.yaml'), *arguments])
    start = time.time()
    data = demo_images.make(output / 'data', seed=config.seed)
    demo = ['--config_path', ROOT / 'scripts/demo.yaml', '--data_dir', data, '--log_dir', output / 'training']
    anew = [] if config.resume else ['--overwrite', 'true']
    run('train.py', *demo, *anew, *arguments)
    trained = max((output / 'training').glob('*.ckpt'), key=lambda path: path.stat().st_mtime)
    run('eval.py', '--ckpt_path', trained, '--data_dir', data)
    run('export.py', '--ckpt_path', trained, '--file_name', output / 'inceptionv4')
    result = json.loads((output / 'training/evaluation.json').read_text())[0]
    log = (output / 'training' / config.log_name).read_text()
    trained_in = re.findall(r'trained (.*); checkpoints in', log)[-1]
    print_table(
        [
            ('images', f'{data} (10 classes, seed {config.seed})'),
            ('training', f'{trained_in}, log in {output / "training" / config.log_name}'),
            ('checkpoint', trained),
            ('top-1, top-5', f'{result["top1"]:.1f} %, {result["top5"]:.1f} % of {result["images"]} held-out images'),
            ('MINDIR', output / 'inceptionv4.mindir'),
            ('wall time', f'{time.time() - start:.0f} s'),
        ]
    )


if __name__ == '__main__':
    main()
