"""`.pth` files, read by our own code: `torch.load` would need PyTorch, and a pickle is a program that may do anything."""

from __future__ import annotations

import functools
import math
import pickletools
import struct
import zipfile
from pathlib import Path

import numpy as np

from src.errors import InputError
from src.weights.safetensors_file import DTYPES, widened

MAX_PICKLE = 16 << 20  # bytes; that of InceptionV4 has about 100,000
LEGACY = bytes.fromhex('80028a0a6cfc9c46f920')  # how torch.save began a file before PyTorch 1.6

# The only names with which a `.pth` builds anything here; see `BUILDERS`.
KINDS = {'Half': 'F16', 'Float': 'F32', 'Double': 'F64', 'Int': 'I32', 'Long': 'I64', 'BFloat16': 'BF16'}
STORAGES = {f'torch {kind}Storage': dtype for kind, dtype in KINDS.items()}
ARGUMENTS = ('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'GLOBAL')
NEW = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple, 'NEWFALSE': bool}
# How many values an instruction takes from the stack; None: all since the last mark.
TAKEN = {'TUPLE': None, 'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3, 'SETITEM': 2, 'SETITEMS': None, 'APPEND': 1, 'APPENDS': None}
TAKEN.update(BINPERSID=1, REDUCE=2, NEWOBJ=2, BUILD=1)

# What the modules above and this one raise on damaged files.
DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
DAMAGE += (struct.error, zipfile.BadZipFile)


class _Object(dict):
    """In place of any other object of a pickle, whose code is never run: its attributes, where tensors may be."""


def _content(program, storage):
    """(value, names): what the pickle `program` (bytes) describes, built of dicts, lists, tuples, numbers, text, tensors and
    `_Object` alone, and the names of what the latter stand for; `storage(dtype, key)` gives the numbers of a storage.
    ValueError if it has an instruction that PyTorch does not use."""
    stack, marks, memo, others = [], [], {}, []
    for instruction, argument, _ in pickletools.genops(program):
        name = instruction.name
        if name in ARGUMENTS:
            stack.append(argument)
        elif name in NEW:
            stack.append(NEW[name]())
        elif name in ('NONE', 'NEWTRUE'):
            stack.append({'NONE': None, 'NEWTRUE': True}[name])
        elif name == 'MARK':
            marks.append(len(stack))
        elif name in ('BINPUT', 'LONG_BINPUT'):
            memo[argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
        elif name in TAKEN:
            start = marks.pop() if TAKEN[name] is None else len(stack) - TAKEN[name]
            items = stack[start:]
            del stack[start:]
            _apply(name, items, stack, storage, others)
        elif name not in ('PROTO', 'STOP'):
            raise ValueError(f'it has the instruction {name}, which is not the content of a state dict')
    return stack.pop(), others


def _apply(name, items, stack, storage, others):
    """Give the last value of `stack` the `items`, or put on it what they make."""
    if name.startswith('TUPLE'):
        stack.append(tuple(items))
    elif name.startswith('SETITEM'):
        stack[-1].update(zip(items[::2], items[1::2]))
    elif name.startswith('APPEND'):
        if isinstance(stack[-1], list):
            stack[-1].extend(items)
    elif name == 'BINPERSID':
        _, kind, key, *_ = items[0]
        stack.append((storage(STORAGES[kind], key), STORAGES[kind]) if kind in STORAGES else None)
    elif name == 'BUILD':
        if isinstance(stack[-1], _Object) and isinstance(items[0], dict):
            stack[-1].update(items[0])
    elif name == 'REDUCE' and items[0] in BUILDERS:
        stack.append(BUILDERS[items[0]](*items[1]))
    else:  # REDUCE or NEWOBJ of anything else
        others.append(items[0])
        stack.append(_Object())


def _tensor(storage, offset, shape, strides, *_):
    if storage is None:  # of bytes or truth values
        return None
    values, dtype = storage
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides))
    unfit = len(shape) != len(strides) or min((offset, *shape, *strides)) < 0 or math.prod(shape) > values.size
    if unfit or last >= max(values.size, 1):
        raise ValueError(f'a tensor of the shape {shape} lies outside of its storage')
    steps = [step * values.itemsize for step in strides]
    return widened(np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False), dtype)


BUILDERS = {
    'collections OrderedDict': dict,
    'torch._utils _rebuild_tensor_v2': _tensor,
    'torch._utils _rebuild_parameter': lambda value, *_: value,
    'torch._utils _rebuild_parameter_with_state': lambda value, *_: value,
    'torch._tensor _rebuild_from_type_v2': lambda builder, kind, arguments, *_: BUILDERS[builder](*arguments),
}


def _tensors(value, seen):
    """Yield (name, ndarray) of the tensors in nested dicts, lists and tuples, the names joined by dots; what is there twice
    comes once."""
    seen.add(id(value))
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, np.ndarray):
            yield str(key), item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            yield from ((f'{key}.{name}', tensor) for name, tensor in _tensors(item, seen))


def read(path: str | Path) -> dict[str, np.ndarray]:
    """{name: ndarray} of all tensors in what `torch.save` writes since PyTorch 1.6: a state dict, dicts of them (names are
    joined by dots) or a whole model, whose own names come with PyTorch's `_modules` and the like. InputError on anything
    else; nothing in the file is ever run."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = {info.filename.partition('/')[2]: info for info in archive.infolist()}
            if 'data.pkl' not in files:
                held = ', '.join(archive.namelist())
                raise InputError(f'{path}: a ZIP archive of {held:.100}; unpack it, and name the weights in it')
            if any(info.compress_type != zipfile.ZIP_STORED for info in files.values()):
                raise ValueError('it is compressed, which PyTorch does not do')
            if files['data.pkl'].file_size > MAX_PICKLE:
                raise ValueError(f'data.pkl has {files["data.pkl"].file_size} bytes')

            @functools.lru_cache(None)  # tensors may share a storage
            def storage(dtype, key):
                return np.frombuffer(archive.read(files[f'data/{key}']), DTYPES[dtype])

            content, others = _content(archive.read(files['data.pkl']), storage)
        found = dict(_tensors(content, set()))
        if not found:
            raise ValueError(f'it asks for {(*others, "nothing")[0]}, which is not the content of a state dict')
        return found
    except DAMAGE as error:
        reason = f'{error!s:.150}' or type(error).__name__
        raise InputError(
            f'{path}: not a state dict saved by PyTorch, or a damaged one ({reason}); with PyTorch, write '
            'model.state_dict() with safetensors.torch.save_file'
        ) from None
