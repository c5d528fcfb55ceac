"""Top-1, top-5 and loss of one checkpoint or of all in a directory, over exactly every validation image:
`python eval.py --ckpt_path CKPT --data_dir DIR [--option value ...]`."""

import sys
from pathlib import Path

from src import runtime
from src.data import jpeg, pipeline
from src.errors import InputError, entry_point
from src.evaluation import report
from src.evaluation.evaluation import Evaluation, open_validation, write_json
from src.evaluation.offset import settle
from src.options import load_settings, named_arguments
from src.weights import checkpoint
from src.weights.read import read_weights


@entry_point
def main(argv=None):
    argv = named_arguments(sys.argv[1:] if argv is None else argv, 'device_id', 'data_dir', 'ckpt_path')
    config = load_settings(argv)
    if not config.ckpt_path:
        raise InputError('ckpt_path is empty; use --ckpt_path FILE_OR_DIRECTORY')
    run = runtime.open_log(runtime.start(config), config)
    run.log(jpeg.describe())
    evaluate_path(argv, run, config.ckpt_path, run.log)


def evaluate_path(argv: list, run: runtime.Run, path, log) -> list:
    """Evaluate the weights file `path`, of any kind that `read_weights` knows, or all checkpoints in that directory.

    The network and the preprocessing are those that the (newest) checkpoint records, under the options `argv`. The table
    goes to `log` and, as evaluation.json, beside the checkpoints; a report on the best of them into the directory that the
    option `report` names. Returns what `Evaluation.of_checkpoints` does.
    """
    paths = checkpoint.find(path) if Path(path).is_dir() else [Path(path)]
    if line := checkpoint.disagreement(paths):
        log(line)
    newest, parameters, info = read_newest(paths)
    config = load_settings(argv, info['config'])
    if config.report and run.rank == 0:
        report.prepare(config.report)
    names = info.get('class_names')
    records, offsets = open_validation(
        config.data_dir,
        load_settings(argv).label_offset,  # without what the checkpoint records
        config.num_classes,
        log,
        names=names,
        recorded_offset=info['config'].get('label_offset'),
        source=paths[-1],
    )
    evaluation = Evaluation(
        records,
        offsets.possible[0],
        config.network(),
        run,
        batch_size=config.batch_size or 64,
        num_workers=pipeline.workers(config.num_workers, run.ranks_here),
        preprocessing=info['preprocessing'],
        per_image=bool(config.report),
        known={newest: (parameters, info)} if len(paths) == 1 else None,
    )
    settle(evaluation, offsets, parameters, newest, log)
    log(f'{len(records)} validation images in {config.data_dir}, labels from {max(evaluation.offset, 0)}')
    results = evaluation.of_checkpoints(paths, log)
    if run.rank == 0:
        write(results, paths[0].parent / 'evaluation.json', log)
    if config.report:
        best = evaluation.best
        report.write(config.report, evaluation, Path(best['checkpoint']).name, best, log, names)
    return results


def write(results: list, path: Path, log):
    """`results` to the file `path`; a warning if that fails, InputError if the screen could not take them either."""
    try:
        write_json(results, path)
    except OSError as error:
        problem = f'{path} cannot be written ({error.strerror})'
        if log.lost:
            raise InputError(f'{problem}, nor the figures to the screen') from None
        log(f'warning: {problem}; the figures are only those above')


def read_newest(paths: list) -> tuple:
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
