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
        if name.split('.')[0] == 'torchvision':
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def timm_model(weights=None, num_classes=1000):
    """timm's `inception_v4`, a `torch.nn.Module`; `weights` {timm's name: float32 ndarray}, without those of another
    number of classes. Import MindSpore first: it chooses the implementation of protobuf."""
    if importlib.util.find_spec('torchvision') is None and not any(
        isinstance(finder, _TorchvisionStandIn) for finder in sys.meta_path
    ):
        sys.meta_path.append(_TorchvisionStandIn())
    import timm
    import torch

    model = timm.create_model('inception_v4', num_classes=num_classes)
    if weights is not None:
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        left_out = {
            name for name, value in weights.items() if name.startswith('last_linear') and value.shape != shapes[name]
        }
        values = {name: torch.tensor(value) for name, value in weights.items() if name not in left_out}
        found = model.load_state_dict(values, strict=False)
        missing = [n for n in found.missing_keys if 'num_batches_tracked' not in n and n not in left_out]
        if found.unexpected_keys or missing:
            raise InputError(f'timm has other parameters: {missing[:3]}, {found.unexpected_keys[:3]}')
    return model
