"""An ONNX file in 8-bit integers: made by ONNX Runtime's quantizer, compared with the float32 file on real images."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from src.data.bad_records import where_and_why
from src.data.classes import Offsets
from src.data.preprocess import evaluation_image
from src.data.records import Records
from src.deploy import int8_weights
from src.deploy.decoding import batches
from src.deploy.formats import Run, load_onnx
from src.deploy.graph import Signature, as_input
from src.errors import InputError

# The others stay in float32: they take little time, and with the classifier in integers the logits deviate twice as far.
QUANTIZED = ['Conv', 'Relu', 'Concat', 'MaxPool', 'AveragePool']
BATCH, TIMED_BATCHES, ROUNDS = 8, (1, 8), 5


class Sample(NamedTuple):
    """Some of a data set's records, and how their labels become class numbers, None if the network does not know them."""

    records: Records
    numbers: np.ndarray
    offset: int | Offsets | None = None

    def labels(self, predicted: np.ndarray) -> np.ndarray | None:
        """int64 (images,), as the network counts them; where that is open, by the classes that it has `predicted` for the
        images. InputError if it stays open."""
        if self.offset is None:
            return None
        offsets = self.offset if isinstance(self.offset, Offsets) else Offsets([self.offset])
        labels = self.records.label[self.numbers]
        hits = [int((predicted == labels - offset).sum()) for offset in offsets.possible]
        offset, why = offsets.settled(hits, len(labels))
        if why:
            print(why)
        return labels - offset

    def batches(self, signature: Signature, size: int) -> Iterator[np.ndarray]:
        """Yield what a file of `signature` takes, at most `size` images at a time. InputError naming a bad record."""

        def load(number):
            try:
                encoded = self.records.read(number)
                return evaluation_image(encoded, signature.image_size, signature.preprocessing, self.records.upright)
            except ValueError as error:
                raise InputError(f'{where_and_why(self.records, number, error)}; mend or remove it') from None

        for images in batches(map(int, self.numbers), size, load):
            yield as_input(np.stack(images), signature)


class Quantization(NamedTuple):
    """What the quantization works with: images that set the ranges of activations, others on which both files are compared,
    and the loss in percentage points of top-1, or without labels of agreement, that is too much."""

    calibration: Sample
    evaluation: Sample
    max_loss: float


def spread(labels: np.ndarray, count: int, seed: int, without: Collection[int] = ()) -> np.ndarray:
    """Numbers of `count` records with the `labels`, in random order, equally many of each class as far as it has
    them, and none of those in `without`."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[~np.isin(order, list(without))]
    by_class = np.argsort(labels[order], kind='stable')
    found = labels[order][by_class]
    turn = np.empty(len(order), np.int64)
    turn[by_class] = np.arange(len(order)) - np.searchsorted(found, found)  # how many of its class come before it
    return order[np.argsort(turn, kind='stable')][:count]


def quantized(path: Path, run: Run, name: str, signature: Signature, quantization: Quantization) -> dict:
    """Replace the float32 file `path`, which `run` runs, by one in 8-bit integers. Gives the figures of the comparison.

    InputError, with the figures and the `name` of the file, if it loses more than is allowed.
    """
    original = path.with_name('float32.onnx')
    shutil.move(path, original)
    _quantize(original, path, signature, quantization.calibration)
    runs = {'float32': run, 'int8': load_onnx(path)}
    figures = {
        'scheme': 'int8, QDQ, weights per channel in 7 to 8 bits',
        'calibration_images': len(quantization.calibration.numbers),
        **compare(runs, signature, quantization.evaluation),
        'megabytes': {kind: os.path.getsize(file) / 1e6 for kind, file in (('float32', original), ('int8', path))},
    }
    if not figures['loss'] <= quantization.max_loss:
        raise InputError(
            f'{name}: {as_text(figures)}; this loses more than max_accuracy_loss {quantization.max_loss:g}, no file was '
            'written; calibrate with more or other images (--calibration_images, --seed)'
        )
    return {**figures, 'images_per_second': speed(runs, signature, quantization.evaluation)}


def _quantize(source, target, signature, sample):
    """Write the ONNX file `source` to `target` in 8-bit integers, calibrated with `sample`."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.inputs = _calibration(sample, signature, 'ranges of the activations')

        def get_next(self):
            images = next(self.inputs, None)
            return None if images is None else {'input': images}

    prepared = source.with_name('prepared.onnx')
    quantization.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    scales = int8_weights.prepare(prepared, _calibration(sample, signature, 'means of the activations'))
    quantization.quantize_static(
        str(prepared),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=QUANTIZED,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={'TensorQuantOverrides': scales},
    )


def _calibration(sample, signature, title):
    """Iterator of the images of `sample` in calls of the model."""
    size = signature.batch_size or 1
    calls = -(-len(sample.numbers) // size)
    for images in tqdm(sample.batches(signature, size), title, calls, leave=False, disable=None):
        yield _filled(images, signature.batch_size)


def compare(runs: dict[str, Run], signature: Signature, sample: Sample) -> dict:
    """How the files `runs`, float32 first, fare on the images of `sample`: `top1` of each in per cent, None without labels,
    `agreement` of their likeliest classes in per cent, `deviation`, the largest difference of an output in parts of the
    largest one, `loss` in percentage points and the number of `images`."""
    size, best, deviations, largest = signature.batch_size or BATCH, {kind: [] for kind in runs}, [], []
    images = len(sample.numbers)
    with tqdm(total=images, desc='comparing', unit='image', leave=False, disable=None) as bar:
        for batch in sample.batches(signature, size):
            outputs = [[part[: len(batch)] for part in run(_filled(batch, signature.batch_size))] for run in runs.values()]
            for kind, found in zip(runs, outputs):
                best[kind].append(found[1][:, 0] if signature.output == 'top5' else found[0].argmax(1))
            deviations.append(np.abs(outputs[0][0] - outputs[1][0]).max())
            largest.append(np.abs(outputs[0][0]).max())
            bar.update(len(batch))
    first, second = (np.concatenate(found) for found in best.values())
    agreement, labels = 100 * float((first == second).mean()), sample.labels(first)
    top1 = None if labels is None else {kind: 100 * float((c == labels).mean()) for kind, c in zip(runs, (first, second))}
    loss = 100 - agreement if labels is None else top1['float32'] - top1['int8']
    deviation = float(max(deviations) / max(largest))
    return {'images': images, 'top1': top1, 'agreement': agreement, 'loss': loss, 'deviation': deviation}


def speed(runs: dict[str, Run], signature: Signature, sample: Sample) -> dict:
    """{file: {images in a call: images a second}}, medians of calls in turns, without decoding."""
    found = {kind: {} for kind in runs}
    for size in (signature.batch_size,) if signature.batch_size else TIMED_BATCHES:
        images = _filled(next(sample.batches(signature, size)), size)
        seconds = {kind: [] for kind in runs}
        for turn in range(1 + ROUNDS):
            for kind, run in runs.items():
                start = time.perf_counter()
                run(images)
                if turn:
                    seconds[kind].append(time.perf_counter() - start)
        for kind in runs:
            found[kind][str(size)] = round(size / float(np.median(seconds[kind])), 2)
    return found


def _filled(images, batch_size):
    """`images` repeated to `batch_size`, as they are for 0."""
    return np.resize(images, (batch_size, *images.shape[1:])) if batch_size else images


def as_text(figures: dict) -> str:
    """One line with what `compare` found, and, where they are known, the sizes and speeds."""
    top1, images = figures['top1'], figures['images']
    text = (
        f'int8 and float32 agree on {figures["agreement"]:.2f} % of {images} images'
        if top1 is None
        else f'top-1 {top1["int8"]:.2f} % in int8, {top1["float32"]:.2f} % in float32, the same class for '
        f'{figures["agreement"]:.2f} % of {images} validation images'
    )
    text += f', largest deviation of an output {figures["deviation"]:.1%} of the largest one'
    if 'images_per_second' in figures:
        sizes, rates = figures['megabytes'], figures['images_per_second']
        batches = ', '.join(f'{rates["int8"][n]} and {rates["float32"][n]} at batch {n}' for n in rates['int8'])
        text += f'; {sizes["int8"]:.0f} and {sizes["float32"]:.0f} MB; {batches} images/s'
    return text
