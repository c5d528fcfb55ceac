"""Train InceptionV4: `python train.py --data_dir DIR [--option value ...]`; default_config.yaml lists the options."""
import sys
from functools import partial
from pathlib import Path

from mindspore.train import Model

from eval import evaluate_path
from src import checkpoint, config as configuration, dataset, evaluation, runtime
from src.errors import InputError, entry_point
from src.inceptionv4 import InceptionV4
from src.monitor import Checkpoints, Evaluations, Log, TrainingMonitor
from src.optimizer import freeze, learning_rates, make_optimizer, scaled_rate
from src.records import open_records
from src.training import NetworkWithLoss, TrainStep, set_precision, sink_size


@entry_point
def main(argv=None):
    config = configuration.load(sys.argv[1:] if argv is None else argv)
    run = runtime.start(config.device_target, config.device_id, config.rank_size, config.amp_level, config.seed)
    directory = Path('results', f'{run.world}p', str(run.rank if run.world > 1 else run.device_id), config.log_dir)
    log = Log(directory / config.log_name if run.rank == 0 else None)
    log(runtime.describe(run, config.device_target))
    if config.mode == 'evaluate':
        return evaluate_path(config, run, config.eval_dir or directory, log)

    for line in configuration.idle_options(config):
        log(line)

    # Records
    batch_size = config.batch_size or (128 if run.world == 1 else 64)
    records = open_records(config.data_dir, 'train', config.dataset_format)
    offset = dataset.label_offset(config.label_offset, records)
    dataset.check_labels(records, offset, config.num_classes)
    steps_per_epoch = len(records) // (batch_size * run.world)
    if not steps_per_epoch:
        raise InputError(f'batch_size {batch_size} on {run.world} device(s) needs as many records; '
                         f'{config.data_dir} has {len(records)}')
    steps = config.max_train_steps or config.max_epochs * steps_per_epoch
    log(f'{len(records)} training images, labels from {offset}, {steps_per_epoch} steps of {batch_size} images x '
        f'{run.world} an epoch; {steps} steps')

    # Network and recipe
    network = InceptionV4(**configuration.network_options(config))
    if config.restore_path:
        loaded, left = checkpoint.restore(network, config.restore_path)
        log(f'{config.restore_path}: {len(loaded)} parameters loaded: {", ".join(loaded)}')
        log(f'left as initialised: {", ".join(left)}')
    freeze(network, config.freeze)
    network = set_precision(network, run.amp_level)
    lr = scaled_rate(config.lr, config.lr_scaling, batch_size * run.world)
    rates = learning_rates(config.lr_schedule, steps=steps, steps_per_epoch=steps_per_epoch, lr=lr,
                           T_max=config.T_max, eta_min=config.eta_min, lr_decay_rate=config.lr_decay_rate,
                           lr_decay_epochs=config.lr_decay_epochs, warmup_epochs=config.warmup_epochs)
    optimizer = make_optimizer(config.optimizer, network, rates, weight_decay=config.weight_decay,
                               momentum=config.momentum, rmsprop_decay=config.rmsprop_decay,
                               rmsprop_epsilon=config.rmsprop_epsilon, use_nesterov=config.use_nesterov,
                               on_cpu=run.device_target == 'CPU')
    with_loss = NetworkWithLoss(network, config.label_smoothing, config.aux_loss_weight if config.aux_logits else None)
    step = TrainStep(with_loss, optimizer, config.loss_scale, config.weight_decay)

    # Data, what happens beside the steps, and the steps
    num_workers = dataset.workers(config.num_workers, run.ranks_here)
    data = dataset.training_dataset(records, offset=offset, image_size=config.image_size, batch_size=batch_size,
                                    seed=config.seed, keep_prob=config.dropout_keep_prob, start=0, stop=steps,
                                    min_covered=config.min_object_covered, rank=run.rank, world=run.world,
                                    num_workers=num_workers)
    monitor = TrainingMonitor(log, rates, batch_size * run.world, steps_per_epoch, config.display_every, 0, steps)
    callbacks = [monitor]
    effective = dict(config, label_offset=str(offset), batch_size=batch_size)
    if run.rank == 0:
        configuration.save(effective, directory / 'config.yaml')
        callbacks.append(Checkpoints(monitor, config.save_checkpoint_steps or steps_per_epoch, directory, step,
                                     effective, config.keep_checkpoint_max))
    if config.mode == 'train_and_evaluate':
        validation = open_records(config.data_dir, 'validation', config.dataset_format)
        dataset.check_labels(validation, offset, config.num_classes)
        evaluate = partial(evaluation.evaluate, evaluation.EvaluationStep(network), dataset.evaluation_dataset(
            validation, offset=offset, image_size=config.image_size, batch_size=batch_size, rank=run.rank,
            world=run.world, num_workers=num_workers), len(validation), run.world)
        callbacks.append(Evaluations(monitor, config.epochs_between_evals * steps_per_epoch, evaluate))
    # One pass over `data` is the whole training, in sinks where the device has them.
    sink = sink_size(steps, config.iterations_per_loop) if run.sink else -1
    if run.sink and sink != min(config.iterations_per_loop, steps):
        log(f'iterations_per_loop {config.iterations_per_loop} does not divide {steps} steps: {sink} taken')
    Model(step).train(steps // sink if run.sink else 1, data, callbacks, dataset_sink_mode=run.sink, sink_size=sink)
    log(f'trained {steps} steps, {monitor.fps:.1f} images/s; checkpoints in {directory}')


if __name__ == '__main__':
    main()
