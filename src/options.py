"""The options of all programs: default_config.yaml < --config_path FILE < command line.

default_config.yaml is the only list of them. Its groups say what they are for: Data, Network and Recipe determine the result
of a training run, Network makes the network, Run and Export say how a program runs and what it writes.
"""

from __future__ import annotations

import argparse
import difflib
import functools
from collections.abc import Iterator
from pathlib import Path

import yaml
from easydict import EasyDict

from src import files
from src.errors import InputError, Parser, reading
from src.option_kinds import declared

RESULT = ('Data', 'Network', 'Recipe')  # groups of options that determine the result of a training run

# Options of earlier versions on which the result of a training run depended, with the value that each has always now.
GONE = {'aux_loss_weight': 0.4, 'cache_features': 0, 'eta_min': 0.0, 'lr_decay_epochs': 2.0, 'lr_decay_rate': 0.94}
GONE |= {'lr_head': 0.0, 'lr_scaling': 'none', 'rmsprop_decay': 0.9}

# What the model zoo and other programs call our options, where the name resembles none of ours, or another one.
OTHERS = {'learning_rate': 'lr', 'data_path': 'data_dir', 'ckpt_file': 'ckpt_path', 'work_nums': 'num_workers'}
OTHERS |= {'class_num': 'num_classes', 'epoch_size': 'max_epochs', 'imgsz': 'image_size', 'width': 'image_size'}
OTHERS |= {'weights': 'restore_path', 'pretrained': 'restore_path'}


class Settings(EasyDict):
    """What the options mean, by attribute: `settings.lr`. Read-only; a dict, for YAML and checkpoints."""

    def __init__(self, values: dict):
        for name, value in values.items():
            super().__setattr__(name, value)

    def __setattr__(self, name, value):
        raise AttributeError(f'{name}: settings are read-only; settings.but({name}=...) returns others')

    __setitem__ = __setattr__

    def __reduce__(self):
        return Settings, (dict(self),)

    def but(self, **values: object) -> Settings:
        """The same settings with other `values`, such as those that auto and 0 stand for."""
        return Settings({**self, **values})

    def group(self, *groups: str) -> dict[str, object]:
        """{name: value} of the options in these groups of default_config.yaml."""
        return {name: self[name] for name, option in declared().items() if option.group in groups and name in self}

    def network(self) -> dict[str, object]:
        """The keyword arguments of `InceptionV4`."""
        # bn_decay is auto only beside weights that record none; these are evaluated, which does not use it.
        return {name: value for name, value in self.group('Network').items() if value != 'auto'}


def load_settings(argv: list[str], recorded: dict | None = None) -> Settings:
    """The settings; InputError if an option is unknown, or a value does not fit.

    `argv`: arguments without the program's name. Of an option that is repeated the last counts; `--help` prints the options
    and ends the process. `recorded`: a checkpoint's configuration, whose network replaces the defaults.
    """
    given = _from_command_line(argv)
    path = given.pop('config_path', None)
    kept = Settings(recorded or {}).group('Network')
    items = [
        *((name, [*map(str, v)] if isinstance(v, list) else str(v), 'in the checkpoint') for name, v in kept.items()),
        *((name, value, f'in {path}') for name, value in (_from_file(path) if path is not None else {}).items()),
        *((name, value, 'on the command line') for name, value in given.items()),
    ]
    values = {name: option.default for name, option in declared().items()}
    for name, value, origin in items:
        option = declared()[name]
        if value == 'auto' and option.takes_auto and name in kept:
            continue  # the checkpoint has the value that the training run found
        try:
            values[name] = option.convert(value)
        except (ValueError, KeyError) as error:
            raise InputError(f'{name} is {value!r:.80} {origin}; expected {option.expected}') from error
    return Settings({name: [*value] if isinstance(value, list) else value for name, value in values.items()})


def _from_command_line(argv):
    """{name: text} of the options on the command line, with config_path among them."""
    parser = Parser(
        usage='PROGRAM [--config_path FILE] [--name value | --name=value] ...',
        description='default_config.yaml < --config_path FILE (YAML, lines `name: value`) < command line; lists: a,b,c',
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=36, width=125),
    )
    parser.add_argument('--config_path', metavar='FILE', help='file of options, e.g. one of recipes/')
    groups = {option.group: parser.add_argument_group(option.group) for option in declared().values()}
    for name, option in declared().items():
        groups[option.group].add_argument(f'--{name}', metavar=option.shown, help=option.help.replace('%', '%%'))
    found, rest = parser.parse_known_args(argv)
    for word in rest:
        if word.startswith('--'):
            raise _unknown(word[2:].partition('=')[0], '--')
    if rest:
        raise InputError(f'unexpected argument {rest[0]!r:.80}; pass options as --name value')
    return vars(found)


def _from_file(path):
    """{name: text or list of texts} of a YAML file. The loader leaves every scalar a text: YAML 1.1 reads 1e-5 as a string,
    1:30 as 90 and `on` as true."""
    broken = (yaml.YAMLError, RecursionError)
    with reading(f'configuration {path}', 'expected lines `name: value`', broken), open(path, encoding='utf-8-sig') as file:
        values = yaml.load(file, yaml.BaseLoader)
        if not isinstance(values, dict):
            raise ValueError('is not a mapping')
    for name in values:
        if name not in declared():
            raise _unknown(name, '', f' in {path}')
    return values


def _unknown(name, prefix, origin=''):
    """InputError for an option `name` that there is not."""
    ours = OTHERS.get(name) or next(iter(difflib.get_close_matches(name, declared(), 1, 0.7)), '')
    remedy = f'did you mean {prefix}{ours}?' if ours else '--help lists the options'
    return InputError(f'unknown option {prefix}{name:.80}{origin}; {remedy}')


def differences(old: dict, new: dict) -> Iterator[tuple]:
    """Yield (name, value in `old`, value in `new`) for each option that determines the result of a training run and differs.
    One that `old`, a checkpoint's configuration, does not have counts as its default."""
    for name, now in Settings(new).group(*RESULT).items():
        before = old.get(name, declared()[name].default)
        if before != now:
            yield name, before, now
    for name, always in GONE.items():
        if old.get(name, always) != always:
            yield name, old[name], always


def named_arguments(argv: list[str], *names: str) -> list[str]:
    """`argv` with names of options before its first arguments where these have none: they are the values of the last of
    `names`, as MindSpore's model zoo calls its scripts."""
    count = next((number for number, word in enumerate(argv) if word.startswith('-')), len(argv))
    if count > len(names):
        return argv
    pairs = zip(names[len(names) - count :], argv)
    return [word for name, value in pairs for word in (f'--{name}', value)] + argv[count:]


def save_settings(settings: Settings, path: str | Path) -> None:
    """Write `settings` as YAML that --config_path reads back, whole or not at all. InputError if it cannot be written."""
    with reading(path), files.replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding='ascii')
