"""timm's InceptionV4 in PyTorch, with or without torchvision. requirements-bench.txt lists what must be installed."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

from src.errors import InputError


class _Anything(type):
    def __getattr__(cls, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return f'{cls.__name__}.{name}'


class _Module(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith('__'):
            raise AttributeError(name)
        return _Anything(name, (), {})


class _TorchvisionStandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """timm imports torchvision for its data sets and transforms, which are not used here."""

    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split('.')[0] == 'torchvision' else None

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def timm_model(weights=None, num_classes=1000):
    """timm's `inception_v4`, a `torch.nn.Module`; `weights` {timm's name: float32 ndarray}, without those of another
    number of classes. Import MindSpore first: it chooses the implementation of protobuf."""
    if importlib.util.find_spec('torchvision') is None:
        sys.meta_path.append(_TorchvisionStandIn())
    import timm
    import torch

    model = timm.create_model('inception_v4', num_classes=num_classes)
    state = model.state_dict()
    values = {
        name: torch.tensor(value) for name, value in (weights or {}).items() if value.shape == tuple(state[name].shape)
    }
    missing = [name for name in state if name not in values and 'num_batches' not in name and 'last_linear' not in name]
    if weights and missing:
        raise InputError(f'timm has other parameters: {missing[:3]}')
    model.load_state_dict(values, strict=False)
    return model
