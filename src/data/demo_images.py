"""The demo's data set of drawn images."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from src.data.classes import names_as_text
from src.data.tfrecord import write_shards
from src.errors import reading

# One cue alone tells at most 4 of the 10 classes, two tell at most 9: 1 and 3, 4 and 5 differ in colour only,
# 1 and 2, 5 and 6, 7 and 9 in texture only, 7 and 8 in shape only (plain, as crops show little of a shape).
NAMES = """red striped disc, red dotted disc, blue striped disc, blue dotted square, green dotted square,
green plain square, yellow plain star, yellow plain disc, yellow checked star, green checked triangle"""
CLASSES = {label: tuple(words.split()) for label, words in enumerate(NAMES.split(','), 1)}
SHARDS = 2  # of each split
_COLOURS = {'red': (215, 30, 35), 'green': (25, 160, 50), 'blue': (35, 60, 215), 'yellow': (240, 205, 20)}


def _distance(shape, x, y):
    """How far (x, y) lie outside the shape, negative inside; all shapes but the star have about the same area."""
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    if shape == 'disc':
        return radius - 1
    corners, reach, inner = {'triangle': (3, 1.45, 0.5), 'square': (4, 1.25, 0.7071), 'star': (5, 1.35, 0.38)}[shape]
    half = np.pi / corners
    angle = np.abs((angle + half) % (2 * half) - half)  # fold onto half a corner: one edge is left
    edge = inner * np.sin(half), 1 - inner * np.cos(half)
    return (edge[0] * (radius * np.cos(angle) - reach) + edge[1] * radius * np.sin(angle)) / np.hypot(*edge)


def _texture(texture, x, y, period):
    """Share of the second tone, 0 to 1, at (x, y)."""
    wave_x, wave_y = np.sin(2 * np.pi * x / period), np.sin(2 * np.pi * y / period)
    level = {'plain': 0 * x - 1, 'striped': wave_x, 'dotted': wave_x + wave_y - 0.8, 'checked': 2 * wave_x * wave_y}[texture]
    return np.clip(level * 2.5 + 0.5, 0, 1)


def draw(colour: str, texture: str, shape: str, rng: np.random.Generator) -> np.ndarray:
    """One image, uint8 (height, width, 3), sides of 120 to 320; everything but the class is random."""
    area, aspect = rng.uniform(140, 270) ** 2, np.exp(rng.uniform(-0.3, 0.3))
    height, width = (int(np.clip((area * ratio) ** 0.5, 120, 320)) for ratio in (1 / aspect, aspect))
    radius = rng.uniform(0.4, 0.48) * min(height, width)
    middle = np.array([height, width]) / 2
    at = middle + rng.uniform(-0.5, 0.5, 2) * (middle - radius)
    row, column = np.mgrid[:height, :width].astype(np.float32)
    row, column = (row - at[0]) / radius, (column - at[1]) / radius

    def turned(angle):
        return column * np.cos(angle) + row * np.sin(angle), row * np.cos(angle) - column * np.sin(angle)

    inside = np.clip(0.5 - radius * _distance(shape, *turned(-np.pi / 2 + rng.uniform(-0.2, 0.2))), 0, 1)
    x, y = turned(rng.uniform(-0.2, 0.2))
    second = _texture(texture, x + rng.uniform(), y + rng.uniform(), rng.uniform(0.45, 0.6))
    tone = np.array(_COLOURS[colour]) * rng.uniform(0.8, 1.05) + rng.uniform(-15, 15, 3)
    other = [rng.uniform(215, 250)] * 3
    ground = rng.uniform(20, 120) + rng.uniform(-20, 20, (2, 3))
    slope = np.clip((turned(rng.uniform(0, 2 * np.pi))[0] + 2) / 4, 0, 1)
    light = rng.uniform(0.85, 1.1) + rng.uniform(-0.15, 0.15) * column
    shares = np.stack([inside * second, inside * (1 - second), (1 - inside) * slope, (1 - inside) * (1 - slope)], -1)
    image = (shares * light[..., None]).astype(np.float32) @ np.array([other, tone, *ground], np.float32)
    image += rng.uniform(3, 12) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def _examples(split, per_class, seed):
    stream = [seed, split == 'train']
    for k, label in enumerate(np.random.default_rng(stream).permutation(np.repeat(list(CLASSES), per_class))):
        rng, file = np.random.default_rng([*stream, k]), io.BytesIO()
        Image.fromarray(draw(*CLASSES[label], rng)).save(file, 'JPEG', quality=int(rng.integers(60, 96)))
        yield file.getvalue(), int(label), f'{split}_{k:05d}.jpg'


def make(directory: str | Path, seed: int = 1, train_per_class: int = 60, validation_per_class: int = 20) -> str | Path:
    """Write train and validation shards (labels 1 to 10) and labels.txt to `directory`, in place of those of an earlier
    demo, and return it. InputError for files of somebody else."""
    labels, text = Path(directory, 'labels.txt'), names_as_text(['', *map(' '.join, CLASSES.values())])
    with reading(directory, 'give another directory that can be written'):
        os.makedirs(directory, exist_ok=True)
        there = min((name for name in os.listdir(directory) if '-of-' in name), default=None)
        if there and not (labels.exists() and labels.read_text() == text):
            raise ValueError(f'holds {there}, not made by the demo')
        labels.write_text(text)
        for split, per_class in (('train', train_per_class), ('validation', validation_per_class)):
            write_shards(directory, split, _examples(split, per_class, seed), SHARDS)
    return directory
