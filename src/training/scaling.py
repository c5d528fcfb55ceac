"""What limits the training on N Ascend 910s, on paper; docs/scaling.md says where the figures come from.

python -m src.training.scaling --devices N [--config_path RECIPE] [--batch_size B] [--images_per_core N] ...
"""

import math
from collections import namedtuple

from src.errors import InputError, Parser, entry_point
from src.options import load_settings
from src.training.plan import default_batch_size, make_plan, scaled_rate
from src.training.stages import relative_computing, stage_sizes

WEIGHTS = 42_648_232  # trained float32 weights with 1000 classes, no auxiliary classifier
TRAINING_IMAGES = 1_281_167
ORIGINAL_EPOCHS = 100
PER_SERVER = 8  # devices
# The one figure that the model is calibrated on: https://github.com/Ascend/ModelZoo-TensorFlow, InceptionV4_ID0002.
CALIBRATION_BATCH, CALIBRATION_RATE = 128, 469.6  # images, images/s on one device
# RMSProp reads the gradient and reads and writes weight, mean square and momentum, at the 1.2 TB/s of four stacks of
# HBM2: the part of a step that a smaller batch does not shorten.
OPTIMIZER_SECONDS = 7 * 4 * WEIGHTS / 1.2e12
BACKWARD = 2 / 3  # of the time for an image: two convolutions for each one of the forward pass
BUCKET_BYTES = 32 << 20  # runtime.FUSION_MB
LINK_SHARE = 0.8  # assumed: what a collective gets of a link's speed
HOP_SECONDS = 20e-6  # assumed: latency of one message of a collective
RECIPE_LR, PROVEN_BATCH, LARGEST_BATCH = 0.045, 512, 8192  # images a step: published here, and by Goyal et al. 2017

OPTIONS = (
    ('batch_size', 0, 'images a step on a device; 0: 128 on one, 64 on each of several'),
    ('hccs', 30.0, 'GB/s of a link between the devices of a server, each way'),
    ('roce', 12.5, "GB/s of a device's link to other servers, each way"),
    ('cores_per_server', 192, 'cores that can decode'),
    ('images_per_core', 345.0, 'images/s'),
    ('kb_per_image', 110.0, 'KB of a training record'),
    ('storage', 0.0, 'GB/s of the storage, for all servers; 0: as much as is needed'),
)

Estimate = namedtuple('Estimate', 'rate compute exposed all_reduce limits cores storage')


def all_reduce_seconds(size, devices, hccs=30.0, roce=12.5):
    """Seconds to sum `size` bytes over all devices; links in GB/s.

    A ring in the server leaves each of its n devices a sum of 1/n of the bytes, which goes through that device's own
    link to its like in the other servers by recursive halving and doubling, and then round the ring: algorithms of
    https://www.hiascend.com/document/detail/en/canncommercial/850/commlib/hcclug/hcclug_000001.html
    """
    local, remote = sent_bytes(size, devices)
    here, servers = min(devices, PER_SERVER), max(1, devices // PER_SERVER)
    hops = 2 * (here - 1) + 2 * math.ceil(math.log2(servers))
    return (local / hccs + remote / roce) / 1e9 / LINK_SHARE + hops * HOP_SECONDS


def sent_bytes(size, devices):
    """Bytes that one device sends in an all-reduce of `size`: (inside its server, to other servers)."""
    here, servers = min(devices, PER_SERVER), max(1, devices // PER_SERVER)
    return 2 * size * (here - 1) / here, 2 * size / here * (servers - 1) / servers


def estimate(
    devices,
    batch_size=0,
    hidden=True,
    hccs=30.0,
    roce=12.5,
    cores_per_server=192,
    images_per_core=345.0,
    kb_per_image=110.0,
    storage=0.0,
    image_size=299,
):
    """Estimate for one step of `batch_size` images of `image_size` pixels on each device; times in s, rates in images/s,
    storage in GB/s.

    `hidden`: buckets are summed while the rest of the backward pass runs, else all after it. Gradients are
    taken to come evenly over the backward pass; in fact 95 % of the bytes belong to the layers that it reaches first.
    """
    batch_size = batch_size or default_batch_size(devices)
    per_image = (
        (CALIBRATION_BATCH / CALIBRATION_RATE - OPTIMIZER_SECONDS) / CALIBRATION_BATCH * relative_computing(image_size)
    )
    compute = per_image * batch_size + OPTIMIZER_SECONDS
    backward, size = BACKWARD * per_image * batch_size, 4 * WEIGHTS
    buckets = math.ceil(size / BUCKET_BYTES) if hidden else 1
    bucket = all_reduce_seconds(size / buckets, devices, hccs, roce)
    end = 0.0
    for i in range(buckets):
        end = max(end, backward * (i + 1) / buckets) + bucket
    exposed, all_reduce = (end - backward, bucket * buckets) if devices > 1 else (0.0, 0.0)
    limits = {
        'devices': devices * batch_size / (compute + exposed),
        'host cores': math.ceil(devices / PER_SERVER) * cores_per_server * images_per_core,
        'storage': storage * 1e6 / kb_per_image or math.inf,
    }
    rate = min(limits.values())
    cores = math.ceil(limits['devices'] / math.ceil(devices / PER_SERVER) / images_per_core)
    return Estimate(
        rate, compute, exposed, all_reduce, min(limits, key=limits.get), cores, limits['devices'] * kb_per_image / 1e6
    )


def course(devices, config, **options):
    """Rows on a training by `config` (options of train.py): its stages, and all of it; `options` as in `estimate`."""
    sizes = stage_sizes(config.image_sizes, config.image_size, config.aux_logits, config.cache_features)
    steps = (config.max_epochs, config.max_train_steps)
    plan = make_plan(TRAINING_IMAGES, options['batch_size'], devices, *steps, sizes=sizes)
    rows, hours, computing = [], 0.0, 0.0
    for size, start, stop in plan.stages:
        images, found = (stop - start) * plan.global_batch, estimate(devices, image_size=size, **options)
        epochs, time = (stop - start) / plan.steps_per_epoch, images / found.rate / 3600
        host = f'{found.cores} host cores a server to keep up'
        rows.append((f'{size} px', f'{epochs:g} epochs in {time:.1f} h at {found.rate:,.0f} images/s, {host}'))
        hours, computing = hours + time, computing + images * relative_computing(size)
    images = plan.stop * plan.global_batch
    share = computing / TRAINING_IMAGES / ORIGINAL_EPOCHS
    line = f"{images / 1e6:.1f} million images in {hours:.1f} h; computing: {share:.2f} of the original's"
    return [*rows, ('training', line)]


def recipe(devices, batch_size):
    """(learning rate, options or advice) for steps of `devices * batch_size` images."""
    images = devices * batch_size
    if images <= PROVEN_BATCH:
        return RECIPE_LR, '--lr_scaling none'
    lr = scaled_rate(RECIPE_LR, 'linear', images)
    if images <= LARGEST_BATCH:
        return lr, '--lr_scaling linear --warmup_epochs 5'
    return lr, f'none known beyond {LARGEST_BATCH} images a step: take --batch_size {LARGEST_BATCH // devices}'


def report(devices, config=None, **options):
    """The table as text; `config` as in `course`, None without one, `options` as in `estimate`."""
    batch_size = options.get('batch_size') or config and config.batch_size or default_batch_size(devices)
    options['batch_size'] = batch_size
    best, worst = estimate(devices, **options), estimate(devices, hidden=False, **options)
    servers, images = math.ceil(devices / PER_SERVER), devices * batch_size
    local, remote = sent_bytes(4 * WEIGHTS, devices)
    lr, advice = recipe(devices, batch_size)
    after = f' ({worst.rate:,.0f} with one all-reduce after the backward pass)' if devices > 1 else ''
    computing = best.compute / (best.compute + best.exposed)
    share = f': computing {computing:.0%}, all-reduce {1 - computing:.0%} of a step' if best.limits == 'devices' else ''
    too_large = ', and by the batch size: see recipe' if images > LARGEST_BATCH else ''
    rows = (
        ('devices', f'{devices} in {servers} server(s), {batch_size} images on each: {images:,} a step'),
        ('images/s', f'{best.rate:,.0f}{after}; {ORIGINAL_EPOCHS} epochs in {TRAINING_IMAGES / best.rate / 36:.1f} h'),
        ('limited by', f'{best.limits}{share}{too_large}'),
        (
            'step',
            f'compute {best.compute * 1e3:.1f} ms, all-reduce {best.all_reduce * 1e3:.1f} ms, of which '
            f'{best.exposed * 1e3:.1f} ms are not hidden',
        ),
        (
            'all-reduce',
            f'{4 * WEIGHTS / 1e6 if devices > 1 else 0:.1f} MB; a device sends {local / 1e6:.1f} MB in its '
            f'server, {remote / 1e6:.1f} MB to others',
        ),
        ('host', f'{best.cores} cores a server to keep up, of {options.get("cores_per_server", 192)}'),
        ('storage', f'{best.storage:.2f} GB/s to keep up, until the records are in memory'),
        ('recipe', f'lr {lr:.3g}: {advice}; {TRAINING_IMAGES // images:,} steps an epoch'),
        *(course(devices, config, **options) if config else ()),
    )
    return '\n'.join(f'{name:<12}{text}' for name, text in rows)


@entry_point
def main(arguments=None):
    parser = Parser(prog='python -m src.training.scaling', description='what limits the training on N Ascend 910s, on paper')
    parser.add_argument('--devices', type=int, required=True, help='1, 2, 4, or a multiple of 8 up to 4096')
    parser.add_argument('--config_path', help='options of train.py, of which the hours are computed, e.g. recipes/fast.yaml')
    for name, default, text in OPTIONS:
        parser.add_argument(f'--{name}', type=type(default), default=default, help=f'{text} (default: {default:g})')
    options = vars(parser.parse_args(arguments))
    devices, path = options['devices'], options.pop('config_path')
    if devices not in (1, 2, 4) and (devices % PER_SERVER or not 0 < devices <= 4096):
        raise InputError(f'--devices {devices}: must be 1, 2, 4, or a multiple of {PER_SERVER} up to 4096')
    for name, default, _ in OPTIONS:
        if not (0 < options[name] < 1e9 or options[name] == default == 0):
            raise InputError(f'--{name} {options[name]}: must be above 0')
    print(report(config=load_settings(['--config_path', path]) if path else None, **options))


if __name__ == '__main__':
    main()
