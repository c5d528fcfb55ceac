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
# They say where the records are and how fast they come.
FREE = ('data_dir', 'dataset_format', 'num_workers', 'augment_device', 'max_bad_fraction')

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

# Ours: what MindSpore's model zoo, MindCV, ModelArts, timm, torchvision, Ultralytics and Keras call it. Only for messages.
OTHER_NAMES = {
    'data_dir': 'data data_path data_root data_url dataset dataset_dir dataset_path imagenet root train_dir',
    'dataset_format': 'ds_type dataset_type data_format',
    'image_size': 'image_height image_width img_size imgsz input_size height width resolution size train_crop_size',
    'min_object_covered': 'scale',
    'num_workers': 'j num_parallel_workers thread_num threads work_nums workers',
    'seed': 'manual_seed random_seed',
    'num_classes': 'class_num classes n_classes nb_classes nc num_class',
    'dropout_keep_prob': 'drop drop_rate dropout dropout_rate keep_prob',
    'bn_decay': 'bn_momentum',
    'aux_loss_weight': 'aux_factor aux_weight',
    'batch_size': 'b bs batch per_batch_size train_batch_size val_batch_size',
    'max_epochs': 'e epoch epoch_num epoch_size epochs n_epochs num_epochs total_epochs',
    'max_train_steps': 'max_steps num_steps steps total_steps train_steps',
    'optimizer': 'opt optim',
    'lr': 'base_lr init_lr initial_lr learning_rate lr0 lr_init lr_max',
    'lr_schedule': 'lr_scheduler lr_policy sched scheduler schedule',
    'eta_min': 'end_lr lr_end lr_min lrf min_lr',
    'lr_decay_rate': 'decay_rate gamma lr_gamma lr_factor',
    'lr_decay_epochs': 'decay_epochs lr_step_size step_size',
    'warmup_epochs': 'lr_warmup_epochs warmup warmup_epoch',
    'rmsprop_decay': 'alpha decay opt_alpha rho',
    'rmsprop_epsilon': 'eps epsilon opt_eps',
    'use_nesterov': 'nesterov',
    'weight_decay': 'l2 wd',
    'label_smoothing': 'label_smooth label_smooth_factor smooth_factor smoothing',
    'loss_scale': 'dynamic_loss_scale loss_scale_type',
    'clip_norm': 'clip_grad clip_grad_norm clip_value grad_clip max_grad_norm',
    'ema_decay': 'ema model_ema model_ema_decay',
    'freeze': 'freeze_layer freeze_layers',
    'epochs_between_evals': 'eval_freq eval_interval val_interval val_period',
    'ckpt_path': 'checkpoint checkpoint_file checkpoint_path ckpt ckpt_file load_path model_path weights',
    'restore_path': 'init_checkpoint initial_checkpoint pre_ckpt_path pre_trained pretrained pretrain_path weights',
    'resume': 'auto_resume resume_ckpt resume_from resume_path',
    'device_target': 'accelerator device platform run_platform target',
    'device_id': 'gpu gpu_id npu',
    'rank_size': 'device_num group_size nproc_per_node rank_num world_size',
    'bash scripts/run_distribute_train.sh': 'dist distribute distributed is_distributed run_distribute',
    'amp_level': 'amp apex dtype fp16 half mixed_precision precision use_fp16',
    'iterations_per_loop': 'data_sink_steps dataset_sink_mode ds_sink_mode sink_size',
    'display_every': 'log_every log_freq log_interval print_freq per_print_times',
    'log_dir': 'ckpt_save_dir experiment logdir out_dir output_dir output_path project save_dir save_path train_url',
    'tensorboard': 'log_tb summary tb',
    'save_checkpoint_steps': 'save_checkpoint_epochs save_freq save_interval save_period',
    'keep_checkpoint_max': 'checkpoint_hist max_to_keep',
    'file_format': 'export_format format',
    'file_name': 'output_file',
    'config_path': 'c cfg config config_file',
}


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to 3 names of `known` that resemble or contain `name`, best first."""
    return difflib.get_close_matches(name, known, 3, 0.7) or [other for other in known if name and name in other][:3]


def _unknown(name, known, prefix='', origin=''):
    plain = name.lower().replace('-', '_')
    others = [ours for ours, names in OTHER_NAMES.items() if plain in names.split() and (ours in known or ' ' in ours)]
    found = [plain] if plain in known else others or nearest(name, known)
    names = ' or '.join(other if ' ' in other else prefix + other for other in found)
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


def named(argv: list[str], *names: str) -> list[str]:
    """`argv` with names of options before its first arguments where these have none: they are the values of the last of
    `names`, as MindSpore's model zoo calls its scripts."""
    count = next((number for number, word in enumerate(argv) if word.startswith('-')), len(argv))
    if not 0 < count <= len(names):
        return argv
    pairs = zip(names[-count:], argv)
    return [word for name, value in pairs for word in (f'--{name}', value)] + argv[count:]


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


def result_options(config: dict) -> dict[str, object]:
    """Those of the options `config` on which the result of a training depends. One that it does not have, since it is newer,
    counts as its default."""
    return {
        name: config.get(name, option.default)
        for name, option in read_options(DEFAULT_PATH).items()
        if (option.group in ('Data', 'Network', 'Recipe') or name == 'amp_level') and name not in FREE
    }


def differences(old: dict, new: dict) -> Iterator[tuple]:
    """Yield (name, value in `old`, value in `new`) for each of the `result_options` that differs."""
    for (name, before), after in zip(result_options(old).items(), result_options(new).values()):
        if before != after:
            yield name, before, after


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
