"""Top-1, top-5 and loss of one checkpoint or of all in a directory, over exactly every validation image:
`python eval.py --ckpt_path CKPT --data_dir DIR [--option value ...]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from src import collective, files, runtime
from src.data import jpeg
from src.errors import InputError, entry_point, only_warned
from src.evaluation import report
from src.evaluation.evaluation import Evaluation, open_validation
from src.evaluation.outcomes import HEADER, row
from src.options import load_settings, named_arguments
from src.weights import checkpoint
from src.weights.read import main_file, read_weights


@entry_point
def main(argv: list[str] | None = None) -> None:
    """The command line."""
    argv = named_arguments(sys.argv[1:] if argv is None else argv, 'device_id', 'data_dir', 'ckpt_path')
    settings = load_settings(argv)
    if not settings.ckpt_path:
        raise InputError('ckpt_path is empty; use --ckpt_path FILE_OR_DIRECTORY')
    run = runtime.open_log(runtime.start(settings), settings)
    run.log(jpeg.describe())
    evaluate_path(argv, run, settings.ckpt_path)


def evaluate_path(argv: list[str], run: runtime.Run, path: str | Path) -> list[dict]:
    """Evaluate the weights file `path`, of any kind that `read_weights` knows, or all checkpoints in that directory.

    The network and the preprocessing are those that the (newest) checkpoint records, under the options `argv`. The table
    goes to the log and, as evaluation.json, beside the checkpoints; a report on the best of them into the directory that the
    option `report` names. Returns what `evaluate_all` does.
    """
    paths = checkpoint.by_age(path) if Path(path).is_dir() else [Path(path)]
    if not paths:
        raise InputError(f'{path}: no checkpoint inceptionv4-<epoch>_<step>.ckpt in this directory')
    newest, parameters, info = read_newest(paths)
    settings = load_settings(argv, info['config'])
    settings = settings.but(batch_size=settings.batch_size or 64)
    if settings.report and run.rank == 0:
        report.prepare(settings.report)
    names = info.get('class_names')
    records, offset = open_validation(settings, run.log, names, info['config'].get('label_offset'), paths[-1])
    evaluation = Evaluation(records, offset, settings, run, info['preprocessing'])
    run.log(f'{len(records)} validation images in {settings.data_dir}, labels from {max(offset, 0)}')
    collective.require_same({'the checkpoints': [one.name for one in paths]}, run.rank, run.world)
    results = evaluate_all(evaluation, paths, {newest: (parameters, info)})
    if run.rank == 0:
        path = paths[0].parent / 'evaluation.json'
        with only_warned(run.log, 'evaluation.json'), files.replacing(path) as temporary:  # its figures are in the log
            temporary.write_text(json.dumps(results, indent=1) + '\n')
        if settings.report:
            report.write(settings.report, evaluation, Path(evaluation.best['checkpoint']).name, names)
    return results


def evaluate_all(evaluation, paths, loaded):
    """What `evaluation` finds for each checkpoint of `paths`: dicts of checkpoint, step, epoch and the fields of `Result`;
    lines go to the log. `loaded` has what `read_weights` returned for some. Of several, one that cannot be read or does
    not fit is skipped with a warning; InputError if none is left."""
    results, log = [], evaluation.run.log
    log(HEADER)
    for path in paths:
        try:
            parameters, info = loaded.get(path) or read_weights(path)
            when = Path(main_file(path)).stat().st_mtime
            checkpoint.load_into(evaluation.step.network, checkpoint.averaged(parameters), path)
        except (InputError, OSError) as error:  # the latter if a training has removed it meanwhile
            if path == paths[-1] and not results:
                raise
            log(f'warning: skipped: {error}')
            continue
        about = {'checkpoint': str(path), 'step': info.get('step', 0), 'epoch': info.get('epoch', 0)}
        result = evaluation.of_network(about)
        log(row(result, about['step'], about['epoch'], when))
        results.append({**about, **result._asdict()})
    log(f'{len(evaluation.records)} validation images, each evaluated once')
    return results


def read_newest(paths: list[Path]) -> tuple:
    """(path, parameters, info) of the last of the checkpoints `paths` that can be read; InputError if there is none."""
    problem = None
    for path in reversed(paths):
        try:
            return path, *read_weights(path, classifier=True)
        except InputError as error:
            problem = problem or error
    raise problem


if __name__ == '__main__':
    main()
