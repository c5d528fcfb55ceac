"""timm's InceptionV4 fine-tuned the usual way, for `benchmarks.finetune`: all layers, SGD with momentum, a cosine over the
steps, dropout and batch norm as timm's. Order, crops and flips of the images are those that train.py draws for the same
seed, without the change of colours; validation images are those of eval.py."""

import argparse
import json

import mindspore as ms  # before torch, see `timm_model`
import numpy as np

from benchmarks.peers import timm_model
from benchmarks.rounds import cores
from src.data import pipeline
from src.data.classes import count_classes, label_offset
from src.data.preprocess import scale
from src.data.records import open_records
from src.errors import InputError, entry_point
from src.options import load_settings
from src.runtime import Run
from src.weights.names import names_in
from src.weights.read import read_weights

MOMENTUM = 0.9


def _network(weights, num_classes):
    import torch

    parameters = read_weights(weights)[0]
    names = names_in('timm', parameters)
    model = timm_model({names[name]: value for name, value in parameters.items()}, num_classes)
    torch.nn.init.normal_(model.last_linear.weight, std=0.01)
    torch.nn.init.zeros_(model.last_linear.bias)
    return model.to(memory_format=torch.channels_last)  # a sixth faster on a CPU


def _tensors(data):
    """Yield (images as the network takes them, labels) of each batch of `data`."""
    import torch

    for columns in data.create_tuple_iterator(num_epochs=1, output_numpy=True):
        x = torch.from_numpy(scale(columns[0].astype(np.float32))).contiguous(memory_format=torch.channels_last)
        yield x, torch.from_numpy(columns[-1].astype(np.int64))


def _evaluate(model, data):
    """(top-1 in per cent, loss)"""
    import torch

    model.eval()
    right, loss, count = 0, 0.0, 0
    with torch.no_grad():
        for x, label in _tensors(data):
            kept = label >= 0
            logits, label = model(x)[kept], label[kept]
            right += int((logits.argmax(1) == label).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, label, reduction='sum'))
            count += len(label)
    return 100 * right / count, loss / count


def fine_tune(
    weights, data_dir, *, lr, seed, max_epochs, image_size, batch_size, min_object_covered, label_smoothing, weight_decay
):
    """Yield (top-1 in per cent, loss) after each epoch."""
    import torch

    if torch.get_num_threads() < cores():
        raise InputError(f'PyTorch has {torch.get_num_threads()} of {cores()} cores; set OMP_NUM_THREADS={cores()}')
    torch.manual_seed(seed)
    records, held = (open_records(data_dir, split) for split in ('train', 'validation'))
    offset = label_offset('auto', records)
    model = _network(weights, count_classes('auto', records, offset)[0])
    kernels, others = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{'params': kernels, 'weight_decay': weight_decay}, {'params': others, 'weight_decay': 0.0}]
    optimizer = torch.optim.SGD(groups, lr, momentum=MOMENTUM)
    steps = len(records) // batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_epochs * steps)
    values = {'image_size': image_size, 'batch_size': batch_size, 'min_object_covered': min_object_covered}
    settings = load_settings([]).but(**values, seed=seed, dropout_keep_prob=1.0, num_workers=1)
    validation = pipeline.evaluation_dataset(held, offset, settings, Run())
    for epoch in range(max_epochs):
        model.train()
        batches = pipeline.training_dataset(records, offset, settings, range(epoch * steps, (epoch + 1) * steps), Run())
        for x, label in _tensors(batches):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), label, label_smoothing=label_smoothing).backward()
            optimizer.step()
            schedule.step()
        yield _evaluate(model, validation)


@entry_point
def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks.finetune_timm', description=__doc__)
    parser.add_argument('weights', help='as restore_path of train.py takes them')
    parser.add_argument('data_dir', help='data set')
    for name in ('seed', 'max_epochs', 'image_size', 'batch_size'):
        parser.add_argument(f'--{name}', type=int, required=True)
    for name in ('lr', 'min_object_covered', 'label_smoothing', 'weight_decay'):
        parser.add_argument(f'--{name}', type=float, required=True)
    ms.set_device('CPU')
    for result in fine_tune(**vars(parser.parse_args(argv))):
        print(json.dumps(result), flush=True)


if __name__ == '__main__':
    main()
