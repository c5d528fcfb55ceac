"""The small training that the checks run: its step, its data, its loop and what is kept of it."""

import time

import mindspore as ms
import numpy as np
from mindspore.train import Callback, Model

from src.data import pipeline
from src.inceptionv4 import InceptionV4, set_precision
from src.options import load_settings
from src.training.optimizer import create_optimizer
from src.training.step import NetworkWithLoss, TrainStep, on_host
from src.weights import checkpoint
from tests.npu.reference import NETWORKS

SMALL = NETWORKS['small']
BATCH = 8  # images


def settings_of(options, **more):
    """The settings of a training of `InceptionV4(**options)` on labels from 1."""
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    return load_settings([]).but(**{**listed, 'label_offset': '1', 'batch_size': BATCH, 'num_workers': 1, **more})


def make_step(run, options, drop_overflow_update, state=None):
    """The training step of `InceptionV4(**options)` with dynamic loss scale and moving averages, in the precision of `run`.
    `state` are values for its parameters, or for some of them."""
    network = set_precision(InceptionV4(**options), run.amp_level)
    rates = np.full(100000, 0.002, np.float32)
    optimizer = create_optimizer(network, settings_of(options), rates, run.device_target == 'CPU')
    with_loss = NetworkWithLoss(network, 0.1, False, ms.float32 if run.amp_level == 'O0' else ms.float16)
    step = TrainStep(with_loss, optimizer, 'dynamic', 0.0, 0.9, drop_overflow_update)
    if state:
        checkpoint.load_into(step, state, 'state', [name for name in step.parameters_dict() if name not in state])
    return step


def training_data(records, options, steps, run, **more):
    """The batches of `steps` for `InceptionV4(**options)`."""
    return pipeline.training_dataset(records, 1, settings_of(options, **more), steps, run)


class Recorder(Callback):
    """Keeps `outputs`, {step: outputs of the step}, and `times`, {step: seconds of a clock}, of the last step of every sink,
    or of every step on a device without sinks. After step `at` it calls `after()`. `first`: steps done before."""

    def __init__(self, first=0, at=None, after=None):
        self.first, self.at, self.after = first, at, after
        self.outputs, self.times = {}, {}

    def on_train_step_end(self, run_context):
        about = run_context.original_args()
        step = self.first + about.cur_step_num
        self.outputs[step] = on_host(about.net_outputs)
        self.times[step] = time.perf_counter()
        if step == self.at:
            self.after()


def train(run, step, data, sinks, recorder):
    """Train as train.py does: (number, length) of sinks, or step by step all of `data` on a device without sinks."""
    count, length = sinks if run.sink else (1, -1)
    Model(step).train(count, data, [recorder], dataset_sink_mode=run.sink, sink_size=length)
    return recorder
