"""Options of all entry points: default_config.yaml < --config_path FILE < command line."""

import collections
import difflib
import math
import operator
import pathlib
import re
import sys

import yaml
from easydict import EasyDict

from src import files
from src.errors import InputError

DEFAULT_PATH = pathlib.Path(__file__).resolve().parents[1] / 'default_config.yaml'
REFERENCE_BATCH = 128  # images a step of the original recipe: its learning rate and its step counts mean this
MAX_BYTES = 64 * 1024  # PyYAML needs seconds for this much; a configuration is a few kilobytes
BOOLS = {'true': True, 'yes': True, 'on': True, '1': True, 'false': False, 'no': False, 'off': False, '0': False}
KINDS = {bool: 'true or false', int: 'a whole number', float: 'a finite number', str: 'text'}
BOUNDS = {'>=': operator.ge, '>': operator.gt, '<=': operator.le, '<': operator.lt}
CONSTRAINT = re.compile(r'(one of:) (\w+(?:, \w+)*)|([<>]=?) (-?\d+(?:\.\d+)?)|(exactly) (\d+) values')
AUTO = 'auto or a whole number'
OPTION_LINE = re.compile(r'(\w+): +(.*?) +# (.+)')

NETWORK_OPTIONS = ('num_classes', 'dropout_keep_prob', 'block_counts', 'bn_decay', 'bn_scale', 'aux_logits', 'image_size')
FROM_CHECKPOINT = (*NETWORK_OPTIONS, 'label_offset')  # a checkpoint records them, so nobody has to repeat them

# Options that do nothing where the first has the value given.
IDLE = (
    ('optimizer', 'rmsprop', 'use_nesterov'),
    ('optimizer', 'momentum', 'rmsprop_decay rmsprop_epsilon'),
    ('lr_schedule', 'cosine', 'lr_decay_rate lr_decay_epochs'),
    ('lr_schedule', 'exponential', 'T_max eta_min'),
    ('lr_schedule', 'constant', 'T_max eta_min lr_decay_rate lr_decay_epochs'),
    ('aux_logits', False, 'aux_loss_weight'),
    ('mode', 'train', 'epochs_between_evals'),
)

Option = collections.namedtuple('Option', 'default shown help group')


class _Loader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if event.anchor or event.tag:  # an alias has an anchor; a few lines of aliases can fill the memory
            raise yaml.composer.ComposerError(None, None, 'anchors, aliases and tags are not accepted', event.start_mark)
        if self.depth > 8:  # MindSpore raises Python's own limit so far that reaching it takes many seconds
            raise RecursionError
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def nearest(name, known):
    """Up to 3 names (list of str) of `known` that resemble or contain `name`, best first."""
    return difflib.get_close_matches(name, known, 3, 0.7) or [other for other in known if name and name in other][:3]


def _unknown(name, known, prefix='', origin=''):
    names = ' or '.join(prefix + other for other in nearest(name, known))
    return InputError(
        f'unknown option {prefix}{name:.80}{origin}; ' + (f'did you mean {names}?' if names else '--help lists the options')
    )


def _read(path):
    """Text of the YAML file and its {name: node}."""
    try:
        with open(path, 'rb') as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f'configuration {path} is larger than {MAX_BYTES} bytes')
        text = data.decode('utf-8-sig')
        root = yaml.compose(text, _Loader)
    except OSError as error:
        raise InputError(f'cannot read configuration {path}: {error.strerror}') from error
    except RecursionError as error:
        raise InputError(f'configuration {path} is nested too deeply') from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: bad bytes, bad \U escapes
        mark = getattr(error, 'problem_mark', None)
        reason = f'line {mark.line + 1}: {error.problem}' if mark else ' '.join(str(error).split())
        raise InputError(f'configuration {path} is not YAML that can be used: {reason}') from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f'configuration {path} is not a mapping; expected lines `name: value`')
    nodes = {}
    for key, node in root.value:
        where = f'configuration {path} line {key.start_mark.line + 1}'
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f'{where}: an option name must be text')
        if key.value in nodes:
            raise InputError(f'{where}: {key.value:.80} is given twice')
        nodes[key.value] = node
    return text, nodes


def _read_options(path):
    text, nodes = _read(path)
    options, group = {}, ''
    for line in text.splitlines():
        if line.startswith('# '):
            group = line[2:]
        elif match := OPTION_LINE.fullmatch(line):
            name, shown, description = match.groups()
            default = _Loader('').construct_object(nodes[name], deep=True)
            options[name] = Option(default, shown, description, group)
    if missing := nodes.keys() - options.keys():
        raise InputError(f'{path}: option without help text: {", ".join(sorted(missing))}')
    return options


def _from_file(path, options):
    """Yield (name, str or list of str, origin). The text of a scalar counts, not the type YAML sees in it:
    YAML 1.1 reads 1e-5 as a string, 1:30 as 90 and `on` as true."""
    for name, node in _read(path)[1].items():
        origin = f'in {path} line {node.start_mark.line + 1}'
        if name not in options:
            raise _unknown(name, options, origin=f' {origin}')
        items = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(item, yaml.ScalarNode) for item in items):
            raise InputError(f'{name} {origin}: expected a value or a list of values, not nested ones')
        texts = ['' if item.tag.endswith(':null') else item.value for item in items]
        yield name, texts if isinstance(node, yaml.SequenceNode) else texts[0], origin


def _from_command_line(argv, options):
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


def _kind(option):
    """Type of the option's value, or of its elements where it is a list."""
    default = option.default
    if isinstance(default, list):
        return type(default[0]) if default else str
    return int if AUTO in option.help else type(default)


def _scalar(kind, text):
    text = text if kind is str else text.strip()
    if kind is bool:
        return BOOLS[text.lower()]
    if kind is int and not re.fullmatch(r'[+-]?[0-9]{1,18}', text):  # so that it fits 64 bits
        raise ValueError
    if kind is float and not (re.fullmatch(r'[-+.0-9eE]+', text) and math.isfinite(float(text))):
        raise ValueError
    return kind(text)


def _convert(option, value):
    """`value` (str or list of str) in the type of the option's default; ValueError or KeyError if unfit."""
    many = isinstance(option.default, list)
    if AUTO in option.help and value == 'auto':
        return value
    if many and isinstance(value, str):
        inner = re.sub(r'^\[(.*)\]$', r'\1', value.strip()).strip()
        value = [item.strip() for item in inner.split(',')] if inner else []
    elif not many and isinstance(value, list):
        raise ValueError
    items = value if many else [value]
    if many and '' in items:
        raise ValueError
    items = [_scalar(_kind(option), item) for item in items]
    for match in CONSTRAINT.finditer(option.help):
        notation, operand = filter(None, match.groups())
        if not (
            len(items) == int(operand)
            if notation == 'exactly'
            else all(item in operand.split(', ') for item in items)
            if notation == 'one of:'
            else all(BOUNDS[notation](item, float(operand)) for item in items)
        ):
            raise ValueError
    return items if many else items[0]


def _expected(option):
    kind = AUTO if AUTO in option.help else KINDS[_kind(option)]
    kind = f'a list, each {kind}' if isinstance(option.default, list) else kind
    return ', '.join([kind, *(match.group() for match in CONSTRAINT.finditer(option.help))])


def _print_help(options):
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


def load(argv, recorded=None, default_path=DEFAULT_PATH):
    """Configuration (EasyDict) of the arguments `argv` (list of str, without the program); the last of a
    repeated option wins. `recorded` is a checkpoint's configuration: its values for FROM_CHECKPOINT stand between
    the defaults and what is given. InputError on anything unknown or unfit; `--help` prints the options and exits 0."""
    options = _read_options(default_path)
    if '-h' in argv or '--help' in argv:
        _print_help(options)
        sys.exit(0)
    given = list(_from_command_line(argv, options))
    files = [value for name, value, _ in given if name == 'config_path']
    given = [item for item in given if item[0] != 'config_path']
    config = {name: option.default for name, option in options.items()}
    kept = [(name, recorded[name]) for name in FROM_CHECKPOINT if name in (recorded or {})]
    kept = [
        (name, [*map(str, value)] if isinstance(value, list) else str(value), 'in the checkpoint') for name, value in kept
    ]
    for name, value, origin in [*kept, *(_from_file(files[-1], options) if files else ()), *given]:
        try:
            config[name] = _convert(options[name], value)
        except (ValueError, KeyError) as error:
            raise InputError(f'{name} is {value!r:.80} {origin}; expected {_expected(options[name])}') from error
    for name, value, _ in kept:
        if AUTO in options[name].help and config[name] == 'auto':  # a checkpoint decides what a training found
            config[name] = _convert(options[name], value)
    return EasyDict(config)


def idle_options(config):
    """A line for every option that is not at its default and has no effect beside the others (list of str)."""
    defaults = load([])
    return [
        f'{name} {config[name]} has no effect with {other} {value}'
        for other, value, names in IDLE
        for name in names.split()
        if config[other] == value and config[name] != defaults[name]
    ]


def differences(old, new):
    """Yield (name, value in `old`, value in `new`) of the options of the data, the network and the recipe that differ;
    what `old` does not know yet is at its default there."""
    for name, option in _read_options(DEFAULT_PATH).items():
        before = old.get(name, option.default)
        if option.group in ('Data', 'Network', 'Recipe') and before != new[name]:
            yield name, before, new[name]


def network_options(config):
    """The part of `config` that `InceptionV4` takes as keyword arguments (dict)."""
    return {name: config[name] for name in NETWORK_OPTIONS}


def save(config, path):
    """Write `config` as YAML that --config_path reads back, whole or not at all. InputError if it cannot."""
    try:
        with files.replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding='ascii')
    except OSError as error:
        raise InputError(f'cannot write configuration {path}: {error.strerror}') from error
