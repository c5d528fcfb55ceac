"""The steps of a training, in sinks where the device has them."""

from __future__ import annotations

from collections.abc import Callable

import mindspore.dataset as ds
from mindspore.train import Callback, Model

from src.training.monitor import TrainingMonitor
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
        batches (callable): start, stop -> data set of the steps from `start` to `stop`; one pass over it is all of them.
        callbacks (list of Callback): called after `monitor`, before `watch`.
        iterations_per_loop (int): steps in a sink; None where the device has no sinks.

    A training that was stopped before its last step ends with the error `monitor.end()`; one that failed with what
    `watch.after` makes of it, with its last whole step saved.
    """
    plan, sink = monitor.plan, iterations_per_loop is not None
    parts = sinks(plan.steps, iterations_per_loop) if sink else [(1, -1)]
    if sink and len(parts) > 1:
        monitor.log(
            f'{plan.steps} steps in sinks of {parts[0][1]}, at the end one of {parts[1][1]}, for which the graph is '
            'compiled once more'
        )
    try:
        for count, length in parts:
            stop = monitor.step + count * length if sink else plan.stop
            data = batches(start=monitor.step, stop=stop)
            Model(step).train(count, data, [monitor, *callbacks, watch], dataset_sink_mode=sink, sink_size=length)
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


def sinks(steps: int, iterations_per_loop: int) -> list[tuple[int, int]]:
    """[(number of sinks, steps in each)] that are `steps` steps in all.

    Sinks of one length, if a length from half of `iterations_per_loop` divides the steps. Otherwise whole ones and then
    the rest in one, for which the graph is compiled again. None has a single step, as MindSpore runs that in another,
    slower way.
    """
    longest = min(iterations_per_loop, steps)
    for length in range(longest, max(longest // 2, 1), -1):
        if steps % length == 0:
            return [(steps // length, length)]
    whole, rest = divmod(steps, longest)
    if rest == 1:
        whole, rest = whole - 1, longest + 1
    return [(count, length) for count, length in ((whole, longest), (1, rest)) if count and length]
