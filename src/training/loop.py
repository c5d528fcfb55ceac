"""The steps of a training, in sinks where the device has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mindspore.dataset as ds
from mindspore.train import Callback, Model

from src.errors import counted
from src.training.callbacks import Every
from src.training.monitor import TrainingMonitor
from src.training.plan import Plan
from src.training.step import TrainStep
from src.training.watch import Watch


def fit(
    step: TrainStep,
    batches: Callable[..., ds.Dataset],
    monitor: TrainingMonitor,
    callbacks: list[Callback],
    watch: Watch,
    iterations_per_loop: int | None = None,
) -> None:
    """Do the steps of `monitor.plan`.

    Args:
        batches (callable): start, stop, image_size -> data set of the steps from `start` to `stop`; one pass over it is all
            of them.
        callbacks (list of Callback): `monitor` among them, in the order in which they are called; `watch` is the last.
        iterations_per_loop (int): steps in a sink; None where the device has no sinks.

    A training that was stopped before its last step ends with the error `monitor.error_of_stop()`; one that failed with what
    `watch.after` makes of it, with its last whole step saved.
    """
    sink = iterations_per_loop is not None
    try:
        for callback in callbacks:
            if isinstance(callback, Every):
                callback.when_due()  # what an earlier run has left to do
        for image_size, count, length in parts(monitor.plan, iterations_per_loop, monitor.log):
            if monitor.stopping:
                break
            stop = monitor.step + count * length
            data = batches(start=monitor.step, stop=stop, image_size=image_size)
            epochs, sink_size = (count, length) if sink else (1, -1)
            Model(step).train(epochs, data, [*callbacks, watch], dataset_sink_mode=sink, sink_size=sink_size)
    except Exception as error:
        if (end := watch.after(error)) is None:
            raise
        raise end from None
    finally:
        watch.close()
    if monitor.stopping:
        raise monitor.error_of_stop()
    speed = f', {monitor.fps:.1f} images/s' if monitor.fps else ''
    if monitor.plan.steps > 0:  # else only an evaluation was left
        monitor.log(f'trained {counted(monitor.plan.steps, "step")}{speed}; checkpoints in {monitor.directory}')


def parts(plan: Plan, iterations_per_loop: int | None, log: Callable[[str], None]) -> Iterator[tuple[int, int, int]]:
    """Yield (image size, number of sinks, steps in each) of the parts of `plan`, each of which needs a data set and a graph
    of its own: without sinks its stages, of the first what is left of it. Each is announced by a line to `log`."""
    stages = [(size, start, stop, stop - max(start, plan.start)) for size, start, stop in plan.stages]
    length = sink_length([steps for *_, steps in stages if steps > 0], iterations_per_loop or 1)
    for number, (size, start, stop, steps) in enumerate(stages, 1):
        if steps <= 0:
            continue
        if len(stages) > 1:
            first, last = (step / plan.steps_per_epoch for step in (start, stop))
            log(
                f'stage {number} of {len(stages)}: images of {size} x {size} pixels, epochs {first:g} to {last:g}, '
                f'steps {start + 1} to {stop}; the graph is compiled anew'
            )
        sunk = sinks(steps, length) if iterations_per_loop else [(steps, 1)]
        if len(sunk) > 1:
            log(
                f'{steps} steps in sinks of {sunk[0][1]}, at the end one of {sunk[1][1]}, for which the graph is compiled '
                'once more'
            )
        for count, length_here in sunk:
            yield size, count, length_here


def sink_length(steps: list[int], iterations_per_loop: int) -> int:
    """The steps in a sink, for stages of `steps` steps: the largest number from a tenth of `iterations_per_loop` up to it
    that divides them all; if there is none, `iterations_per_loop`, and each stage ends with what is left over.

    The rule is one length in a process, wherever the steps allow it. MindSpore keeps the length of the loop on the device in
    one variable for all graphs of a process (`npu_runconfig/iterations_per_loop`), set when a graph with sinks is compiled:
    a graph must not run after one with another length was compiled. Here each part compiles its own, and no earlier one
    runs again. Whether an NPU takes the second value was not seen: the acceptance check's `shorter last sink` tries it.
    Sinks of a tenth cost less than the minutes of a second compilation.
    """
    longest = min(iterations_per_loop, max(steps, default=1))
    divisors = range(longest, max(longest // 10 - 1, 1), -1)
    return next((length for length in divisors if not any(count % length for count in steps)), longest)


def sinks(steps: int, length: int) -> list[tuple[int, int]]:
    """[(number of sinks, steps in each)] that are `steps` steps in all: sinks of `length`, and what is left in one. None has
    a single step, as MindSpore runs that in another, slower way, unless there is only one step."""
    whole, rest = divmod(steps, length)
    if rest == 1 and whole:
        whole, rest = whole - 1, length + 1
    return [(count, length) for count, length in ((whole, length), (1, rest)) if count and length]
