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

# The only names that a `.pth` may mention; anything else would be code.
KINDS = {'Half': 'F16', 'Float': 'F32', 'Double': 'F64', 'Int': 'I32', 'Long': 'I64', 'BFloat16': 'BF16'}
STORAGES = {f'torch {kind}Storage': dtype for kind, dtype in KINDS.items()}
DICT, TENSOR, PARAMETER = 'collections OrderedDict', 'torch._utils _rebuild_tensor_v2', 'torch._utils _rebuild_parameter'
ARGUMENTS = ('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE', 'GLOBAL')
NEW = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple, 'NEWFALSE': bool}
# How many values an instruction takes from the stack; None: all since the last mark.
TAKEN = {'TUPLE': None, 'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3, 'SETITEM': 2, 'SETITEMS': None, 'APPEND': 1, 'APPENDS': None}
TAKEN.update(BINPERSID=1, REDUCE=2, BUILD=1)

# What the modules above and this one raise on damaged files.
DAMAGE = (ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
DAMAGE += (struct.error, zipfile.BadZipFile)


def _content(program, storage):
    """Value that the pickle `program` (bytes) describes, built of dicts, lists, tuples, numbers, text and tensors alone;
    `storage(dtype, key)` gives the numbers of a storage. ValueError if it has any other instruction or name."""
    stack, marks, memo = [], [], {}
    for instruction, argument, _ in pickletools.genops(program):
        name = instruction.name
        if name == 'GLOBAL' and argument not in (*STORAGES, DICT, TENSOR, PARAMETER):
            raise ValueError(f'it asks for {argument}, which is not the content of a state dict')
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
            _apply(name, items, stack, storage)
        elif name not in ('PROTO', 'STOP'):
            raise ValueError(f'it has the instruction {name}, which is not the content of a state dict')
    return stack.pop()


def _apply(name, items, stack, storage):
    """Give the last value of `stack` the `items`, or put on it what they make."""
    if name.startswith('TUPLE'):
        stack.append(tuple(items))
    elif name.startswith('SETITEM'):
        stack[-1].update(zip(items[::2], items[1::2]))
    elif name.startswith('APPEND'):
        stack[-1].extend(items)
    elif name == 'BINPERSID':
        _, kind, key, *_ = items[0]
        stack.append((storage(STORAGES[kind], key), STORAGES[kind]))
    elif name == 'REDUCE':  # BUILD, which is left, sets attributes of an OrderedDict
        stack.append({DICT: dict, TENSOR: _tensor, PARAMETER: lambda value, *_: value}[items[0]](*items[1]))


def _tensor(storage, offset, shape, strides, *_):
    values, dtype = storage
    last = offset + sum((size - 1) * step for size, step in zip(shape, strides))
    unfit = len(shape) != len(strides) or min((offset, *shape, *strides)) < 0 or math.prod(shape) > values.size
    if unfit or last >= max(values.size, 1):
        raise ValueError(f'a tensor of the shape {shape} lies outside of its storage')
    steps = [step * values.itemsize for step in strides]
    return widened(np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False), dtype)


def read(path: str | Path) -> dict[str, np.ndarray | None]:
    """{name: ndarray} of what `torch.save(model.state_dict(), path)` writes since PyTorch 1.6, or of the `state_dict` in
    a dict; None for what is no tensor. InputError on anything else, above all on a pickle that would run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = {info.filename.partition('/')[2]: info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in files.values()):
                raise ValueError('it is compressed, which PyTorch does not do')
            if files['data.pkl'].file_size > MAX_PICKLE:
                raise ValueError(f'data.pkl has {files["data.pkl"].file_size} bytes')

            @functools.lru_cache(None)  # tensors may share a storage
            def storage(dtype, key):
                return np.frombuffer(archive.read(files[f'data/{key}']), DTYPES[dtype])

            content = _content(archive.read(files['data.pkl']), storage)
        content = content.get('state_dict', content)
        names = [name.removeprefix('module.') for name in content]  # which parallel training puts before every name
        return {name: v if isinstance(v, np.ndarray) else None for name, v in zip(names, content.values())}
    except DAMAGE as error:
        reason = f'{error!s:.150}' or type(error).__name__
        raise InputError(
            f'{path}: not a state dict saved by PyTorch, or a damaged one ({reason}); with PyTorch, write '
            'model.state_dict() with safetensors.torch.save_file'
        ) from None
