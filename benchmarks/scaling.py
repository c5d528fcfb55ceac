"""What limits a training run on N Ascend 910s, on paper; the documentation says where the figures come from.

python -m benchmarks.scaling --devices N [--config_path RECIPE] [--batch_size B] [further options of train.py]"""

import math
from collections import namedtuple

from src.errors import InputError, Parser, entry_point
from src.options import load_settings
from src.training.plan import default_batch_size, grids, make_plan

WEIGHTS = 42_648_232  # trained float32 weights with 1000 classes, no auxiliary classifier
TRAINING_IMAGES, ORIGINAL_EPOCHS, PER_SERVER = 1_281_167, 100, 8  # images, epochs, devices
# The one figure that the model is calibrated on: https://github.com/Ascend/ModelZoo-TensorFlow, InceptionV4_ID0002.
CALIBRATION_BATCH, CALIBRATION_RATE = 128, 469.6  # images, images/s on one device
# RMSProp reads the gradient and reads and writes weight, mean square and momentum, at the 1.2 TB/s of four stacks of HBM2.
OPTIMIZER_SECONDS = 7 * 4 * WEIGHTS / 1.2e12
BACKWARD = 2 / 3  # of the time for an image: two convolutions for each one of the forward pass
BUCKET_BYTES = 32 << 20  # runtime.FUSION_MB
LINK_SHARE, HOP_SECONDS = 0.8, 20e-6  # assumed: what a collective gets of a link's speed; latency of one message
RECIPE_LR, PROVEN_BATCH, LARGEST_BATCH = 0.045, 512, 8192  # images a step: published here, and by Goyal et al. 2017
HCCS, ROCE = 30.0, 12.5  # GB/s each way of a link between the devices of a server, and of a device's to other servers
CORES_PER_SERVER, IMAGES_PER_CORE, KB_PER_IMAGE = 192, 345.0, 110.0  # that decode; images/s; of a training record
Estimate = namedtuple('Estimate', 'rate limits compute exposed all_reduce cores storage')
# Of all convolutions, at each position of `plan.grids`: the stem and the reductions, with 4 blocks A, 7 B and 3 C.
MULTIPLICATIONS = (864, 27_648, 133_120, 110_592, 2_058_240, 23_856_128, 14_893_056)


def all_reduce_seconds(size, devices):
    """Seconds to sum `size` bytes over all devices: a ring in the server, then each device's own link to its like in the
    other servers by recursive halving and doubling (hcclug_000001 of CANN's documentation)."""
    here, servers = min(devices, PER_SERVER), max(1, devices // PER_SERVER)
    local, remote = 2 * size * (here - 1) / here, 2 * size / here * (servers - 1) / servers
    hops = 2 * (here - 1) + 2 * math.ceil(math.log2(servers))
    return (local / HCCS + remote / ROCE) / 1e9 / LINK_SHARE + hops * HOP_SECONDS


def estimate(devices, batch_size=0, hidden=True, image_size=299):
    """`Estimate` of a step. `hidden`: buckets are summed during the backward pass, over which gradients come evenly."""
    batch_size, servers = batch_size or default_batch_size(devices), math.ceil(devices / PER_SERVER)
    per_image = (1 / CALIBRATION_RATE - OPTIMIZER_SECONDS / CALIBRATION_BATCH) * relative_computing(image_size)
    compute, backward = per_image * batch_size + OPTIMIZER_SECONDS, BACKWARD * per_image * batch_size
    buckets = math.ceil(4 * WEIGHTS / BUCKET_BYTES) if hidden else 1
    bucket, end = all_reduce_seconds(4 * WEIGHTS / buckets, devices), 0.0
    for i in range(buckets):
        end = max(end, backward * (i + 1) / buckets) + bucket
    exposed, all_reduce = (end - backward, bucket * buckets) if devices > 1 else (0.0, 0.0)
    rate = devices * batch_size / (compute + exposed)
    limit, by = min((rate, 'devices'), (servers * CORES_PER_SERVER * IMAGES_PER_CORE, 'host cores'))
    cores = math.ceil(rate / servers / IMAGES_PER_CORE)
    return Estimate(limit, by, compute, exposed, all_reduce, cores, rate * KB_PER_IMAGE / 1e6)


def relative_computing(size, full=299):
    """Multiplications of a forward pass of an image of `size` x `size` pixels, of those at `full` x `full`."""
    here, there = (sum(rows**2 * one for rows, one in zip(grids(one), MULTIPLICATIONS)) for one in (size, full))
    return here / there


def advice(images):
    """What to pass for steps of `images` images: the linear rule (Goyal et al. 2017), as in recipes/throughput.yaml."""
    if images > LARGEST_BATCH:
        return f'no learning rate is known beyond {LARGEST_BATCH} images a step: lower --batch_size'
    return f'--lr {RECIPE_LR * max(1, images / PROVEN_BATCH):.3g}' + ' --warmup_epochs 5' * (images > PROVEN_BATCH)


def course(devices, batch_size, settings):
    """A line on a training run by `settings`."""
    plan = make_plan(TRAINING_IMAGES, settings.but(batch_size=batch_size), devices)
    stages = [(size, (stop - start) * plan.global_batch) for size, start, stop in plan.stages]
    hours = sum(images / estimate(devices, batch_size, image_size=size).rate / 3600 for size, images in stages)
    share = sum(images * relative_computing(size) for size, images in stages) / TRAINING_IMAGES / ORIGINAL_EPOCHS
    images = plan.stop * plan.global_batch / 1e6
    return f"training    {images:.1f} million images in {hours:.1f} h; computing: {share:.2f} of the original's"


@entry_point
def main(arguments=None):
    parser = Parser(prog='python -m benchmarks.scaling', description=__doc__.partition(';')[0])
    parser.add_argument('--devices', type=int, required=True, help='1, 2, 4, or a multiple of 8 up to 4096')
    a, options = parser.parse_known_args(arguments)
    if a.devices not in (1, 2, 4) and (a.devices % PER_SERVER or not 0 < a.devices <= 4096):
        raise InputError(f'--devices {a.devices}: must be 1, 2, 4, or a multiple of {PER_SERVER} up to 4096')
    settings = load_settings(options)
    batch_size = settings.batch_size or default_batch_size(a.devices)
    best, worst = (estimate(a.devices, batch_size, hidden) for hidden in (True, False))
    times = [1e3 * value for value in (best.compute, best.all_reduce, best.exposed)]
    print(
        f'devices     {a.devices}, {batch_size} images on each: {a.devices * batch_size:,} a step',
        f'images/s    {best.rate:,.0f} ({worst.rate:,.0f} with one all-reduce at the end), limited by {best.limits}',
        'step        compute {:.1f} ms, all-reduce {:.1f} ms, of which {:.1f} ms are not hidden'.format(*times),
        f'host        {best.cores} cores a server, and {best.storage:.2f} GB/s until the records are in memory',
        f'recipe      {advice(a.devices * batch_size)}',
        course(a.devices, batch_size, settings),
        sep='\n',
    )


if __name__ == '__main__':
    main()
