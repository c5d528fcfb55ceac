"""Weights and biases of convolutions in 8 bits, so that no sum overflows and no output is shifted on average."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np


def prepare(path: str | Path, inputs: Iterable[np.ndarray]) -> dict:
    """Change the biases in the ONNX file `path` by what the rounding of the weights adds on average, for the `inputs` of the
    model. Gives the scales of the weights, as `TensorQuantOverrides` of ONNX Runtime's quantizer: {weight: [options of each
    output channel]}. Every convolution has a bias.
    """
    import onnx
    from onnx import numpy_helper

    model, scales = onnx.load(path), {}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
    means = _mean_inputs(model, convolutions, inputs)
    for node in convolutions:
        source, weight, bias = node.input
        weights, biases = (numpy_helper.to_array(stored[name]) for name in (weight, bias))
        scale = weight_scales(weights)
        step = scale[:, None, None, None]
        error = (np.round(weights / step) * step - weights).sum((2, 3)) @ means[source]
        stored[bias].CopyFrom(numpy_helper.from_array((biases - error).astype(np.float32), bias))
        scales[weight] = [{'axis': 0, 'scale': value, 'zero_point': np.int8(0)} for value in scale]
    onnx.save(model, path)
    return scales


def _mean_inputs(model, convolutions, inputs):
    """{name: float32 (channels,)}: means of what the `convolutions` of `model` take, over `inputs` and all positions."""
    import onnx
    import onnxruntime

    watched, names = onnx.ModelProto(), list(dict.fromkeys(node.input[0] for node in convolutions))
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.node.append(onnx.helper.make_node('GlobalAveragePool', [name], [f'mean of {name}']))
        watched.graph.output.append(onnx.helper.make_tensor_value_info(f'mean of {name}', onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=['CPUExecutionProvider'])
    found = [[part.mean((0, 2, 3)) for part in session.run(None, {'input': images})] for images in inputs]
    return {name: np.mean(parts, 0) for name, parts in zip(names, zip(*found))}


def weight_scales(weights: np.ndarray) -> np.ndarray:
    """Scales float32 (out,) of the integers for the `weights` (out, in, height, width) of a convolution.

    x86 processors without VNNI add the products of two neighbouring inputs in 16 bits, in the order height, width, input
    channel. With inputs up to 255 the sum fits if two such weights of the same sign add up to 128 at most: 127 and
    rounding. So most channels use more of the 8 bits than 7.
    """
    rows = weights.transpose(0, 2, 3, 1).reshape(len(weights), -1).astype(np.float64)
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
    largest = np.maximum(*(np.maximum(sign * pairs, 0).sum(2).max(1) for sign in (1, -1)))
    return np.where(largest > 0, largest / 127, 1).astype(np.float32)
