"""An ONNX file in 8-bit integers, made by ONNX Runtime's quantizer, and compared with the float32 file on real images."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from src.data.classes import Offsets
from src.data.preprocess import evaluation_image
from src.data.records import Records
from src.deploy.formats import Function, Signature, convert_opset, load
from src.deploy.image_files import load_batches
from src.errors import InputError

CALIBRATION = 100  # images
MAX_LOSS = 1.0  # percentage points of top-1, without labels of agreement
OPSET = 17  # version of ONNX's operators; scales per channel need 13 at least
# The others stay in float32: they take little time, and with the classifier in integers the logits deviate twice as far.
QUANTIZED = ['Conv', 'Relu', 'Concat', 'MaxPool', 'AveragePool']
BATCH = 8


class Sample(NamedTuple):
    """Some of a data set's records, and how their labels become class numbers, None if the network does not know them."""

    records: Records
    numbers: np.ndarray
    offsets: Offsets | None = None

    def labels(self, predicted: np.ndarray) -> np.ndarray | None:
        """int64 (images,), as the network counts them; where that is open, by the classes that it has `predicted` for the
        images. InputError if it stays open."""
        if self.offsets is None:
            return None
        labels = self.records.label[self.numbers]
        hits = [int((predicted == labels - offset).sum()) for offset in self.offsets.possible]
        offset, why = self.offsets.settled(hits, len(labels))
        if why:
            print(why)
        return labels - offset

    def batches(self, signature: Signature, title: str, size: int = BATCH) -> Iterator[tuple[np.ndarray, int]]:
        """Yield what a call of a file of `signature` takes, and how many images of it are of the sample: the last call is
        filled up with the first ones. `size` is for files of any batch size. InputError naming a bad record."""

        def load(number):
            try:
                encoded = self.records.read(number)
                return evaluation_image(encoded, signature.image_size, signature.preprocessing, self.records.upright)
            except ValueError as error:
                raise InputError(f'{self.records.damage(number, error)}; replace or remove it') from error

        with tqdm(total=len(self.numbers), desc=title, unit='image', leave=False, disable=None) as bar:
            for images in load_batches(map(int, self.numbers), signature.batch_size or size, load):
                filled = np.resize(images, (signature.batch_size or len(images), *images[0].shape))
                yield signature.as_input(filled), len(images)
                bar.update(len(images))


def choose_samples(train: Records, validation: Sample | None, seed: int) -> tuple[Sample, Sample]:
    """CALIBRATION training images, and those to compare both files on: `validation`, or without it as many other training
    images."""
    order = spread(train.label, seed)
    count = min(CALIBRATION, len(order) if validation else -(-len(order) // 2))
    return Sample(train, order[:count]), validation or Sample(train, order[count : 2 * count])


def spread(labels: np.ndarray, seed: int) -> np.ndarray:
    """Numbers of all records with the `labels` in random order: the first ones are equally many of each class as far as it
    has them."""
    order, before, turn = np.random.default_rng(seed).permutation(len(labels)), Counter(), []
    for label in labels[order].tolist():
        turn.append(before[label])  # how many of its class come before it
        before[label] += 1
    return order[np.argsort(turn, kind='stable')]


def quantize(path: Path, signature: Signature, calibration: Sample, compared: Sample) -> dict:
    """Replace the float32 file `path` by one in 8-bit integers: activations in uint8, whose ranges the images of
    `calibration` tell, weights in int8, with a scale for each output channel and biases that make up for their rounding.

    Returns the figures of `compare`, and `megabytes` of both. InputError if it loses more than MAX_LOSS.
    """
    from onnxruntime import quantization

    original, prepared = path.with_name('float32.onnx'), path.with_name('prepared.onnx')
    shutil.move(path, original)
    convert_opset(original, OPSET)
    quantization.quant_pre_process(str(original), str(prepared), skip_symbolic_shape=True)
    scales = _round_weights(prepared, calibration.batches(signature, 'means of the activations', 1))
    inputs = ({'input': images} for images, _ in calibration.batches(signature, 'ranges of the activations', 1))
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
    figures = compare({kind: load(file) for kind, file in written.items()}, signature, compared)
    figures['megabytes'] = {kind: file.stat().st_size / 1e6 for kind, file in written.items()}
    if not figures['loss'] <= MAX_LOSS:
        raise InputError(
            f'{path.name}: {as_text(figures)}; this loses more than {MAX_LOSS:g} percentage points, no file was written; '
            'calibrate with other images (--data_dir, --seed)'
        )
    return {'calibration_images': len(calibration.numbers), **figures}


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
    found = [[mean.mean((0, 2, 3)) for mean in session.run(None, {'input': images})] for images, _ in calls]
    return {name: np.mean(means, 0) for name, means in zip(names, zip(*found))}


def compare(functions: dict[str, Function], signature: Signature, sample: Sample) -> dict:
    """How the files float32 and int8 do on the images of `sample`: `top1` of each in per cent, None without labels,
    `agreement` of their most probable classes in per cent, `loss` in percentage points and the number of `images`."""
    best = {kind: [] for kind in functions}
    for images, count in sample.batches(signature, 'comparing'):
        for kind, call in functions.items():
            found = call(images)
            best[kind].append((found[1][:, 0] if signature.output == 'top5' else found[0].argmax(1))[:count])
    classes = {kind: np.concatenate(found) for kind, found in best.items()}
    agreement, labels = 100 * float((classes['float32'] == classes['int8']).mean()), sample.labels(classes['float32'])
    top1 = None if labels is None else {kind: 100 * float((found == labels).mean()) for kind, found in classes.items()}
    loss = 100 - agreement if top1 is None else top1['float32'] - top1['int8']
    return {'images': len(sample.numbers), 'top1': top1, 'agreement': agreement, 'loss': loss}


def as_text(figures: dict) -> str:
    """One line with what `quantize` found."""
    top1, images, sizes = figures['top1'], figures['images'], figures['megabytes']
    text = f'int8 and float32 agree on {figures["agreement"]:.2f} % of {images} images'
    if top1:
        text = f'top-1 {top1["int8"]:.2f} % in int8, {top1["float32"]:.2f} % in float32; {text}'
    return f'{text}; {sizes["int8"]:.0f} and {sizes["float32"]:.0f} MB'
