"""Fine-tuning of timm's network in PyTorch, beside recipes/finetune.yaml: `python -m benchmarks.finetuning WEIGHTS DATA`.

SGD with momentum and a cosine over the steps, the usual way, behind the recipe's frozen layers and for all. It gets the
images that train.py draws for the same seed, in their order, without the change of colours, and ends as train.py does.
Further options are those of train.py: `--max_epochs=5 --T_max=5`. `benchmarks.recipes` has the recipe's own row.
"""

import os
import tempfile
from pathlib import Path

import mindspore.dataset  # noqa: F401, before torch, see `timm_model`
import numpy as np

from benchmarks.peers import timm_model
from benchmarks.recipes import data_options, subset
from benchmarks.rounds import cores, machine
from src.data import pipeline
from src.data.classes import count_classes, label_offset
from src.data.preprocess import scale
from src.data.records import open_records
from src.errors import Parser, entry_point
from src.options import load_settings
from src.runtime import Run
from src.weights.read import read_weights
from src.workflow import ROOT

RECIPE = ['--config_path', str(ROOT / 'recipes/finetune.yaml')]
FROZEN, LR = 18, 0.01  # of timm's `features`, up to mixed_6h; learning rate


def fine_tune(weights, settings, frozen):
    """Yield the top-1 of timm's network in per cent after each epoch; its first `frozen` layers do not learn."""
    import torch

    torch.set_num_threads(cores())  # `import mindspore` makes it one
    torch.manual_seed(settings.seed)
    records, validation = (open_records(settings.data_dir, split) for split in ('train', 'validation'))
    offset = label_offset('auto', records)[0]
    model = timm_model(read_weights(weights)[0], count_classes('auto', records, offset)[0])
    torch.nn.init.normal_(model.last_linear.weight, std=0.01)
    model = model.to(memory_format=torch.channels_last)  # a sixth faster on a CPU
    trunk = model.features[:frozen].requires_grad_(False)
    kernels, others = ([p for p in model.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    groups = [{'params': kernels, 'weight_decay': settings.weight_decay}, {'params': others, 'weight_decay': 0.0}]
    optimizer, steps = torch.optim.SGD(groups, LR, momentum=0.9), len(records) // settings.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.max_epochs * steps)

    def tensors(data):
        for image, *_, label in data.create_tuple_iterator(num_epochs=1, output_numpy=True):
            x = torch.from_numpy(scale(image.astype(np.float32))).contiguous(memory_format=torch.channels_last)
            yield x, torch.from_numpy(label.astype(np.int64))

    for epoch in range(settings.max_epochs):
        model.train()
        trunk.eval()
        part = range(epoch * steps, (epoch + 1) * steps)
        for x, label in tensors(pipeline.training_dataset(records, offset, settings, part, Run())):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), label, label_smoothing=settings.label_smoothing).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            data = tensors(pipeline.evaluation_dataset(validation, offset, settings, Run()))
            yield 100 * sum(int((model(x).argmax(1) == label).sum()) for x, label in data) / len(validation)


@entry_point
def main():
    parser = Parser(prog='python -m benchmarks.finetuning', description=__doc__.partition(':')[0])
    parser.add_argument('weights', help='pretrained weights, as restore_path takes them')
    a, options = data_options(parser).parse_known_args()
    print(machine('mindspore', 'torch', 'timm'), flush=True)
    with tempfile.TemporaryDirectory() as place:
        data = subset(Path(a.data).resolve(), Path(place), a.train, a.validation)
        for seed in a.seeds.split(','):
            # One worker decodes in the process itself, so that its CPU seconds are known.
            settings = load_settings([*RECIPE, *options, f'--data_dir={data}', f'--seed={seed}', '--num_workers=1'])
            for frozen in (FROZEN, 0):
                begun, found = sum(os.times()[:2]), []
                for top1 in fine_tune(a.weights, settings, frozen):
                    found.append(top1)
                    if 0 < settings.patience < len(found) - found.index(max(found)):
                        break
                shown, seconds = ', '.join(f'{top1:.1f}' for top1 in found), sum(os.times()[:2]) - begun
                print(f'seed {seed}, timm, {frozen} layers frozen: top-1 {shown} %; {seconds:.0f} CPU s', flush=True)


if __name__ == '__main__':
    main()
