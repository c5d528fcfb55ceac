"""The steps of a training run, in sinks where the device has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mindspore.dataset as ds
from mindspore.train import Model

from src.errors import counted
from src.training.monitor import Monitor
from src.training.plan import Plan
from src.training.step import TrainStep
from src.training.stopping import Guard, save_after


def fit(step: TrainStep, batches: Callable[[range, int], ds.Dataset], monitor: Monitor, iterations_per_loop: int) -> None:
    """Do the steps of the plan; `batches` makes the data set of some steps with images of a size, in one pass.

    Where the device has sinks, each is of `iterations_per_loop` steps or fewer. A training run that stops before its last
    step ends with `State.error`; one that failed with what `save_after` makes of it, with its last whole step saved.
    """
    state, checkpoints = monitor.state, monitor.checkpoints
    sink = state.run.sink
    with Guard(state, checkpoints):
        try:
            monitor.evaluate_if_due()  # what an earlier run has left to do
            for image_size, count, length in pieces(state.plan, iterations_per_loop if sink else None, state.run.log):
                if state.stopping:
                    break
                data = batches(range(state.step, state.step + count * length), image_size)
                epochs, sink_size = (count, length) if sink else (1, -1)
                Model(step).train(epochs, data, monitor, dataset_sink_mode=sink, sink_size=sink_size)
        except Exception as error:
            if (end := save_after(error, state, checkpoints)) is None:
                raise
            raise end from None
    if state.stopping:
        raise state.error()
    if state.plan.steps > 0:  # else only an evaluation was left
        fps = monitor.fps(monitor.total)
        speed = f', {fps:.1f} images/s' if fps else ''
        state.run.log(f'trained {counted(state.plan.steps, "step")}{speed}; checkpoints in {state.directory}')


def pieces(plan: Plan, iterations_per_loop: int | None, log: Callable[[str], None]) -> Iterator[tuple[int, int, int]]:
    """Yield (image size, number of sinks, steps in each) of what needs a data set and a graph of its own: without sinks the
    stages of `plan`, of the first what is left of it. Each is announced by a line to `log`."""
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
            log(f'{steps} steps in sinks of {sunk[0][1]}, at the end one of {sunk[1][1]}, which is compiled once more')
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
