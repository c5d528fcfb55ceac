"""The scaling of pixels as a configuration for Ascend's `atc`."""

from __future__ import annotations

from pathlib import Path

from src import files
from src.data.preprocess import Preprocessing
from src.errors import InputError


def write_aipp(path: str | Path, preprocessing: Preprocessing, image_size: int) -> None:
    """The scaling of `preprocessing` as a configuration for `atc --insert_op_conf`: the converted model then takes uint8
    (N, H, W, 3). InputError if it cannot be written.

    AIPP computes (pixel - mean_chn - min_chn) * var_reci_chn; mean_chn is a whole number, min_chn a float16.
    https://www.hiascend.com/document/detail/en/canncommercial/800/devaids/atc/atlasatc_16_0025.html
    """
    lines = [
        'aipp_mode: static',
        'input_format: RGB888_U8',
        'csc_switch: false',
        'rbuv_swap_switch: false',
        f'src_image_size_w: {image_size}',
        f'src_image_size_h: {image_size}',
    ]
    for i, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std)):
        lines += [f'mean_chn_{i}: 0', f'min_chn_{i}: {mean:.8g}', f'var_reci_chn_{i}: {1 / std:.8g}']
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            temporary.write_text('\n'.join(['aipp_op {', *(f'    {line}' for line in lines), '}']) + '\n')
    except OSError as error:
        raise InputError(f'aipp {path}: cannot be written ({error.strerror}); choose another file') from None
