"""An ONNX file in 8-bit integers, made by ONNX Runtime's quantizer, and compared with the float32 file on real images."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

from src.data.pipeline import LoadEvaluation
from src.data.records import Records
from src.deploy.formats import Function, Signature, convert_opset, load
from src.deploy.image_files import load_batches
from src.errors import InputError

CALIBRATION = 100  # images
MAX_LOSS = 1.0  # percentage points of top-1
OPSET = 17  # version of ONNX's operators; scales per channel need 13 at least
# The others stay in float32: they take little time, and with the classifier in integers the logits deviate twice as far.
QUANTIZED = ['Conv', 'Relu', 'Concat', 'MaxPool', 'AveragePool']
BATCH = 8


def batches(
    records: Records, numbers: np.ndarray, signature: Signature, title: str, size: int = BATCH
) -> Iterator[np.ndarray]:
    """Yield what a call of a file of `signature` takes for the records `numbers`; the last call is filled up with its first
    images. `size` is for files of any batch size. InputError naming a bad record."""
    loader = LoadEvaluation(records, 0, signature.image_size, signature.preprocessing)
    with tqdm(total=len(numbers), desc=title, unit='image', leave=False, disable=None) as bar:
        for samples in load_batches(map(int, numbers), signature.batch_size or size, loader.sample):
            images = np.stack([image.transpose(1, 2, 0) for image, _ in samples])
            yield signature.as_input(np.resize(images, (signature.batch_size or len(images), *images.shape[1:])))
            bar.update(len(images))


def spread(labels: np.ndarray, seed: int) -> np.ndarray:
    """Numbers of all records with the `labels` in random order: the first ones are equally many of each class as far as it
    has them."""
    order, before, turn = np.random.default_rng(seed).permutation(len(labels)), Counter(), []
    for label in labels[order].tolist():
        turn.append(before[label])  # how many of its class come before it
        before[label] += 1
    return order[np.argsort(turn, kind='stable')]


def quantize(path: Path, signature: Signature, train: Records, validation: tuple[Records, int], seed: int) -> dict:
    """Replace the float32 file `path` by one in 8-bit integers: activations in uint8, whose ranges CALIBRATION of the
    records `train` tell, weights in int8, with a scale for each output channel and biases that make up for their rounding.

    Returns the figures of `compare` on the `validation` records, and `megabytes` of both. InputError if it loses more than
    MAX_LOSS.
    """
    from onnxruntime import quantization

    calibration = train, spread(train.label, seed)[:CALIBRATION], signature
    original, prepared = path.with_name('float32.onnx'), path.with_name('prepared.onnx')
    shutil.move(path, original)
    convert_opset(original, OPSET)
    quantization.quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    scales = _round_weights(prepared, batches(*calibration, 'means of the activations', 1))
    inputs = ({'input': images} for images in batches(*calibration, 'ranges of the activations', 1))
    quantization.quantize_static(
        str(prepared),
        str(path),
        SimpleNamespace(get_next=lambda: next(inputs, None)),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=QUANTIZED,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={'TensorQuantOverrides': scales},
    )
    written = {'float32': original, 'int8': path}
    figures = compare({kind: load(file) for kind, file in written.items()}, signature, *validation)
    figures['megabytes'] = {kind: file.stat().st_size / 1e6 for kind, file in written.items()}
    if not figures['loss'] <= MAX_LOSS:
        raise InputError(
            f'{path.name}: {as_text(figures)}; this loses more than {MAX_LOSS:g} percentage points, no file was written; '
            'calibrate with other images (--data_dir, --seed)'
        )
    return {'calibration_images': len(calibration[1]), **figures}


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


def _round_weights(path, calls):
    """Change the biases in the ONNX file `path` by what the rounding of the weights adds on average in the `calls`, so that
    no output is shifted. Returns the scales of the weights, as `TensorQuantOverrides` of ONNX Runtime's quantizer: {weight:
    [options of each output channel]}. Every convolution has a bias."""
    import onnx
    from onnx import numpy_helper

    model, scales = onnx.load(path), {}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == 'Conv']
    means = _mean_inputs(path, {node.input[0]: None for node in convolutions}, calls)
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


def _mean_inputs(path, names, calls):
    """{name: float32 (channels,)}: means of the tensors `names` in the file `path`, over the `calls` and all positions."""
    import onnx
    import onnxruntime

    watched = onnx.load(path)
    del watched.graph.output[:]
    for name in names:
        watched.graph.node.append(onnx.helper.make_node('GlobalAveragePool', [name], [f'mean of {name}']))
        watched.graph.output.append(onnx.helper.make_tensor_value_info(f'mean of {name}', onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=['CPUExecutionProvider'])
    found = [[mean.mean((0, 2, 3)) for mean in session.run(None, {'input': images})] for images in calls]
    return {name: np.mean(means, 0) for name, means in zip(names, zip(*found))}


def compare(functions: dict[str, Function], signature: Signature, records: Records, offset: int) -> dict:
    """How the files float32 and int8 do on the `records`, from whose labels `offset` is subtracted: `top1` of each in per
    cent, `agreement` of their most probable classes in per cent, `loss` in percentage points and the number of `images`."""
    best = {kind: [] for kind in functions}
    for images in batches(records, np.arange(len(records)), signature, 'comparing'):
        for kind, call in functions.items():
            found = call(images)
            best[kind].append(found[1][:, 0] if signature.output == 'top5' else found[0].argmax(1))
    classes = {kind: np.concatenate(found)[: len(records)] for kind, found in best.items()}
    top1 = {kind: 100 * float((found + offset == records.label).mean()) for kind, found in classes.items()}
    agreement = 100 * float((classes['float32'] == classes['int8']).mean())
    return {'images': len(records), 'top1': top1, 'agreement': agreement, 'loss': top1['float32'] - top1['int8']}


def as_text(figures: dict) -> str:
    """One line with what `quantize` found."""
    top1, sizes, images = figures['top1'], figures['megabytes'], figures['images']
    return (
        f'top-1 {top1["int8"]:.2f} % in int8, {top1["float32"]:.2f} % in float32; the same class for '
        f'{figures["agreement"]:.2f} % of {images} images; {sizes["int8"]:.0f} and {sizes["float32"]:.0f} MB'
    )
