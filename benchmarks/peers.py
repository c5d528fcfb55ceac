"""timm's InceptionV4 in PyTorch. requirements-bench.txt lists what must be installed."""

import sys
from unittest import mock

from src.errors import InputError
from src.weights.names import names_in


def timm_model(parameters=None, num_classes=1000):
    """timm's `inception_v4`, a `torch.nn.Module`, with `parameters` {our name: float32 ndarray}, without those of another
    number of classes. Import MindSpore first: it chooses the implementation of protobuf."""
    # timm imports torchvision, for what is not used here.
    for name in ('timm.data', 'torchvision', 'torchvision.ops', 'torchvision.ops.misc'):
        sys.modules.setdefault(name, mock.MagicMock(FrozenBatchNorm2d=type('FrozenBatchNorm2d', (), {})))
    import timm
    import torch

    model = timm.create_model('inception_v4', num_classes=num_classes)
    if parameters:
        state = model.state_dict()
        names = names_in('timm', parameters)
        found = {names[name]: torch.tensor(value) for name, value in parameters.items() if name in names}
        values = {name: value for name, value in found.items() if value.shape == state[name].shape}
        missing = [name for name in state if name not in values and 'num_batches' not in name and 'last_linear' not in name]
        if missing:
            raise InputError(f'timm has other parameters: {missing[:3]}')
        model.load_state_dict(values, strict=False)
    return model
