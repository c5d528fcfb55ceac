"""Top-1, top-5 and loss of one checkpoint or of all in a directory, over exactly every validation image:
`python eval.py --ckpt_path CKPT --data_dir DIR [--option value ...]`."""
import sys
from pathlib import Path

from mindspore.nn.utils import no_init_parameters

from src import checkpoint, config as configuration, dataset, evaluation, runtime
from src.errors import InputError, entry_point
from src.inceptionv4 import InceptionV4
from src.preprocess import recorded_preprocessing
from src.records import open_records
from src.training import set_precision


def evaluate_path(config, run, path, log, info=None):
    """Evaluate the checkpoint or directory `path` as `config` says; the table goes to `log` and, as evaluation.json,
    beside the checkpoints. Pictures are prepared as the checkpoint says, the last one of a directory, whose `info` is
    read here if it is not given."""
    paths = checkpoint.find(path)
    info = checkpoint.load(paths[-1])[1] if info is None else info
    preprocessing = recorded_preprocessing(info.get('preprocessing'))
    records = open_records(config.data_dir, 'validation', config.dataset_format)
    offset = dataset.label_offset(config.label_offset, records)
    dataset.check_labels(records, offset, config.num_classes)
    log(f'{len(records)} validation images in {config.data_dir}, labels from {offset}')
    with no_init_parameters():  # a checkpoint fills them all
        network = InceptionV4(**{**configuration.network_options(config), 'aux_logits': False})
    step = evaluation.EvaluationStep(set_precision(network, run.amp_level), preprocessing)
    data = dataset.evaluation_dataset(records, offset=offset, image_size=config.image_size,
                                      batch_size=config.batch_size or 64, preprocessing=preprocessing, rank=run.rank,
                                      world=run.world, num_workers=dataset.workers(config.num_workers, run.ranks_here))
    results = evaluation.evaluate_checkpoints(paths, step, data, len(records), run.world, log)
    if run.rank == 0:
        evaluation.write_json(results, paths[0].parent / 'evaluation.json')
    return results


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    config = configuration.load(argv)
    if not config.ckpt_path:
        raise InputError('ckpt_path is empty; use --ckpt_path FILE_OR_DIRECTORY')
    _, info = checkpoint.load(checkpoint.find(Path(config.ckpt_path))[-1])
    config = configuration.load(argv, info.get('config'))
    run = runtime.start(config.device_target, config.device_id, config.rank_size, config.amp_level, config.seed,
                        config.jit_level)
    print(runtime.describe(run, config.device_target), flush=True)
    evaluate_path(config, run, config.ckpt_path, print, info)


if __name__ == '__main__':
    main()
