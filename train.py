"""Train InceptionV4.

    python train.py --data_dir DIR                                  on the CPU, or on an NPU
    python train.py --data_dir DIR --resume auto                    resume the training run in the log directory
    python train.py --data_dir DIR --config_path recipes/finetune.yaml --restore_path WEIGHTS
    bash scripts/run_distribute_train.sh RANK_TABLE --data_dir DIR  on several NPUs

default_config.yaml lists the options. `train` tells the story; src/training has the chapters: plan.py (steps, learning
rate), step.py (loss, gradients, overflow), optimizer.py, monitor.py (what happens after each step), checkpoints.py,
resume.py, signals.py, stopping.py (saving before an end).
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import mindspore as ms
import mindspore.dataset as ds
from mindspore.train import Model

from eval import evaluate_path
from src import collective, runtime
from src.data import jpeg, pipeline
from src.data.classes import balanced, count_classes, label_offset
from src.data.preprocess import PREPROCESSING
from src.data.records import Records, open_records
from src.errors import counted, entry_point, only_warned
from src.evaluation import report
from src.evaluation.evaluation import Evaluation, open_validation
from src.heartbeat import EVALUATING
from src.inceptionv4 import InceptionV4, set_precision
from src.options import load_settings, named_arguments, save_settings
from src.training import curves, frozen_trunk, metrics, resume
from src.training.checkpoints import Checkpoints
from src.training.monitor import Monitor
from src.training.optimizer import create_optimizer, freeze
from src.training.plan import default_batch_size, learning_rates, make_plan, require_memory
from src.training.signals import Signals
from src.training.state import State
from src.training.step import NetworkWithLoss, TrainStep
from src.training.stopping import Guard, save_after
from src.weights import checkpoint
from src.weights.read import read_weights


class TrainingSet(NamedTuple):
    """The training records, what is subtracted from their labels, the number of classes."""

    records: Records
    offset: int
    num_classes: int


@entry_point
def main(argv=None):
    """The command line."""
    argv = named_arguments(sys.argv[1:] if argv is None else argv, 'device_id', 'data_dir')
    settings = load_settings(argv)
    if settings.mode == 'evaluate':
        run, _ = start(settings)
        return evaluate_path(argv, run, settings.eval_dir or run.checkpoints)
    with Signals() as signals:  # before MindSpore has threads
        train(settings, signals)


def train(settings, signals):
    """A training run, from its records to its last checkpoint."""
    run, reserved = start(settings)
    data, settings = load_data(settings, run)
    plan = make_plan(len(data.records), settings, run.world)
    run.log(f'{plan.steps_per_epoch} steps of {plan.batch_size} images x {plan.world} an epoch; {plan.stop} steps')

    # Resume before restore: a training run that is resumed has weights of its own.
    saved, plan, settings, training = resume.find_start(settings, run, plan, data.records.fingerprint)
    if plan.start >= plan.stop:
        more = '--max_epochs' + ' or --patience' * bool(settings.patience)
        run.log(f'training is complete: {plan.start} of {plan.stop} steps are done; raise {more} to continue')
        if plan.evaluated >= plan.stop:
            return
    network = create_network(settings, run, restore_path='' if plan.start else settings.restore_path)
    rates = learning_rates(settings, plan.stop, plan.steps_per_epoch)
    step = create_step(settings, run, network, rates, weights_of_classes(settings, run, data))
    if saved:  # only now, as the optimizer's state is in it
        resume.load(step, saved, plan.start, settings.resume_override)
    if plan.world > 1:  # last: the other ranks get what rank 0 has initialised, restored or resumed
        collective.share(step.get_parameters())

    resumed = saved and saved.path
    del saved  # half a gigabyte
    about = {**runtime.facts(run), 'training': training, 'resumed': resumed and str(resumed)}
    record = metrics.begin(run.directory if run.rank == 0 else None, plan, settings, about, run.log)
    bad = pipeline.BadRecords(plan.steps_per_epoch * plan.batch_size, plan.epochs)
    state = State(plan, run, signals, bad, record)
    info = describe(settings, data, training)
    checkpoints = Checkpoints(state, step, info, settings, reserved[1] if reserved else (), resumed)
    evaluation = create_evaluation(settings, run, data) if settings.mode == 'train_and_evaluate' else None
    batches = create_batches(settings, data, state, step, evaluation)
    monitor = Monitor(settings, step, rates, checkpoints, evaluation)
    if run.rank == 0:
        with only_warned(run.log, 'config.yaml'):
            save_settings(settings, run.directory / 'config.yaml')

    try:
        fit(step, batches, monitor)
        if evaluation and run.rank == 0:
            with state.during(EVALUATING), only_warned(run.log, 'report on the evaluation'):
                directory = settings.report or checkpoints.follow() / 'report'
                report.write(directory, evaluation, f'training after step {evaluation.best["step"]}')
        record.end(state.step)
    except BaseException as error:
        record.end(state.step, error)
        raise
    if run.rank == 0:
        curves.at_end(checkpoints.follow(), run.log)


def fit(step: TrainStep, batches: Callable[[range, int], ds.Dataset], monitor: Monitor) -> None:
    """Do the steps of the plan; `batches` makes the data set of some steps with images of a size, in one pass.

    Where the device has sinks, each is of `iterations_per_loop` steps or fewer. A training run that stops before its last
    step ends with `State.error`; one that failed with what `save_after` makes of it, with its last whole step saved.
    """
    state, plan, sink = monitor.state, monitor.state.plan, monitor.state.run.sink
    with Guard(monitor.checkpoints):
        try:
            monitor.evaluate_if_due()  # what an earlier run has left to do
            for image_size, count, length in plan.sinks(monitor.settings.iterations_per_loop if sink else 1):
                if state.stopping or state.finished:
                    break
                data = batches(range(state.step, state.step + count * length), image_size)
                epochs, sink_size = (count, length) if sink else (1, -1)
                Model(step).train(epochs, data, monitor, dataset_sink_mode=sink, sink_size=sink_size)
        except Exception as error:
            if (end := save_after(error, monitor.checkpoints)) is None:
                raise
            raise end from None
        finally:
            state.bar.close()
    if state.stopping:
        raise state.error()
    if state.step > plan.start:  # else only an evaluation was left
        state.run.log(f'trained {counted(state.step - plan.start, "step")}; checkpoints in {state.directory}')


def start(settings):
    """The `Run` that `settings` describe: device, ranks, directories, log; on rank 0 what `resume.reserve` returns."""
    run, reserved = runtime.start(settings), None
    if settings.mode != 'evaluate':  # before the log is opened, as the log of a replaced training run is renamed
        reserved = resume.on_rank_0(run, resume.reserve, settings, run)
    run = runtime.open_log(run, settings, run.directory / settings.log_name)
    run.log(jpeg.describe())
    return run, reserved


def load_data(settings, run):
    """The `TrainingSet`; `settings` with the values that auto and 0 stand for, the same on all ranks."""
    records = open_records(settings.data_dir, 'train')
    if records.left_out:
        run.log(f'left out: {records.left_out}')
    offset, assumed = label_offset(settings.label_offset, records)
    num_classes, source = count_classes(settings.num_classes, records, offset)
    run.log(f'{len(records)} training images, labels from {offset}{assumed}, {num_classes} classes ({source})')
    batch_size = settings.batch_size or default_batch_size(run.world)
    settings = settings.but(
        num_classes=num_classes, label_offset=str(offset), batch_size=batch_size, amp_level=run.amp_level
    )
    same = {'the training records': records.fingerprint, **settings.group('Data', 'Network', 'Recipe')}
    collective.require_same(same, run.rank, run.world)
    return TrainingSet(records, offset, num_classes), settings


def create_network(settings, run, restore_path):
    """The network in its precision, with the weights of `restore_path` if there is one, its frozen layers frozen."""
    network = InceptionV4(**settings.network())
    if restore_path:
        run.log(restore(network, restore_path))
    if run.device_target == 'CPU':
        require_memory(settings, sum(p.size for p in network.get_parameters()), run.ranks_here)
    freeze(network, settings.freeze)
    return set_precision(network, run.amp_level)


def restore(network, path):
    """Start from the weights in the file `path`, all but the classifiers, as `restore_path` of the original does. Returns a
    line on what was loaded."""
    parameters, _ = read_weights(path)
    loaded, left = checkpoint.load_into(network, checkpoint.averaged(parameters), path, checkpoint.CLASSIFIERS)
    shown = ', '.join(left) if len(left) <= 6 else f'{len(left)}: {", ".join(left[:3])}, ...'
    return f'{path}: {len(loaded)} of {len(loaded) + len(left)} parameters loaded, all but {shown}'


def weights_of_classes(settings, run, data):
    """The factors that `class_weights` means, float32 (num_classes,); None for none."""
    if settings.class_weights == 'none':
        return None
    weights = balanced(data.records.label - data.offset, data.num_classes)
    run.log(f'class weights from {weights[weights > 0].min():.2f}, of the largest class, to {weights.max():.2f}')
    return weights


def create_step(settings, run, network, rates, class_weights=None):
    """The `TrainStep`: loss, optimizer, loss scale, clipping, moving averages."""
    on_cpu, in_float32 = run.device_target == 'CPU', run.amp_level == 'O0'
    dtype = ms.float32 if in_float32 else ms.float16
    with_loss = NetworkWithLoss(network, settings.label_smoothing, settings.aux_logits, dtype, class_weights)
    optimizer = create_optimizer(network, settings, rates, on_cpu)
    # float32 on the CPU needs no loss scale.
    loss_scale = None if settings.loss_scale == 'dynamic' and in_float32 and on_cpu else settings.loss_scale
    return TrainStep(with_loss, optimizer, loss_scale, settings.clip_norm, settings.ema_decay, settings.drop_overflow_update)


def describe(settings, data, training):
    """What each checkpoint records beside parameters and step."""
    return {
        'config': settings,
        'data': data.records.fingerprint,
        'preprocessing': PREPROCESSING._asdict(),
        'class_names': (data.records.class_names or [])[: data.num_classes + data.offset] or None,
        'training': training,
    }


def create_batches(settings, data, state, step, evaluation):
    """steps (range), image size -> data set of these steps; where layers are frozen, of the outputs of these, which `step`
    and `evaluation` then take."""
    load_images = pipeline.LoadTraining(data.records, data.offset, settings, state.bad)
    return frozen_trunk.cached(load_images, state, step, evaluation) or (
        lambda steps, image_size: pipeline.training_dataset(
            data.records, data.offset, settings.but(image_size=image_size), steps, state.run, state.bad
        )
    )


def create_evaluation(settings, run, data):
    """The `Evaluation` of a training run on `data`: validation images, and a network of its own."""
    if settings.report and run.rank == 0:
        report.prepare(settings.report)  # not to fail after the training
    known = data.records.class_names, settings.label_offset, 'the training records'
    validation, offset = open_validation(settings, run.log, *known)
    return Evaluation(validation, offset, settings, run)


if __name__ == '__main__':
    main()
