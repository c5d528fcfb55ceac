"""Top-1, top-5 and loss of one checkpoint or of all in a directory, over exactly every validation image:
`python eval.py --ckpt_path CKPT --data_dir DIR [--option value ...]`."""

import sys
from pathlib import Path

from src import config as configuration
from src import runtime
from src.data import dataset, jpeg
from src.data.preprocess import recorded_preprocessing
from src.data.records import open_records
from src.errors import InputError, entry_point
from src.evaluation import evaluation
from src.training.callbacks import Log
from src.weights import checkpoint
from src.weights import convert as weights


def evaluate_path(argv, run, path, log):
    """Evaluate the checkpoint at `path`, of any kind that `weights.read` knows, or all of ours in that directory but damaged
    ones; the table goes to `log` and, as evaluation.json, beside them. Network and preprocessing are those of the
    checkpoint, the last one of a directory, under the options `argv`."""
    paths = checkpoint.find(path) if Path(path).is_dir() else [Path(path)]
    info = newest_info(paths)
    config = configuration.load(argv, info['config'])
    preprocessing = recorded_preprocessing(info.get('preprocessing'))
    records = open_records(config.data_dir, 'validation', config.dataset_format)
    if records.left_out:
        log(f'left out: {records.left_out}')
    names, option = info.get('class_names'), config.label_offset
    matched = dataset.match_names(records, names, paths[-1])
    if matched is not records:  # then names tell which class is which, whatever the records' own labels are
        records = matched
        option = info['config'].get('label_offset', '1' if len(names) > config.num_classes else '0')
    offset = dataset.label_offset(option, records)
    dataset.check_labels(records, offset, config.num_classes)
    log(f'{len(records)} validation images in {config.data_dir}, labels from {offset}')
    step = evaluation.make_step(configuration.network_options(config), run.amp_level, preprocessing)
    data = dataset.evaluation_dataset(
        records,
        offset=offset,
        image_size=config.image_size,
        batch_size=config.batch_size or 64,
        preprocessing=preprocessing,
        rank=run.rank,
        world=run.world,
        num_workers=dataset.workers(config.num_workers, run.ranks_here),
    )
    results = evaluation.evaluate_checkpoints(paths, step, data, len(records), run.world, log)
    if run.rank == 0:
        target = paths[0].parent / 'evaluation.json'
        try:
            evaluation.write_json(results, target)
        except OSError as error:
            problem = f'{target} cannot be written ({error.strerror})'
            if log.lost:
                raise InputError(f'{problem}, nor the figures to the screen') from None
            log(f'warning: {problem}; the figures are only those above')
    return results


def newest_info(paths):
    """The information in the last of the checkpoints that can be read; InputError if there is none."""
    problem = None
    for path in reversed(paths):
        try:
            parameters, info = weights.read(path)
            return checkpoint.with_classes(info, parameters, path)
        except InputError as error:
            problem = problem or error
    raise problem


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    config = configuration.load(argv)
    if not config.ckpt_path:
        raise InputError('ckpt_path is empty; use --ckpt_path FILE_OR_DIRECTORY')
    run = runtime.start(
        config.device_target, config.device_id, config.rank_size, config.amp_level, config.seed, config.jit_level
    )
    log = Log()
    log(runtime.describe(run, config.device_target))
    log(jpeg.describe())
    evaluate_path(argv, run, config.ckpt_path, log)


if __name__ == '__main__':
    main()
