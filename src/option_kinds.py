"""The options that default_config.yaml declares: their types, constraints and help texts. Its first lines say how."""

from __future__ import annotations

import functools
import operator
import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

DEFAULT_PATH = Path(__file__).resolve().parents[1] / 'default_config.yaml'
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

    @property
    def kind(self) -> type:
        """Type of the option's value, or of its elements where it is a list."""
        if isinstance(self.default, list):
            return type(self.default[0]) if self.default else int if 'whole numbers' in self.help else str
        if self.takes_auto:
            return int if 'auto or a whole number' in self.help else float
        return type(self.default)

    @property
    def takes_auto(self) -> bool:
        """Whether the option takes the word auto in place of a number."""
        return bool(AUTO.search(self.help))

    @property
    def expected(self) -> str:
        """What the option takes, for an error message."""
        one = AUTO.search(self.help)[0] if self.takes_auto else KINDS[self.kind]
        one = f'a list, each {one}' if isinstance(self.default, list) else one
        return ', '.join([one, *(match.group() for match in CONSTRAINT.finditer(self.help))])

    def convert(self, value: str | list[str]) -> Any:
        """The value that a text, or a list of texts, stands for. ValueError or KeyError if it does not fit."""
        if self.takes_auto and value == 'auto':
            return value
        many = isinstance(self.default, list)
        if many and isinstance(value, str):
            value = _split(value)
        items = value if many and isinstance(value, list) else [value]
        items = [_scalar(self.kind, item) for item in items]
        if many and '' in items or not all(_holds(*filter(None, c.groups()), items) for c in CONSTRAINT.finditer(self.help)):
            raise ValueError
        return items if many else items[0]


def _split(text):
    """The items of a list as a text: `a, b` or `[a, b]`."""
    inner = re.sub(r'^\[(.*)\]$', r'\1', text.strip()).strip()
    return [item.strip() for item in inner.split(',')] if inner else []


def _scalar(of, text):
    """`text` as a value of the type `of`; ValueError or KeyError if it is none."""
    if not isinstance(text, str):
        raise ValueError
    if of is bool:
        return BOOLS[text.strip().lower()]
    value = of(text)
    if of is not str and not abs(value) < 1e18:  # not finite, or too large for 64 bits
        raise ValueError
    return value


def _holds(notation, operand, items):
    """Whether the values `items` meet one constraint of the help text."""
    if notation == 'exactly':
        return len(items) == int(operand)
    if notation == 'one of:':
        return all(item in operand.split(', ') for item in items)
    return all(BOUNDS[notation](item, float(operand)) for item in items)


@functools.lru_cache(None)
def declared() -> dict[str, Option]:
    """{name: Option} of default_config.yaml, in its order."""
    options, group = {}, ''
    for line in DEFAULT_PATH.read_text('utf-8').splitlines():
        if line.startswith('# '):
            group = line[2:]
        elif match := OPTION_LINE.fullmatch(line):
            name, shown, description = match.groups()
            options[name] = Option(yaml.safe_load(shown), shown, description, group)
    return options
