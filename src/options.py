"""The options that default_config.yaml declares, and the conversion of text to their values.

Its first lines say how a line of it gives an option's default, constraints and help text.
"""

from __future__ import annotations

import math
import operator
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from src.errors import InputError

MAX_BYTES = 64 * 1024  # PyYAML takes seconds for this much; a configuration has a few kilobytes
BOOLS = {'true': True, 'yes': True, 'on': True, '1': True, 'false': False, 'no': False, 'off': False, '0': False}
KINDS = {bool: 'true or false', int: 'a whole number', float: 'a finite number', str: 'text'}
BOUNDS = {'>=': operator.ge, '>': operator.gt, '<=': operator.le, '<': operator.lt}
CONSTRAINT = re.compile(r'(one of:) (\w+(?:, \w+)*)|([<>]=?) (-?\d+(?:\.\d+)?)|(exactly) (\d+) values')
AUTO = re.compile('auto or (?:a whole number|a number)')  # in the help text of an option that takes either
OPTION_LINE = re.compile(r'(\w+): +(.*?) +# (.+)')


class Option(NamedTuple):
    """One line of default_config.yaml. `shown` is the default as it is written there, `group` the heading above."""

    default: Any
    shown: str
    help: str
    group: str


class _Loader(yaml.SafeLoader):
    """Reads mappings, lists and scalars, without what makes a small file expensive to read."""

    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if event.anchor or event.tag:  # an alias needs an anchor; a few lines of aliases can fill the memory
            raise yaml.composer.ComposerError(None, None, 'anchors, aliases and tags are not accepted', event.start_mark)
        if self.depth > 8:  # MindSpore raises Python's own limit so much that reaching it takes many seconds
            raise RecursionError
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(path: str | Path) -> tuple[str, dict[str, yaml.Node]]:
    """(text, {name: node}) of a YAML file with lines `name: value`. InputError if it is not one."""
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
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: wrong bytes, wrong \U escapes
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


def read_options(path: str | Path) -> dict[str, Option]:
    """{name: Option} of default_config.yaml, in its order. InputError if a line has no help text."""
    text, nodes = read_yaml(path)
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


def kind(option: Option) -> type:
    """Type of the option's value, or of its elements where it is a list."""
    default = option.default
    if isinstance(default, list):
        return type(default[0]) if default else int if 'whole numbers' in option.help else str
    if takes_auto(option):
        return int if 'auto or a whole number' in option.help else float
    return type(default)


def takes_auto(option: Option) -> bool:
    """Whether the option takes the word auto in place of a number."""
    return bool(AUTO.search(option.help))


def _scalar(of, text):
    """`text` as a value of the type `of`; ValueError or KeyError if it is none."""
    text = text if of is str else text.strip()
    if of is bool:
        return BOOLS[text.lower()]
    if of is int and not re.fullmatch(r'[+-]?[0-9]{1,18}', text):  # so that it fits 64 bits
        raise ValueError
    if of is float and not (re.fullmatch(r'[-+.0-9eE]+', text) and math.isfinite(float(text))):
        raise ValueError
    return of(text)


def convert(option: Option, value: str | list[str]):
    """The value that a text, or a list of texts, gives the option. ValueError or KeyError if it does not fit."""
    many = isinstance(option.default, list)
    if takes_auto(option) and value == 'auto':
        return value
    if many and isinstance(value, str):
        inner = re.sub(r'^\[(.*)\]$', r'\1', value.strip()).strip()
        value = [item.strip() for item in inner.split(',')] if inner else []
    elif not many and isinstance(value, list):
        raise ValueError
    items = value if many else [value]
    if many and '' in items:
        raise ValueError
    items = [_scalar(kind(option), item) for item in items]
    if not all(_holds(*filter(None, match.groups()), items) for match in CONSTRAINT.finditer(option.help)):
        raise ValueError
    return items if many else items[0]


def _holds(notation, operand, items):
    """Whether the values `items` meet one constraint of the help text."""
    if notation == 'exactly':
        return len(items) == int(operand)
    if notation == 'one of:':
        return all(item in operand.split(', ') for item in items)
    return all(BOUNDS[notation](item, float(operand)) for item in items)


def expected(option: Option) -> str:
    """What the option takes, for an error message."""
    auto = AUTO.search(option.help)
    one = auto.group() if auto else KINDS[kind(option)]
    one = f'a list, each {one}' if isinstance(option.default, list) else one
    return ', '.join([one, *(match.group() for match in CONSTRAINT.finditer(option.help))])
