"""The configuration of all programs: default_config.yaml < --config_path FILE < command line."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml
from easydict import EasyDict

from src import files
from src.errors import InputError, unwritable
from src.options import Option, convert, expected, read_options, read_yaml, takes_auto

DEFAULT_PATH = Path(__file__).resolve().parents[1] / 'default_config.yaml'
REFERENCE_BATCH = 128  # images per step of the original recipe, which its learning rate and its step counts refer to

NETWORK_OPTIONS = ('num_classes', 'block_counts', 'bn_decay', 'bn_scale', 'aux_logits', 'image_size')
FROM_CHECKPOINT = (*NETWORK_OPTIONS, 'label_offset')  # recorded in checkpoints and taken from there by default

# (option, value, options that have no effect where it has that value)
IDLE = (
    ('optimizer', 'rmsprop', 'use_nesterov'),
    ('optimizer', 'momentum', 'rmsprop_decay rmsprop_epsilon'),
    ('lr_schedule', 'cosine', 'lr_decay_rate lr_decay_epochs'),
    ('lr_schedule', 'exponential', 'T_max eta_min'),
    ('lr_schedule', 'constant', 'T_max eta_min lr_decay_rate lr_decay_epochs'),
    ('aux_logits', False, 'aux_loss_weight'),
    ('mode', 'train', 'epochs_between_evals report'),
)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to 3 names of `known` that resemble or contain `name`, best first."""
    return difflib.get_close_matches(name, known, 3, 0.7) or [other for other in known if name and name in other][:3]


def _unknown(name, known, prefix='', origin=''):
    names = ' or '.join(prefix + other for other in nearest(name, known))
    return InputError(
        f'unknown option {prefix}{name:.80}{origin}; ' + (f'did you mean {names}?' if names else '--help lists the options')
    )


def _from_file(path, options):
    """Yield (name, str or list of str, origin) of each line. It is the text of a scalar, not the value that YAML 1.1 sees
    in it: that reads 1e-5 as a string, 1:30 as 90 and `on` as true."""
    for name, node in read_yaml(path)[1].items():
        origin = f'in {path} line {node.start_mark.line + 1}'
        if name not in options:
            raise _unknown(name, options, origin=f' {origin}')
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(item, yaml.ScalarNode) for item in items):
            raise InputError(f'{name} {origin}: expected a value or a list of values, not nested ones')
        texts = ['' if item.tag.endswith(':null') else item.value for item in items]
        yield name, texts if isinstance(node, yaml.SequenceNode) else texts[0], origin


def _from_command_line(argv, options):
    """Yield (name, str, origin) of each option on the command line, with --config_path among them."""
    arguments = iter(argv)
    for argument in arguments:
        if not argument.startswith('--'):
            raise InputError(f'unexpected argument {argument!r:.80}; options are given as --name value')
        name, equals, value = argument[2:].partition('=')
        if name not in options and name != 'config_path':
            raise _unknown(name, [*options, 'config_path'], '--')
        if not equals:
            value = next(arguments, '--')
            if value.startswith('--'):
                raise InputError(f'option --{name} needs a value: --{name} value')
        yield name, value, 'on the command line'


def _print_help(options: dict[str, Option]):
    print(
        'options: [--config_path FILE] [--name value | --name=value] ...\n\n'
        'default_config.yaml < --config_path FILE (YAML, lines `name: value`) < command line; lists: a,b,c'
    )
    group = None
    for name, option in options.items():
        if option.group != group:
            group = option.group
            print(f'\n{group}:')
        print(f'  {f"--{name} {option.shown}":<34} {option.help}')


def load(argv: list[str], recorded: dict | None = None, default_path: str | Path = DEFAULT_PATH) -> EasyDict:
    """The configuration.

    Args:
        argv: arguments without the program's name; of an option that is repeated the last counts. `--help` prints the
            options and ends the process with status 0.
        recorded: a checkpoint's configuration. Its values for FROM_CHECKPOINT replace the defaults.

    Raises:
        InputError: an option is unknown, or a value does not fit.
    """
    options = read_options(default_path)
    if '-h' in argv or '--help' in argv:
        _print_help(options)
        sys.exit(0)
    given = list(_from_command_line(argv, options))
    paths = [value for name, value, _ in given if name == 'config_path']
    given = [item for item in given if item[0] != 'config_path']
    config = {name: option.default for name, option in options.items()}
    kept = list(_from_checkpoint(recorded or {}))
    for name, value, origin in [*kept, *(_from_file(paths[-1], options) if paths else ()), *given]:
        try:
            config[name] = convert(options[name], value)
        except (ValueError, KeyError) as error:
            raise InputError(f'{name} is {value!r:.80} {origin}; expected {expected(options[name])}') from error
    for name, value, _ in kept:
        if takes_auto(options[name]) and config[name] == 'auto':  # the checkpoint has the value that the training found
            config[name] = convert(options[name], value)
    return EasyDict(config)


def _from_checkpoint(recorded):
    """Yield (name, str or list of str, origin) of the options that a checkpoint gives."""
    for name in FROM_CHECKPOINT:
        if name in recorded:
            value = recorded[name]
            yield name, [*map(str, value)] if isinstance(value, list) else str(value), 'in the checkpoint'


def idle_options(config: EasyDict) -> list[str]:
    """A line for every option that is not at its default and has no effect together with the others."""
    defaults = load([])
    return [
        f'{name} {config[name]} has no effect with {other} {value}'
        for other, value, names in IDLE
        for name in names.split()
        if config[other] == value and config[name] != defaults[name]
    ]


def differences(old: dict, new: dict) -> Iterator[tuple]:
    """Yield (name, value in `old`, value in `new`) for each option of the data, the network and the recipe that differs.
    An option that `old` does not have, since it is newer, counts as its default."""
    for name, option in read_options(DEFAULT_PATH).items():
        before = old.get(name, option.default)
        if option.group in ('Data', 'Network', 'Recipe') and before != new[name]:
            yield name, before, new[name]


def network_options(config: dict) -> dict:
    """Those of the options `config` that `InceptionV4` takes as keyword arguments."""
    # bn_decay is auto only beside weights that record none; these are evaluated, which does not use it.
    return {
        name: config[name] for name in NETWORK_OPTIONS if name in config and (name, config[name]) != ('bn_decay', 'auto')
    }


def save(config: EasyDict, path: str | Path) -> None:
    """Write `config` as YAML that --config_path reads back, whole or not at all. InputError if it cannot be written."""
    try:
        with files.replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding='ascii')
    except OSError as error:
        raise unwritable(f'cannot write configuration {path}: {error.strerror}', error) from error
