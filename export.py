"""Checkpoint to a verified MINDIR: `python export.py --ckpt_path CKPT --file_name NAME [--option value ...]`."""
import os
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.nn.utils import no_init_parameters

from src import checkpoint, config as configuration, runtime
from src.errors import InputError, entry_point
from src.inceptionv4 import InceptionV4

TOLERANCE = 1e-5  # of the logits' largest value


def export_mindir(network, file_name, batch_size, image_size):
    """Write `network` (in evaluation mode, never exported before: MindSpore keeps the first graph of a cell) as
    `<file_name>.mindir`, which takes float32 (batch_size, 3, image_size, image_size) in [-1, 1] and gives logits.

    The file is loaded again and must give the network's own output; only then does it get its name.

    Returns:
        (path, deviation): largest difference in parts of the largest logit.
    """
    path = Path(f'{file_name}.mindir')
    temporary = path.with_name(f'.{path.stem}.{os.getpid()}.mindir')
    x = np.random.default_rng(0).uniform(-1, 1, (batch_size, 3, image_size, image_size)).astype(np.float32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ms.export(network, Tensor(x), file_name=str(temporary.with_suffix('')), file_format='MINDIR')
        expected = network(Tensor(x)).asnumpy()
        found = nn.GraphCell(ms.load(str(temporary)))(Tensor(x)).asnumpy()
        deviation = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
        if not deviation <= TOLERANCE:
            raise InputError(f'{path}: the exported network deviates by {deviation:.1e} (bound {TOLERANCE:.0e}); '
                             'no file was written')
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f'{path}: cannot be written ({error.strerror}); choose another --file_name') from None
    finally:
        temporary.unlink(missing_ok=True)
    return path, deviation


@entry_point
def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    config = configuration.load(argv)
    if config.file_format != 'MINDIR':
        raise InputError(f'file_format {config.file_format} is not supported yet; use MINDIR')
    if not config.ckpt_path:
        raise InputError('ckpt_path is empty; use --ckpt_path FILE')
    if Path(config.ckpt_path).is_dir():
        raise InputError(f'ckpt_path {config.ckpt_path} is a directory; name one checkpoint in it')
    parameters, info = checkpoint.load(config.ckpt_path)
    config = configuration.load(argv, info.get('config'))
    run = runtime.start(config.device_target, config.device_id)
    print(runtime.describe(run, config.device_target), flush=True)
    with no_init_parameters():  # the checkpoint fills them all
        network = InceptionV4(**{**configuration.network_options(config), 'aux_logits': False}).set_train(False)
    checkpoint.load_into(network, parameters, config.ckpt_path)
    path, deviation = export_mindir(network, config.file_name, config.export_batch_size, config.image_size)
    print(f'{path}: {path.stat().st_size / 1e6:.0f} MB, input float32 ({config.export_batch_size}, 3, '
          f'{config.image_size}, {config.image_size}) in [-1, 1], loaded again: deviation {deviation:.1e}')


if __name__ == '__main__':
    main()
