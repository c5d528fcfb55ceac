"""Train InceptionV4: `python train.py --data_dir DIR [--option value ...]`; default_config.yaml lists the options."""

import secrets
import sys
from functools import partial
from pathlib import Path

import mindspore as ms
from mindspore.train import Model

from eval import evaluate_path
from src import collective, runtime
from src import config as configuration
from src.data import dataset, jpeg
from src.data.preprocess import PREPROCESSING
from src.data.records import open_records
from src.errors import InputError, counted, entry_point
from src.evaluation import evaluation
from src.inceptionv4 import InceptionV4, set_precision
from src.training import memory, resume
from src.training.callbacks import Checkpoints, Evaluations, Log, TrainingMonitor
from src.training.interruption import Interruption
from src.training.optimizer import decayed_parameters, freeze, learning_rates, make_optimizer, scaled_rate
from src.training.step import NetworkWithLoss, TrainStep, l2_term, sinks
from src.training.watch import Watch


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    config = configuration.load(argv)
    if config.mode == 'evaluate':
        run, _, checkpoints_in, _, log = set_up(config)
        return evaluate_path(argv, run, config.eval_dir or checkpoints_in, log)
    with Interruption() as interruption:  # before MindSpore has threads
        train(config, interruption)


def set_up(config):
    """(Runtime, this rank's directory, rank 0's, which has the checkpoints, rank 0's `resume.Claim` to it where there is a
    training, log) of the run that `config` describes."""
    run = runtime.start(
        config.device_target, config.device_id, config.rank_size, config.amp_level, config.seed, config.jit_level
    )
    directory = Path('results', f'{run.world}p', str(run.rank if run.world > 1 else run.device_id), config.log_dir)
    checkpoints_in = directory if run.world == 1 else Path('results', f'{run.world}p', '0', config.log_dir)
    claim = (
        None
        if config.mode == 'evaluate'
        else resume.on_rank_0(run, resume.claim, directory, config.resume, config.overwrite, config.log_name)
    )
    log = Log(directory / config.log_name if run.rank == 0 else None)
    log(runtime.describe(run, config.device_target))
    log(jpeg.describe())
    return run, directory, checkpoints_in, claim, log


def train(config, interruption):
    """The training that `config` (EasyDict) describes."""
    run, directory, checkpoints_in, claim, log = set_up(config)
    for line in configuration.idle_options(config):
        log(line)

    # Records
    batch_size = config.batch_size or (128 if run.world == 1 else 64)
    records = open_records(config.data_dir, 'train', config.dataset_format)
    if records.left_out:
        log(f'left out: {records.left_out}')
    offset = dataset.label_offset(config.label_offset, records)
    classes, source = dataset.count_classes(config.num_classes, records, offset)
    steps_per_epoch = len(records) // (batch_size * run.world)
    if not steps_per_epoch:
        raise InputError(
            f'batch_size {batch_size} on {run.world} device(s) needs as many records; {config.data_dir} has {len(records)}'
        )
    steps = config.max_train_steps or config.max_epochs * steps_per_epoch
    effective = dict(config, num_classes=classes, label_offset=str(offset), batch_size=batch_size)
    fingerprint = dataset.fingerprint(records)
    log(
        f'{len(records)} training images, labels from {offset}, {classes} classes ({source}), {steps_per_epoch} steps of '
        f'{batch_size} images x {run.world} an epoch; {steps} steps'
    )

    # A training to go on with; rank 0 has the checkpoints
    start, training = 0, secrets.randbits(40) if run.rank == 0 else 0
    found = resume.on_rank_0(
        run, resume.continued, config.resume, directory, effective, fingerprint, config.resume_override, log
    )
    if found:
        path, parameters, info = found
        start = resume.first_step(info, steps_per_epoch, batch_size * run.world)
        training = int(info.get('training', '0'), 16) or training
        log(
            f'{path}: goes on after step {info["step"]}, {info["position"]} images into epoch {info["epoch"] + 1}, here '
            f'step {start} of {steps} on {run.world} device(s)'
        )
    start, training = resume.agreed([start, training], run.world)
    if start >= steps:
        return log(f'nothing is left to train: {start} of {steps} steps are done; a larger --max_epochs goes on')

    # Network and recipe
    network = InceptionV4(**configuration.network_options(effective))
    if config.restore_path and not start:
        loaded, left = resume.restore(network, config.restore_path)
        log(f'{config.restore_path}: {len(loaded)} parameters loaded: {", ".join(loaded)}')
        log(f'left as initialised: {", ".join(left)}')
    if run.device_target == 'CPU':
        memory.check(
            sum(p.size for p in network.get_parameters()), batch_size, config.image_size, run.ranks_here, memory.free_bytes()
        )
    freeze(network, config.freeze)
    network = set_precision(network, run.amp_level)
    lr = scaled_rate(config.lr, config.lr_scaling, batch_size * run.world)
    rates = learning_rates(
        config.lr_schedule,
        steps=steps,
        steps_per_epoch=steps_per_epoch,
        lr=lr,
        T_max=config.T_max,
        eta_min=config.eta_min,
        lr_decay_rate=config.lr_decay_rate,
        lr_decay_epochs=config.lr_decay_epochs,
        warmup_epochs=config.warmup_epochs,
    )
    optimizer = make_optimizer(
        config.optimizer,
        network,
        rates,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        rmsprop_decay=config.rmsprop_decay,
        rmsprop_epsilon=config.rmsprop_epsilon,
        use_nesterov=config.use_nesterov,
        on_cpu=run.device_target == 'CPU',
    )
    on_host = config.augment_device == 'host'
    with_loss = NetworkWithLoss(
        network,
        config.label_smoothing,
        config.aux_loss_weight if config.aux_logits else None,
        None if on_host else ms.float32 if run.amp_level == 'O0' else ms.float16,
    )
    loss_scale = config.loss_scale
    if loss_scale == 'dynamic' and run.amp_level == 'O0' and run.device_target == 'CPU':
        loss_scale = None  # float32 has no need of it
    step = TrainStep(with_loss, optimizer, loss_scale, config.clip_norm, config.ema_decay)
    if found:
        resume.load(step, path, parameters, start, config.resume_override, loss_scale)
        del found, parameters
    if run.world > 1:
        collective.share(step.get_parameters())

    # Data, what happens beside the steps, and the steps
    num_workers = dataset.workers(config.num_workers, run.ranks_here)
    bad = dataset.BadRecords(config.max_bad_fraction, steps_per_epoch * batch_size, -(-steps // steps_per_epoch))
    steps_from = partial(
        dataset.training_dataset,
        records,
        offset=offset,
        image_size=config.image_size,
        batch_size=batch_size,
        seed=config.seed,
        keep_prob=config.dropout_keep_prob,
        min_covered=config.min_object_covered,
        augment_on_host=on_host,
        bad=bad,
        rank=run.rank,
        world=run.world,
        num_workers=num_workers,
    )
    monitor = TrainingMonitor(
        log,
        rates,
        batch_size * run.world,
        steps_per_epoch,
        config.display_every,
        start,
        steps,
        interruption=interruption,
        agreed=collective.any_rank if run.world > 1 else bool,
        l2_term=partial(l2_term, decayed_parameters(network), config.weight_decay),
        max_overflow_steps=config.max_overflow_steps,
        directory=checkpoints_in,
        bad=bad,
    )
    about = {
        'config': effective,
        'data': fingerprint,
        'preprocessing': PREPROCESSING._asdict(),
        'class_names': records.class_names and records.class_names[: classes + offset],
        'training': f'{training:x}',
    }
    saved = Checkpoints(
        monitor,
        config.save_checkpoint_steps or steps_per_epoch,
        checkpoints_in,
        step,
        about,
        config.keep_checkpoint_max,
        claim.replaced if claim else (),
        spare=run.rank > 0,
    )
    callbacks = [monitor]
    if run.rank == 0:
        configuration.save(effective, directory / 'config.yaml')
        callbacks.append(saved)
    if config.mode == 'train_and_evaluate':
        validation = open_records(config.data_dir, 'validation', config.dataset_format)
        if validation.left_out:
            log(f'left out: {validation.left_out}')
        validation = dataset.match_names(validation, records.class_names, 'the training records')
        dataset.check_labels(validation, offset, classes)
        evaluation_step = evaluation.make_step(configuration.network_options(effective), run.amp_level)
        data = dataset.evaluation_dataset(
            validation,
            offset=offset,
            image_size=config.image_size,
            batch_size=batch_size,
            rank=run.rank,
            world=run.world,
            num_workers=num_workers,
        )

        def evaluate():
            evaluation.take_weights(evaluation_step.network, step, run.world)
            return evaluation.evaluate(evaluation_step, data, len(validation), run.world, lambda: interruption.number)

        callbacks.append(
            Evaluations(monitor, config.epochs_between_evals * steps_per_epoch, evaluate, saved if run.rank == 0 else None)
        )
    # One pass over the data is the whole training, in sinks where the device has them.
    parts = sinks(steps - start, config.iterations_per_loop) if run.sink else [(1, -1)]
    if run.sink and len(parts) > 1:
        log(
            f'{steps - start} steps in sinks of {parts[0][1]}, at the end one of {parts[1][1]}, for which the graph is '
            'compiled once more'
        )
    watch = Watch(monitor, saved, interruption, run.rank, run.sink)
    callbacks.append(watch)
    try:
        for count, length in parts:
            stop = monitor.step + count * length if run.sink else steps
            Model(step).train(
                count, steps_from(start=monitor.step, stop=stop), callbacks, dataset_sink_mode=run.sink, sink_size=length
            )
            if monitor.stopping:
                break
    except Exception as error:
        if (end := watch.after(error)) is None:
            raise
        raise end from None
    finally:
        watch.close()
    if monitor.stopping:
        raise monitor.end()
    speed = f', {monitor.fps:.1f} images/s' if monitor.fps else ''
    log(f'trained {counted(steps - start, "step")}{speed}; checkpoints in {directory}')


if __name__ == '__main__':
    main()
