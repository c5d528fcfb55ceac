"""Files of PyTorch without PyTorch: safetensors read and written, `.pth` read without running what is in it."""

import functools
import json
import math
import pickletools
import struct
import zipfile

import numpy as np

from src.errors import InputError
from src.files import replacing

MAX_HEADER = 16 << 20  # bytes; that of InceptionV4 has 73,000
DTYPES = {'F16': '<f2', 'F32': '<f4', 'F64': '<f8', 'I32': '<i4', 'I64': '<i8', 'BF16': '<u2'}  # bfloat16: see `_widened`
LEGACY = bytes.fromhex('80028a0a6cfc9c46f920')  # how torch.save began a file before PyTorch 1.6

# The only names that a `.pth` may mention; anything else would be code. Storages stand for their types.
STORAGES = {
    f'torch {kind}Storage': dtype
    for kind, dtype in (
        ('Half', 'F16'),
        ('Float', 'F32'),
        ('Double', 'F64'),
        ('Int', 'I32'),
        ('Long', 'I64'),
        ('BFloat16', 'BF16'),
    )
}
DICT, TENSOR, PARAMETER = 'collections OrderedDict', 'torch._utils _rebuild_tensor_v2', 'torch._utils _rebuild_parameter'


def _widened(array, dtype):
    return (array.astype('<u4') << 16).view('<f4') if dtype == 'BF16' else array


def read_safetensors(path):
    """{name: ndarray} of a safetensors file (https://github.com/huggingface/safetensors#format): the length of the
    header, a JSON header with the place of every tensor, the tensors. InputError if the parts do not fit together."""
    try:
        data = np.memmap(path, np.uint8, 'r')
        size = struct.unpack('<Q', data[:8].tobytes())[0]
        if size > min(MAX_HEADER, len(data) - 8):
            raise ValueError(f'a header of {size} bytes')
        header = json.loads(data[8 : 8 + size].tobytes())
        result, body = {}, data[8 + size :]
        for name, entry in header.items():
            if name == '__metadata__':
                continue
            (start, stop), shape, dtype = entry['data_offsets'], entry['shape'], DTYPES.get(entry['dtype'])
            if not all(isinstance(n, int) and n >= 0 for n in (start, stop, *shape)) or stop > len(body):
                raise ValueError(f'{name} lies outside of the file')
            if dtype is None:
                result[name] = None
                continue
            if math.prod(shape) * np.dtype(dtype).itemsize != stop - start:
                raise ValueError(f'{name} of the shape {shape} has {stop - start} bytes')
            result[name] = _widened(np.frombuffer(body[start:stop], dtype).reshape(shape), entry['dtype'])
        return result
    except (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError) as error:
        raise InputError(
            f'{path}: not a safetensors file, or a damaged one ({error!s:.150}); use another one or copy it again'
        ) from None


def write_safetensors(path, tensors):
    """Write float32 ndarrays, whole or not at all. OSError if it cannot."""
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name, value in tensors.items():
        header[name] = {'dtype': 'F32', 'shape': value.shape, 'data_offsets': [offset, offset + value.nbytes]}
        offset += value.nbytes
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with replacing(path) as temporary, open(temporary, 'wb') as file:
        file.write(struct.pack('<Q', len(text)) + text)
        for value in tensors.values():
            file.write(np.ascontiguousarray(value, '<f4').data)


def _content(program, storage):
    """Value that the pickle `program` (bytes) describes, built of dicts, lists, tuples, numbers, text and tensors alone.

    Its instructions are read as data, by this list of those that a state dict needs; `storage(type, key)` gives the
    numbers of a tensor. ValueError on any other.
    """
    stack, marks, memo = [], [], {}

    def since_mark():
        items = stack[marks[-1] :]
        del stack[marks.pop() :]
        return items

    for instruction, argument, _ in pickletools.genops(program):
        name = instruction.name
        if name in ('BININT', 'BININT1', 'BININT2', 'LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINUNICODE'):
            stack.append(argument)
        elif name in ('NONE', 'NEWTRUE', 'NEWFALSE'):
            stack.append({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[name])
        elif name in ('EMPTY_DICT', 'EMPTY_LIST', 'EMPTY_TUPLE'):
            stack.append({'EMPTY_DICT': {}, 'EMPTY_LIST': [], 'EMPTY_TUPLE': ()}[name])
        elif name == 'MARK':
            marks.append(len(stack))
        elif name == 'TUPLE':
            stack.append(tuple(since_mark()))
        elif name in ('TUPLE1', 'TUPLE2', 'TUPLE3'):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ('BINPUT', 'LONG_BINPUT'):
            memo[argument] = stack[-1]
        elif name in ('BINGET', 'LONG_BINGET'):
            stack.append(memo[argument])
        elif name in ('SETITEM', 'SETITEMS'):
            items = since_mark() if name == 'SETITEMS' else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2]))
        elif name in ('APPEND', 'APPENDS'):
            items = since_mark() if name == 'APPENDS' else [stack.pop()]
            stack[-1].extend(items)
        elif name == 'GLOBAL':
            if argument not in (*STORAGES, DICT, TENSOR, PARAMETER):
                raise ValueError(f'it asks for {argument}, which is not the content of a state dict')
            stack.append(argument)
        elif name == 'BINPERSID':
            _, kind, key, *_ = stack.pop()
            stack.append((storage(STORAGES[kind], key), STORAGES[kind]))
        elif name == 'REDUCE':
            arguments, function = stack.pop(), stack.pop()
            stack.append({DICT: dict, TENSOR: _tensor, PARAMETER: lambda value, *_: value}[function](*arguments))
        elif name == 'BUILD':
            stack.pop()  # attributes of an OrderedDict
        elif name == 'STOP':
            return stack.pop()
        elif name != 'PROTO':
            raise ValueError(f'it has the instruction {name}, which is not the content of a state dict')


def _tensor(storage, offset, shape, strides, *_):
    values, dtype = storage
    if (
        len(shape) != len(strides)
        or min((offset, *shape, *strides)) < 0
        or math.prod(shape) > values.size
        or offset + sum((n - 1) * step for n, step in zip(shape, strides)) >= max(values.size, 1)
    ):
        raise ValueError(f'a tensor of the shape {shape} lies outside of its storage')
    steps = [step * values.itemsize for step in strides]
    return _widened(np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False), dtype)


def read_pth(path):
    """{name: ndarray} of what `torch.save(model.state_dict(), path)` writes since PyTorch 1.6, or of the `state_dict` in
    a dict. InputError on anything else, above all on a pickle that would run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            files = {info.filename.partition('/')[2]: info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in files.values()):
                raise ValueError('it is compressed, which PyTorch does not do')
            if files['data.pkl'].file_size > MAX_HEADER:
                raise ValueError(f'data.pkl has {files["data.pkl"].file_size} bytes')

            @functools.cache  # tensors may share one
            def storage(dtype, key):
                return np.frombuffer(archive.read(files[f'data/{key}']), DTYPES[dtype])

            content = _content(archive.read(files['data.pkl']), storage)
        content = content.get('state_dict', content)
        # Parallel training puts `module.` before every name.
        return {
            name.removeprefix('module.'): value if isinstance(value, np.ndarray) else None for name, value in content.items()
        }
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        MemoryError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        reason = f'{error!s:.150}' or type(error).__name__
        raise InputError(
            f'{path}: not a state dict saved by PyTorch, or a damaged one ({reason}); with PyTorch, write '
            'model.state_dict() with safetensors.torch.save_file'
        ) from None
