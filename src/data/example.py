"""One tf.train.Example of a TFRecord shard, a protocol buffer, read where it lies: a map of features, of which only those
of the image and of its label matter here.
"""

from __future__ import annotations

from src.data.protobuf import encode_field, read_fields, read_varint
from src.data.shards import IMAGE, LABEL, column
from src.errors import InputError

# Tags of protocol buffers: 0x0A, 0x12 and 0x1A are the fields 1, 2 and 3 with a length, 0x08 is field 1 as a varint. An
# Example is {1: Features}, Features {1: entry, ...}, an entry {1: name, 2: Feature}, a Feature one of the three lists below,
# a list {1: value}.
_KINDS = {0x0A: 'bytes', 0x12: 'float', 0x1A: 'int64'}
_IMAGES = (b'\xff\xd8', b'\x89PNG', b'GIF8', b'BM', b'RIFF')  # what image files begin with


def _only_value(buf, name, feature, kind):
    """(start, stop) of the only value of the Feature at `feature` (start, stop); ValueError unless it lists a `kind`."""
    if feature is None:
        raise ValueError(f'no feature {name.decode()}')
    found, count = 'no', 0
    for tag, start, stop in read_fields(buf, *feature):
        found, inside = _KINDS.get(tag, found), (start, stop)
    if found != kind:
        raise ValueError(f'feature {name.decode()} holds {found} values instead of {kind}')
    for tag, start, stop in read_fields(buf, *inside):
        packed = tag == 0x0A and kind == 'int64'
        if tag == 0x0A and not packed:
            value, count = (start, stop), count + 1  # bytes, which may be none
        while (packed or tag == 0x08 and kind == 'int64') and start < stop:
            value = start, (read_varint(buf, start, stop)[1] if packed else stop)
            start, count = value[1], count + 1
    if count > 1:
        raise ValueError(f'feature {name.decode()} holds several values instead of one')
    if not count:
        raise ValueError(f'feature {name.decode()} is empty')
    return value


def names_in(buf, pos: int, end: int, where: str) -> tuple[bytes, bytes]:
    """Names (bytes) of the features with the image and the label of the Example in buf[pos:end]. InputError that begins with
    `where` if it has other ones; ValueError if it is damaged."""
    kinds = {}
    for tag, *inside in read_fields(buf, pos, end):
        for entry, start, stop in read_fields(buf, *inside) if tag == 0x0A else ():
            parts = {part: (first, last) for part, first, last in read_fields(buf, start, stop)} if entry == 0x0A else {}
            name = bytes(buf[slice(*parts.get(0x0A, (0, 0)))][:80]).decode('utf-8', 'replace')
            lists = [_KINDS.get(list_tag, 'no') for list_tag, *_ in read_fields(buf, *parts.get(0x12, (0, 0)))]
            kinds.update({name: lists[-1] if lists else 'no'} if parts else {})
    if not kinds:
        raise ValueError(f'no feature {IMAGE[0]}')
    image = column(where, kinds, IMAGE, ['bytes'], 'feature').encode()
    label = column(where, kinds, LABEL, ['int64'], 'feature').encode()
    start, length, _ = locate(buf, pos, end, image, label)
    if image.decode() != IMAGE[0] and not buf[start : start + 4].startswith(_IMAGES):
        raise InputError(
            f'{where}: the {length} bytes of its feature {image.decode()} begin as no image file, perhaps they are pixels; '
            'write JPEG or PNG files into it'
        )
    return image, label


def locate(buf, pos: int, end: int, image: bytes, label: bytes) -> tuple[int, int, int]:
    """Offset and length of the encoded image, and the label, of the Example in buf[pos:end], which has them as the features
    `image` and `label` (bytes); ValueError if it is damaged."""
    features, key_lengths, longest = {}, (len(image), len(label)), max(len(image), len(label))
    for tag, *inside in read_fields(buf, pos, end):
        if tag != 0x0A:
            continue
        for entry, start, stop in read_fields(buf, *inside):
            if entry != 0x0A or buf[start] == 0x0A and buf[start + 1] not in key_lengths:
                continue  # a name of another length: most entries end here, which halves the time
            key, value = b'', (start, start)
            for part, first, last in read_fields(buf, start, stop):
                if part == 0x0A:
                    key = buf[first:last] if last - first <= longest else b''  # never copy a huge name
                    if key != image and key != label:
                        break
                elif part == 0x12:
                    value = first, last
            features[key] = value
    start, stop = _only_value(buf, image, features.get(image), 'bytes')
    number = read_varint(buf, *_only_value(buf, label, features.get(label), 'int64'))[0]
    return start, stop - start, number - (number >> 63 << 64)


def value_of(data: bytes, name: bytes) -> bytes:
    """The feature `name` (bytes) of an Example, in bytes with its checksum; b"" if it is missing or of another kind."""
    entry = encode_field(1, name) + b'\x12'  # key, then the tag of its value
    at = data.find(entry) + len(entry)
    try:
        if at < len(entry):
            return b''
        length, start = read_varint(data, at, len(data))
        return data[slice(*_only_value(data, name, (start, start + length), 'bytes'))]
    except ValueError:
        return b''
