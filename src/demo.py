"""The demo: draw images, train, evaluate, export and predict with the project's own programs, and show the results.

`python -m src.demo [OUTPUT_DIR] [--seed N] [--option value ...]`; the options go to train.py, too.
"""

import json
import sys
import time
from pathlib import Path

from src.data import demo_images
from src.data.records import open_records, read_labels
from src.errors import entry_point
from src.options import load_settings
from src.programs import ROOT, print_table, run
from src.training import curves

USAGE = """usage: bash scripts/run_demo.sh [OUTPUT_DIR] [--seed N] [--option value ...]

Draws images, trains on them, evaluates, exports and predicts, in about six minutes on two idle cores.

  OUTPUT_DIR  where everything goes (default: demo)
  --seed N    other images, weights and order (default: 1)
  --option    any other of train.py, which `python train.py --help` lists; scripts/demo.yaml has the demo's own values"""


@entry_point
def main():
    """The command line."""
    arguments = sys.argv[1:]
    if {'-h', '--help'} & {*arguments}:
        return print(USAGE)
    output = Path(arguments.pop(0) if arguments and not arguments[0].startswith('--') else 'demo').resolve()
    config = load_settings(['--config_path', str(ROOT / 'scripts/demo.yaml'), *arguments])
    start = time.time()
    print('the demo draws images, trains, evaluates, exports and predicts: about six minutes on two idle cores', flush=True)
    data = demo_images.make(output / 'data', seed=config.seed)
    demo = ['--config_path', ROOT / 'scripts/demo.yaml', '--data_dir', data, '--log_dir', output / 'training']
    anew = [] if config.resume else ['--overwrite', 'true']
    run('train.py', *demo, *anew, *arguments)
    checkpoint = max((output / 'training').glob('*.ckpt'), key=lambda path: path.stat().st_mtime)
    run('eval.py', '--ckpt_path', checkpoint, '--data_dir', data)
    curves.at_end(output / 'training', lambda _: None)  # once more, now with the evaluation
    run('export.py', '--ckpt_path', checkpoint, '--file_name', output / 'inceptionv4')
    shown, predictions = show(data, output / 'images'), output / 'predictions.html'
    run('src.deploy.predict', *shown, '--model', output / 'inceptionv4.mindir', '--top', 3, '--html', predictions)
    result = json.loads((output / 'training/evaluation.json').read_text())[0]
    trained, page = curves.TrainingRun(output / 'training'), output / 'training' / curves.PAGE
    print_table(
        [
            ('images', f'{data} (10 classes, seed {config.seed})'),
            ('training', f'{trained.summary()}, log in {output / "training" / config.log_name}'),
            ('checkpoint', checkpoint),
            ('top-1, top-5', f'{result["top1"]:.1f} %, {result["top5"]:.1f} % of {result["images"]} held-out images'),
            ('MINDIR', output / 'inceptionv4.mindir'),
            ('predictions', predictions),
            ('curves', page if page.exists() else 'left out: pip install -r requirements-report.txt'),
            ('wall time', f'{time.time() - start:.0f} s'),
        ]
    )


def show(data: Path, directory: Path) -> list[Path]:
    """One held-out image of every class in `data`, as files in `directory`."""
    records, names = open_records(str(data), 'validation'), read_labels(data)
    paths = {}
    for record in range(len(records)):
        label = int(records.label[record])
        if label not in paths:
            paths[label] = directory / names[label] / f'{record}.jpg'  # in a folder of its class: the page marks wrong ones
            paths[label].parent.mkdir(parents=True, exist_ok=True)
            paths[label].write_bytes(records.read(record))
    return [paths[label] for label in sorted(paths)]


if __name__ == '__main__':
    main()
