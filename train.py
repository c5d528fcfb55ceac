"""Train InceptionV4: `python train.py --data_dir DIR [--option value ...]`; default_config.yaml lists the options."""

import sys
from collections import namedtuple
from functools import partial

import mindspore as ms

from eval import evaluate_path
from src import collective, runtime
from src.data import jpeg, pipeline
from src.data.bad_records import BadRecords
from src.data.classes import assumption, count_classes, label_offset
from src.data.preprocess import PREPROCESSING
from src.data.records import fingerprint, open_records
from src.errors import entry_point, only_warned
from src.evaluation import report
from src.evaluation.evaluation import Evaluation, open_validation
from src.graphs import Compiling
from src.inceptionv4 import InceptionV4, set_precision
from src.options import load_settings, named_arguments, save_settings
from src.training import curves, features, memory, metrics, resume
from src.training.callbacks import Checkpoints, Evaluations
from src.training.interruption import Interruption
from src.training.loop import fit
from src.training.monitor import TrainingMonitor
from src.training.optimizer import OPTIMIZER_OPTIONS, decayed_parameters, freeze, make_optimizer
from src.training.pace import Pace
from src.training.plan import default_batch_size, make_plan, rates_of
from src.training.stages import stage_sizes
from src.training.step import NetworkWithLoss, TrainStep, l2_term
from src.training.watch import Watch

# Of the training: its records and their `fingerprint`, what is subtracted from labels, number of classes.
TrainingSet = namedtuple('TrainingSet', 'records fingerprint offset num_classes')


@entry_point
def main(argv=None):
    argv = named_arguments(sys.argv[1:] if argv is None else argv, 'device_id', 'data_dir')
    config = load_settings(argv)
    if config.mode == 'evaluate':
        run, claim = start(config)
        return evaluate_path(argv, run, config.eval_dir or run.checkpoints, run.log)
    with Interruption() as interruption:  # before MindSpore has threads
        train(config, interruption)


def train(config, interruption):
    """The training that `config` (Settings) describes, from its records to its last checkpoint."""
    if config.tensorboard:
        metrics.need_tensorboard()
    run, claim = start(config)
    data, config, plan = open_training_set(config, run)
    # Resume before restore: a training that goes on has weights of its own.
    state, plan, training, config = resume.find_start(
        run, config.resume, run.directory, config, data.fingerprint, config.resume_override, plan, run.log
    )
    if plan.start >= plan.stop:
        run.log(f'nothing is left to train: {plan.start} of {plan.stop} steps are done; a larger --max_epochs goes on')
        if plan.evaluated >= plan.stop:
            return
    network = build_network(config, run, restore_path='' if plan.start else config.restore_path)
    rates = rates_of(plan, config)
    step = build_step(config, run, network, rates)
    if state:  # only now, as the optimizer's state is in it
        resume.load(step, state, plan.start, config.resume_override)
    if plan.world > 1:  # last: the other ranks get what rank 0 has initialised, restored or resumed
        collective.share(step.get_parameters())

    about = {**runtime.facts(run), 'training': training, 'resumed': str(state.path) if state else None}
    del state  # half a gigabyte
    record = metrics.begin(run.directory if run.rank == 0 else None, plan, config, about, run.log)
    bad = BadRecords(plan.steps_per_epoch * plan.batch_size, plan.epochs)
    monitor = build_monitor(config, run, plan, network, rates, bad, interruption, record)
    saving, callbacks = build_callbacks(config, run, claim, data, monitor, step, training, about['resumed'])
    watch = Watch(monitor, saving, interruption, run.rank, run.sink)
    batches = partial(build_batches, config, run, data, bad)
    if config.cache_features:
        copies = min(config.cache_features, plan.epochs)
        batches = features.cached(data, step.network, copies, config, run, bad)
    with record.until_end(lambda: monitor.step):
        fit(step, batches, monitor, callbacks, watch, config.iterations_per_loop if run.sink else None)
    if run.rank == 0:
        curves.at_end(saving.follow(), run.log)


def start(config):
    """The `Run` that `config` describes, with its log; rank 0's `resume.Claim` to the directory, None on other ranks."""
    run, claim = runtime.start(config), None
    if config.mode != 'evaluate':  # before the log is opened, as the log of a replaced training is renamed
        claim = resume.on_rank_0(run, resume.claim, run.directory, config.resume, config.overwrite, config.log_name)
    run = runtime.open_log(run, config, run.directory / config.log_name)
    run.log(jpeg.describe())
    for line in config.idle() if config.mode != 'evaluate' else ():
        run.log(line)
    return run, claim


def open_training_set(config, run):
    """The `TrainingSet` that `config` names; `config` with the values that `auto` and 0 stand for; the `Plan` they make."""
    records = open_records(config.data_dir, 'train')
    if records.left_out:
        run.log(f'left out: {records.left_out}')
    offset, assumed = label_offset(config.label_offset, records), assumption(config.label_offset, records)
    num_classes, source = count_classes(config.num_classes, records, offset)
    batch_size = config.batch_size or default_batch_size(run.world)
    config = config.but(num_classes=num_classes, label_offset=str(offset), batch_size=batch_size, amp_level=run.amp_level)
    sizes = stage_sizes(config.image_sizes, config.image_size, config.aux_logits, config.cache_features)
    length = config.max_epochs, config.max_train_steps
    plan = make_plan(len(records), batch_size, run.world, *length, config.data_dir, sizes)
    run.log(
        f'{len(records)} training images, labels from {offset}{assumed}, {num_classes} classes ({source}), '
        f'{plan.steps_per_epoch} steps of {batch_size} images x {plan.world} an epoch; {plan.stop} steps'
    )
    same = {'the training records': fingerprint(records), **config.group('Data', 'Network', 'Recipe')}
    collective.require_same(same, run.rank, run.world)
    return TrainingSet(records, same['the training records'], offset, num_classes), config, plan


def build_network(config, run, restore_path):
    """The network in its precision, with the weights of `restore_path` if there is one, its frozen parts frozen."""
    network = InceptionV4(**config.network())
    if restore_path:
        run.log(resume.restore(network, restore_path))
    if run.device_target == 'CPU':
        weights = sum(p.size for p in network.get_parameters())
        peak = memory.FEATURES if config.cache_features else memory.TRAINING
        memory.check(peak, weights, config.batch_size, max(config.image_sizes or [config.image_size]), run.ranks_here)
    parts = features.frozen(network, config.freeze, config.cache_features, config.aux_logits, run.world, run.log)
    freeze(network, parts)
    return set_precision(network, run.amp_level)


def build_step(config, run, network, rates):
    """The `TrainStep`: loss, optimizer, loss scale, clipping, moving averages."""
    on_cpu, in_float32 = run.device_target == 'CPU', run.amp_level == 'O0'
    options = {name: config[name] for name in OPTIMIZER_OPTIONS}
    optimizer = make_optimizer(config.optimizer, network, rates, **options, on_cpu=on_cpu)
    aux_loss_weight = config.aux_loss_weight if config.aux_logits else None
    augment_dtype = ms.float32 if in_float32 else ms.float16
    with_loss = NetworkWithLoss(network, config.label_smoothing, aux_loss_weight, augment_dtype)
    # float32 on the CPU needs no loss scale.
    loss_scale = None if config.loss_scale == 'dynamic' and in_float32 and on_cpu else config.loss_scale
    return TrainStep(with_loss, optimizer, loss_scale, config.clip_norm, config.ema_decay, config.drop_overflow_update)


def build_batches(config, run, data, bad, start, stop, image_size):
    """The batches of the steps `start` to `stop`."""
    settings = config.but(image_size=image_size)
    return pipeline.training_dataset(data.records, data.offset, settings, range(start, stop), run, bad)


def build_monitor(config, run, plan, network, rates, bad, interruption, record):
    """The `TrainingMonitor`: log lines, and when the training must end."""
    every_rank = partial(collective.gathered, rank=run.rank, world=plan.world) if plan.world > 1 else None
    return TrainingMonitor(
        run.log,
        rates,
        plan,
        config.display_every,
        interruption=interruption,
        any_rank=collective.any_rank if plan.world > 1 else bool,
        l2_term=partial(l2_term, decayed_parameters(network), config.weight_decay),
        max_overflow_steps=config.max_overflow_steps,
        directory=run.checkpoints,
        bad=bad,
        metrics=record,
        pace=Pace(run.sink, pipeline.workers(config.num_workers, run.ranks_here), every_rank),
    )


def build_callbacks(config, run, claim, data, monitor, step, training, resumed):
    """(`Checkpoints`, which every rank has in case of need; the callbacks of this rank)"""
    plan, is_rank_0 = monitor.plan, run.rank == 0
    info = {
        'config': config,
        'data': data.fingerprint,
        'preprocessing': PREPROCESSING._asdict(),
        'class_names': (data.records.class_names or [])[: data.num_classes + data.offset] or None,
        'training': training,
    }
    kept = {'keep': config.keep_checkpoint_max, 'replaced': claim.replaced if claim else (), 'resumed': resumed}
    every = config.save_checkpoint_steps or plan.steps_per_epoch
    saving = Checkpoints(monitor, every, run.checkpoints, step, info, spare=not is_rank_0, **kept)
    callbacks = [Compiling(run.graphs), monitor]  # the monitor may compile an all-reduce, a graph of its own
    if is_rank_0:
        with only_warned(run.log, 'config.yaml'):
            save_settings(config, run.directory / 'config.yaml')
        callbacks.append(saving)
    if config.mode == 'train_and_evaluate':
        evaluation = build_evaluation(config, run, data)
        evaluate = partial(evaluation.of_training, step, monitor.asked_to_stop, lambda: monitor.step)
        every, marking = config.epochs_between_evals * plan.steps_per_epoch, saving if is_rank_0 else None
        at_end = report.at_end(config.report, run.checkpoints, evaluation, run.log)
        callbacks.append(Evaluations(monitor, every, evaluate, marking, at_end, fingerprint(evaluation.records)))
    return saving, callbacks


def build_evaluation(config, run, data):
    """The `Evaluation` of a training on `data`: validation images, and a network of its own."""
    known = (data.records.class_names, config.label_offset, 'the training records')
    validation, offsets = open_validation(config, run.log, *known)
    kind = features.FeatureEvaluation if config.cache_features else Evaluation
    return kind(validation, offsets.possible[0], config, run)


if __name__ == '__main__':
    main()
