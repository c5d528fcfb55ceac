"""The training graph is compiled through the compile cache."""

from __future__ import annotations

import contextlib

from mindspore.train import Callback

from src.graphs import Graphs


class Compiling(Callback):
    """The first step, or sink, of a run compiles its graph through `graphs`."""

    def __init__(self, graphs: Graphs):
        super().__init__()
        self.graphs, self.compiling = graphs, None

    def on_train_begin(self, run_context):
        """Called before the first step of a run, or of its first and its last sinks."""
        self.compiling = None

    def on_train_step_begin(self, run_context):
        """Called before a step, or a sink of steps."""
        if self.compiling is None:
            about = run_context.original_args()
            about.train_network.set_train()  # as Model does after this
            sink = about.batch_num if about.dataset_sink_mode else None
            self.compiling = contextlib.ExitStack()
            self.compiling.enter_context(
                self.graphs.compiling(about.train_network, about.train_dataset_element, 'training graph', sink)
            )

    def on_train_step_end(self, run_context):
        """Called after a step, or a sink of steps."""
        self.compiling.close()

    def __exit__(self, *error):
        if self.compiling is not None:
            self.compiling.__exit__(*error)
