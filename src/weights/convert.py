"""A file of foreign weights -> our parameters, the network they belong to, and a report of every tensor."""

import os
from collections import namedtuple

import numpy as np

from src.config import NETWORK_OPTIONS
from src.data import imagenet
from src.errors import InputError
from src.weights import tf_file, torch_file
from src.weights.names import fit, names_in, transposed

Layout = namedtuple('Layout', 'name prefix mean std interpolation square')
# By the first convolution's name. Means and deviations as the programs document them, in parts of full scale.
LAYOUTS = {
    'InceptionV4/Conv2d_1a_3x3/weights': Layout(
        'tf_slim', 'InceptionV4/', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 'bilinear', False
    ),
    'features.0.conv.weight': Layout('timm', 'features.', (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 'bicubic', True),
    'features.0.conv2d_1a_3x3.conv.weight': Layout(
        'mindcv', 'features.', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'bilinear', True
    ),
}
OURS = 'conv2d_1a_3x3.conv.weight'
OLD_MODEL_ZOO = 'bn0.gamma'
BACKGROUND_CLASSES = 1001  # ImageNet with a background class in front
SLOTS = {'/RMSProp': 'mean_square.', '/RMSProp_1': 'moment.'}  # TensorFlow's suffix, MindSpore's prefix
IMAGE_SIZE = 299

Conversion = namedtuple('Conversion', 'parameters config preprocessing step layout report notes class_names')


def load_tensors(path):
    """({name: ndarray, or None for what is no number}, info) of a file in any of the formats; `info` only in our own."""
    path = str(path)
    if tf_file.prefix_of(path):
        return tf_file.read(path), {}
    try:
        with open(path, 'rb') as file:
            head = file.read(16)
            file.seek(-min(8, os.path.getsize(path)), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        raise InputError(
            f'{path}: cannot be read ({error.strerror}); name a checkpoint file, or of a TensorFlow '
            'checkpoint what its files begin with'
        ) from None
    if tail == tf_file.MAGIC:
        return tf_file.read(path), {}
    if head[:4] == b'PK\3\4':
        return torch_file.read_pth(path), {}
    if head[8:9] == b'{':
        return torch_file.read_safetensors(path), {}
    if head[:10] == torch_file.LEGACY:
        raise InputError(
            f'{path}: written by PyTorch before 1.6, as a pickle that may run code; with PyTorch, load it '
            'with weights_only=True and write it with safetensors.torch.save_file'
        )
    from src.weights import checkpoint

    return checkpoint.load(path)


def network_of(config):
    """`InceptionV4` with the options of `config` (dict) and parameters that are still to be set."""
    from mindspore.nn.utils import no_init_parameters

    from src.inceptionv4 import InceptionV4

    with no_init_parameters():
        return InceptionV4(**{name: config[name] for name in NETWORK_OPTIONS if name in config})


def _block_counts(kernels):
    """Blocks A, B and C: kernels (OIHW shapes) of which blocks A and C have two each and block B one."""
    return [kernels.count((96, 384, 1, 1)) // 2, kernels.count((384, 1024, 1, 1)), kernels.count((256, 1536, 1, 1)) // 2]


def convert(tensors, drop_background=False, slots=False):
    """Recognise `tensors` ({name: ndarray}) by their names and take them as ours.

    Args:
        drop_background (bool): of 1001 classes drop the first, so that class k becomes class k - 1.
        slots (bool): take RMSProp's state and the global step of a TensorFlow training too, so that it can go on.

    Returns:
        Conversion: parameters (dict of float32 ndarrays, with the slots as `nn.RMSProp` names them), config (dict of the
        options that describe the network), preprocessing (`Preprocessing`), step (int), layout (str), report (list of
        (name, shape, our name or '', remark), one for every tensor), notes (list of str), class_names (ImageNet's, or None).

    Raises:
        InputError: these are no InceptionV4's weights, or not all of them.
    """
    from src.data.preprocess import Preprocessing

    if OLD_MODEL_ZOO in tensors:
        raise InputError(
            "the older MindSpore model zoo's network, which has batch norm on the pooled features and on the "
            "logits; it computes something else, use MindCV's, timm's or TF-slim's weights"
        )
    layout = next((layout for name, layout in LAYOUTS.items() if name in tensors), None)
    if layout is None:
        raise InputError(
            f'no InceptionV4 of TF-slim, timm, MindCV or this project; it has {len(tensors)} tensors: '
            f'{", ".join(list(tensors)[:3])[:150]}'
        )
    hwio = layout.name == 'tf_slim'
    model = {
        name: value
        for name, value in tensors.items()
        if value is not None
        and name.startswith((layout.prefix, 'last_linear.', 'classifier.'))
        and not name.endswith('.num_batches_tracked')
        and name.rpartition('/')[0] not in tensors
    }
    bias = model.get(names_in(layout.name, ['logits.bias'])['logits.bias'])
    if bias is None:
        raise InputError("the classifier is missing; these are another network's weights, or a part of them")
    aux = model.get('InceptionV4/AuxLogits/Conv2d_2a/weights')
    take_aux = aux is not None and aux.shape[:2] == (5, 5)
    unfit = [name for name in model if not take_aux and '/AuxLogits/' in name]
    kernels = [(transposed(value) if hwio else value).shape for value in model.values() if value.ndim == 4]
    config = {
        'num_classes': bias.size,
        'block_counts': _block_counts(kernels),
        'aux_logits': take_aux,
        'bn_scale': any(name.endswith(('gamma', 'bn.weight')) for name in model),
        'image_size': IMAGE_SIZE,
    }
    if min(config['block_counts']) < 1 or max(config['block_counts']) > 25:
        raise InputError(f"{config['block_counts']} blocks A, B and C were found; these are another network's weights")

    cell = network_of(config)
    shapes = {name: p.shape for name, p in cell.parameters_dict().items()}
    names = names_in(layout.name, shapes)
    parameters, left = fit({name: model[name] for name in model if name not in unfit}, names, shapes, hwio)
    if left:
        raise InputError(f'{next(iter(left))} has no place in InceptionV4 ({len(left)} such tensors)')
    ours = {foreign: name for name, foreign in names.items()}
    remarks = dict.fromkeys(model, 'loaded')
    remarks.update(dict.fromkeys(unfit, f'left out: the auxiliary classifier is not for {IMAGE_SIZE} pixels'))
    notes, step = [], 0
    if slots:
        trained = [name for name, p in cell.parameters_dict().items() if p.requires_grad]
        taken, notes = _slots(tensors, trained, names, shapes)
        for name, (foreign, value) in taken.items():
            parameters[name] = value
            if foreign:
                ours[foreign], remarks[foreign] = name, 'loaded'
        counter = np.ravel(tensors.get('global_step', 0))
        if counter.dtype == object or counter.size != 1 or not 0 <= counter[0] < 2**31:
            raise InputError(f'--slots: global_step {counter.tolist()!s:.50} is no number of steps')
        step = int(counter[0])
        parameters['global_step'] = np.array([step], np.int32)
        parameters.update(dict.fromkeys(('overflows', 'overflow_run'), np.zeros((), np.int32)))  # see `TrainStep`
        ours['global_step'], remarks['global_step'] = 'global_step', 'loaded'
    if drop_background:
        if config['num_classes'] != BACKGROUND_CLASSES:
            raise InputError(
                f'--drop_background: the file has {config["num_classes"]} classes, and only with '
                f'{BACKGROUND_CLASSES} the first is the background'
            )
        config['num_classes'] -= 1
        for name in parameters:
            if name.endswith(('logits.weight', 'logits.bias')):
                parameters[name] = parameters[name][1:]
        notes.append(
            'class 0, the background, is dropped: class k is now ImageNet class k of 0..999, '
            "label k + 1 of TF-slim's records (label_offset 1)"
        )
    elif config['num_classes'] == BACKGROUND_CLASSES:
        config['label_offset'] = '0'
        notes.append(
            "1001 classes: class 0 is the background, class k is label k of TF-slim's records; "
            'for records with labels from 0 to 999 use --drop_background'
        )
    elif hwio:
        notes.append(
            f'{config["num_classes"]} classes: if they were trained with labels from 1 as they are, as the '
            'original entry did, class k is label k: evaluate with --label_offset 0'
        )
    report = [
        (
            name,
            tuple(np.shape(value)),
            ours.get(name, '') if remarks.get(name) == 'loaded' else '',
            remarks.get(name) or _left_out(name, value, tensors),
        )
        for name, value in tensors.items()
    ]
    mean, std = (tuple(round(255 * level, 3) for level in levels) for levels in (layout.mean, layout.std))
    preprocessing = Preprocessing(mean, std, 0.875, layout.interpolation, layout.square)
    # Of 1000 classes of the original one cannot tell what class 0 is: it trained them with labels from 1.
    known = not hwio or drop_background or config['num_classes'] != len(imagenet.classes())
    return Conversion(
        parameters,
        config,
        preprocessing,
        step,
        layout.name,
        report,
        notes,
        imagenet.class_names(config['num_classes']) if known else None,
    )


def _slots(tensors, trained, names, shapes):
    """({MindSpore's name: (TensorFlow's name or '', value)}, notes) of RMSProp's state for the parameters `trained`."""
    taken, missing = {}, []
    for suffix, prefix in SLOTS.items():
        found = {name: names[name] for name in trained if names[name] + suffix in tensors}
        values, _ = fit(
            {foreign: tensors[foreign + suffix] for foreign in found.values()},
            found,
            {name: shapes[name] for name in found},
            hwio=True,
        )
        for name in trained:
            if name in found:
                taken[prefix + name] = found[name] + suffix, values[name]
            else:
                taken[prefix + name] = '', np.full(shapes[name], prefix == 'mean_square.', np.float32)
                missing.append(name)
    if len(missing) == 2 * len(trained):
        raise InputError('--slots: there is no state of RMSProp in this file')
    return taken, [f'without state in the file, starting as in a new training: {name}' for name in dict.fromkeys(missing)]


def _left_out(name, value, tensors):
    if value is None:
        return 'left out: no numbers'
    variable, _, last = name.rpartition('/')
    if '/' + last in SLOTS:
        return 'left out: state of RMSProp (--slots takes it)'
    if variable in tensors:  # TensorFlow names what belongs to a variable so
        return 'left out: state of an optimizer or a moving average'
    counter = name.endswith('.num_batches_tracked')
    return 'left out: counter of batch norm' if counter else 'left out: not part of the network'


def read(path):
    """Weights at `path`, of this project or any of the others.

    Returns:
        (parameters, info): float32 ndarrays by our names; info with `config` and `preprocessing` (dicts), `class_names`.
    """
    tensors, info = load_tensors(path)
    if OURS in tensors:
        return tensors, info
    try:
        found = convert(tensors)
    except InputError as error:
        raise InputError(f'{path}: {error}') from None
    return found.parameters, {
        'step': 0,
        'epoch': 0,
        'config': found.config,
        'class_names': found.class_names,
        'preprocessing': found.preprocessing._asdict(),
        'source': str(path),
    }


def main_file(path):
    """The file by which to know the weights at `path`: itself, or the index of a TensorFlow checkpoint, which has the
    checksums of all tensors."""
    prefix = tf_file.prefix_of(path)
    return f'{prefix}.index' if prefix else str(path)
