"""Options: types, order of precedence, and one clear InputError for whatever cannot be used."""

import pathlib
import re
import subprocess
import sys

import pytest
import yaml

from src import config, options
from src.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPTIONS = options.read_options(config.DEFAULT_PATH)


@pytest.fixture(name='write')
def _write(tmp_path):
    def write(content):
        path = tmp_path / 'given.yaml'
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def fails(argv, *parts):
    with pytest.raises(InputError) as caught:
        config.load(argv)
    message = str(caught.value)
    assert '\n' not in message and all(part in message for part in parts), message


def test_defaults_are_the_yaml_file_and_meet_their_own_constraints():
    loaded = config.load([])
    assert loaded == yaml.safe_load(config.DEFAULT_PATH.read_text())
    assert loaded.block_counts == [4, 7, 3] and loaded.weight_decay == 1e-5 and loaded.freeze == []
    for name, option in OPTIONS.items():
        text = ','.join(map(str, option.default)) if isinstance(option.default, list) else str(option.default)
        assert config.load([f'--{name}={text}']) == loaded


@pytest.mark.parametrize('name', OPTIONS)
def test_every_option_is_explained_and_every_number_is_bounded(name):
    option = OPTIONS[name]
    assert option.group and len(option.help) > 10
    notations = [match.group() for match in options.CONSTRAINT.finditer(option.help)]
    if options.kind(option) in (int, float):
        assert any(notation.startswith('>') for notation in notations)
    if options.kind(option) is bool:
        assert 'true or false' in option.help


def test_only_option_list(tmp_path):
    path = tmp_path / 'default.yaml'
    path.write_text('# Group\nlr: 0.5  # rate, > 0\nbare: 1\n')
    with pytest.raises(InputError, match='without help text: bare'):
        config.load([], default_path=path)
    path.write_text('# Group\nlr: 0.5  # rate, > 0\n')
    assert config.load(['--lr', '2'], default_path=path) == {'lr': 2.0}


GOOD = [
    ('use_nesterov', 'TRUE', True),
    ('use_nesterov', 'yes', True),
    ('use_nesterov', 'On', True),
    ('use_nesterov', '1', True),
    ('bn_scale', 'false', False),
    ('bn_scale', 'NO', False),
    ('bn_scale', 'off', False),
    ('bn_scale', '0', False),
    ('batch_size', '32', 32),
    ('seed', '4294967295', 4294967295),
    ('image_size', '+75', 75),
    ('lr', '1e-5', 1e-5),
    ('lr', '1E3', 1000.0),
    ('lr', '.5', 0.5),
    ('aux_loss_weight', '1', 1.0),
    ('dropout_keep_prob', '1', 1.0),
    ('eta_min', '0', 0.0),
    ('label_offset', '0', '0'),
    ('log_name', '2024', '2024'),
    ('log_name', 'on', 'on'),
    ('num_classes', 'auto', 'auto'),
    ('num_classes', '2', 2),
    ('log_name', '007', '007'),
    ('log_name', '1e-5', '1e-5'),
    ('data_dir', '/a b/ü=c', '/a b/ü=c'),
    ('data_dir', '2024-01-01', '2024-01-01'),
    ('amp_level', 'O2', 'O2'),
    ('block_counts', '[1,1,1]', [1, 1, 1]),
    ('block_counts', '[1, 2, 3]', [1, 2, 3]),
    ('freeze', '[conv2d_1a_3x3, mixed_5b]', ['conv2d_1a_3x3', 'mixed_5b']),
    ('freeze', '[]', []),
    ('freeze', "''", []),
    ('freeze', '[1]', ['1']),
]


@pytest.mark.parametrize('name, text, value', GOOD)
def test_good_values(write, name, text, value):
    bare = '' if text == "''" else text
    for argv in [f'--{name}', bare], [f'--{name}={bare}'], ['--config_path', write(f'{name}: {text}\n')]:
        got = config.load(argv)[name]
        assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    'argv, name, value',
    [
        (['--block_counts', '1,1,1'], 'block_counts', [1, 1, 1]),
        (['--freeze', 'a, b'], 'freeze', ['a', 'b']),
        (['--data_dir=--odd'], 'data_dir', '--odd'),
        (['--lr', '1', '--lr', '2'], 'lr', 2.0),
        (['--data_dir', ''], 'data_dir', ''),
        (['--eta_min', ' 1 '], 'eta_min', 1.0),
    ],
)
def test_command_line_only(argv, name, value):
    assert config.load(argv)[name] == value


@pytest.mark.parametrize(
    'text, name, value',
    [
        ('block_counts:\n- 1\n- 2\n- 3\n', 'block_counts', [1, 2, 3]),
        ("freeze: ['a,b']", 'freeze', ['a,b']),
        ('eval_dir:\n', 'eval_dir', ''),
        ('eval_dir: ~\n', 'eval_dir', ''),
        ("log_name: 'null'", 'log_name', 'null'),
        ('\ufefflr: 2', 'lr', 2.0),
        ('{lr: 2, seed: 3}', 'seed', 3),
    ],
)
def test_file_only(write, text, name, value):
    assert config.load(['--config_path', write(text)])[name] == value


def test_precedence(write):
    loaded = config.load(['--lr', '3', '--config_path', write('lr: 2\nseed: 2\n')])
    assert (loaded.lr, loaded.seed, loaded.momentum) == (3.0, 2, 0.9)


BAD = [
    ('use_nesterov', 'maybe', 'true or false'),
    ('use_nesterov', '2', 'true or false'),
    ('batch_size', '1e3', 'a whole number, >= 0'),
    ('batch_size', '1.0', 'a whole number'),
    ('batch_size', '1_000', 'a whole number'),
    ('batch_size', 'true', 'a whole number'),
    ('batch_size', '0x10', 'a whole number'),
    ('batch_size', '٣', 'a whole number'),
    ('batch_size', '9' * 19, 'a whole number'),
    ('batch_size', "''", 'a whole number'),
    ('batch_size', '-1', '>= 0'),
    ('seed', '4294967296', '< 4294967296'),
    ('image_size', '74', '>= 75'),
    ('lr', 'nan', 'a finite number, > 0'),
    ('lr', '.nan', 'a finite number'),
    ('lr', 'inf', 'a finite number'),
    ('lr', '-.inf', 'a finite number'),
    ('lr', '1e999', 'a finite number'),
    ('lr', '1_0', 'a finite number'),
    ('lr', 'fast', 'a finite number'),
    ('lr', '0', '> 0'),
    ('dropout_keep_prob', '1.01', '<= 1'),
    ('dropout_keep_prob', '0', '> 0'),
    ('label_smoothing', '1', '< 1'),
    ('momentum', '-0.1', '>= 0'),
    ('optimizer', 'adam', 'one of: rmsprop, momentum'),
    ('amp_level', 'O1', 'one of: auto, O0, O2, O3'),
    ('label_offset', '2', 'one of: auto, 0, 1'),
    ('num_classes', '1', 'expected auto or a whole number, >= 2'),
    ('num_classes', 'automatic', 'expected auto or a whole number, >= 2'),
    ('num_classes', '2.0', 'auto or a whole'),
    ('bn_decay', 'automatic', 'expected auto or a number, >= 0, <= 1'),
    ('bn_decay', '1.5', 'expected auto or a number, >= 0, <= 1'),
    ('mode', "''", 'one of: train,'),
    ('block_counts', '[1, 1]', 'exactly 3 values'),
    ('block_counts', '[]', 'exactly 3 values'),
    ('block_counts', '[1, 1, a]', 'each a whole number'),
    ('block_counts', '[1, 1, 0]', '>= 1'),
    ('block_counts', '[1, 1, 1.0]', 'each a whole number'),
    ('freeze', "['', a]", 'each text'),
]


@pytest.mark.parametrize('name, text, expected', BAD)
def test_bad_values_name_option_value_origin_and_remedy(write, name, text, expected):
    bare = text.replace("''", '')
    fails([f'--{name}', bare], f'{name} is', bare[:10], 'on the command line', expected)
    path = write(f'# first line\n{name}: {text}\n')
    fails(['--config_path', path], f'{name} is', f'{path} line 2', expected)


@pytest.mark.parametrize(
    'argv, part',
    [
        (['--batchsize', '1'], 'unknown option --batchsize; did you mean --batch_size?'),
        (['--batch-size=1'], 'did you mean --batch_size?'),
        (['--batchsize'], 'did you mean --batch_size?'),
        (['--batch', '1'], 'unknown option --batch; did you mean --batch_size?'),
        # Names that earlier versions had.
        (['--input', 'uint8'], 'unknown option --input; did you mean --export_input?'),
        (['--output=top5'], 'unknown option --output; did you mean --export_output?'),
        (['--labels', 'x'], 'unknown option --labels; did you mean --export_labels?'),
        (['--LR', '1'], 'unknown option --LR'),
        (['--confg_path', 'x'], 'did you mean --config_path?'),
        (['--zzzzzz', '1'], 'unknown option --zzzzzz; --help lists'),
        (['--'], 'unknown option --'),
        (['--=1'], 'unknown option --'),
        (['--helper'], 'unknown option'),
        (['--lr'], 'option --lr needs a value'),
        (['--data_dir', '--lr', '1'], 'option --data_dir needs a value'),
        (['--config_path'], 'option --config_path needs a value'),
        (['train'], "unexpected argument 'train'"),
        (['--lr', '1', '2'], "unexpected argument '2'"),
        (['-x'], "unexpected argument '-x'"),
        ([''], "''"),
        (['--block_counts', '1,,1'], "block_counts is '1,,1'"),
        (['--data_dir', 'x' * 9999, 'y'], "argument 'y'"),
    ],
)
def test_bad_command_lines(argv, part):
    fails(argv, part)


@pytest.mark.parametrize(
    'content, part',
    [
        ('batchsize: 1', 'unknown option batchsize in'),
        ('batchsize: 1', 'line 1; did you mean batch_size?'),
        ('output: top5', 'line 1; did you mean export_output?'),
        ('config_path: x', 'unknown option config_path'),
        ('data:\n  lr: 1', 'unknown option data'),
        ('lr: 1\nlr: 2', 'line 2: lr is given twice'),
        ("lr: 1\n'lr': 2", 'given twice'),
        ('lr: {a: 1}', 'not nested'),
        ('block_counts: [[1], 1, 1]', 'not nested'),
        ('[a]: 1', 'must be text'),
        ('data_dir: [a]', "data_dir is ['a']"),
        ('lr:', "lr is ''"),
        ('freeze: [~]', "freeze is ['']"),
        ('', 'not a mapping'),
        ('# nothing\n', 'not a mapping'),
        ('- lr', 'not a mapping'),
        ('text', 'not a mapping'),
        ('lr: [1', 'not YAML'),
        ('lr: 1\n---\nlr: 2', 'not YAML'),
        ('lr: 1: 2', 'line 1: mapping values'),
        ('\tlr: 1', 'not YAML'),
        ('log_name: "\\UFFFFFFFF"', 'not YAML'),
        ('%YAML 1.' + '1' * 5000 + '\n---\nlr: 2', 'not YAML'),
        (b'\x00\x01\x02', 'not YAML'),
        (b'\xff\xfe\x80', 'not YAML'),
        (bytes(range(256)), 'not YAML'),
        ('log_name: !!python/object/apply:os.getcwd []', 'tags are not accepted'),
        ('lr: !!float 1', 'tags'),
        ('data_dir: &a x\nlog_dir: *a', 'anchors, aliases'),
        ('freeze: &a [*a]', 'anchors, aliases'),
        ('<<: {lr: 1}', 'unknown option <<'),
        ('lr: ' + '[' * 60000, 'nested too deeply'),
        ('lr: ' + '{' * 60000, 'nested too deeply'),
        ('- ' * 30000, 'nested too deeply'),
        ('? ' * 30000, 'nested too deeply'),
        (b'#' * (1 << 20 | 1), 'larger than'),
    ],
)
def test_bad_files(write, content, part):
    path = write(content)
    fails(['--config_path', path], path, part)


def test_largest_file_does_not_hang(write):
    assert len(config.load(['--config_path', write(f'freeze: [{"a," * 32000}]')]).freeze) == 32000


@pytest.mark.parametrize('path', ['missing.yaml', '', 'a\0b'])
def test_missing_file_or_directory(tmp_path, path):
    fails(['--config_path', path], 'configuration')
    fails(['--config_path', str(tmp_path)], 'cannot read configuration', 'directory')


@pytest.mark.parametrize('flag', ['-h', '--help'])
def test_help_lists_every_option_even_beside_mistakes(capsys, flag):
    with pytest.raises(SystemExit) as caught:
        config.load(['--bogus', flag])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and '--config_path' in text
    for name, option in OPTIONS.items():
        assert re.search(rf'^  --{name} {re.escape(option.shown)} +{re.escape(option.help)}$', text, re.M)
        assert f'\n{option.group}:\n' in text


@pytest.mark.parametrize(
    'argv',
    [
        [],
        ['--lr', '1e-5', '--eta_min', '0.12345678901234567', '--freeze', 'a,2,null', '--block_counts=1,1,1'],
        ['--use_nesterov', 'on', '--seed', '0', '--log_name', 'null', '--log_dir', '1e3', '--file_name', 'yes'],
        ['--data_dir', 'ü \udcff \'x\' "y"\n# : ' + 'long ' * 50, '--ckpt_path', ' - a', '--eval_dir', '*x'],
    ],
)
def test_save_round_trip(tmp_path, argv):
    loaded, path = config.load(argv), tmp_path / 'saved.yaml'
    config.save(loaded, path)
    config.save(loaded, str(path))
    again = config.load(['--config_path', str(path)])
    assert again == loaded and [*map(repr, again.values())] == [*map(repr, loaded.values())]
    assert [item.name for item in tmp_path.iterdir()] == ['saved.yaml']


def test_save_failures_leave_nothing(tmp_path):
    with pytest.raises(InputError, match='cannot write configuration'):
        config.save(config.load([]), tmp_path / 'absent' / 'saved.yaml')
    (tmp_path / 'taken').mkdir()
    with pytest.raises(InputError, match='cannot write configuration'):
        config.save(config.load([]), tmp_path / 'taken')
    assert [item.name for item in tmp_path.iterdir()] == ['taken']


def test_loads_do_not_share_lists():
    config.load([]).block_counts.append(9)
    assert config.load([]).block_counts == [4, 7, 3]


def test_nearest():
    assert config.nearest('momentm', ['momentum', 'lr']) == ['momentum']
    assert config.nearest('', ['lr']) == [] == config.nearest('x', [])


def test_import_needs_neither_mindspore_nor_numpy():
    code = "import sys, src.config; sys.exit(bool({'mindspore', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize('path', sorted((config.DEFAULT_PATH.parent / 'recipes').iterdir()), ids=lambda path: path.name)
def test_recipes_use_what_they_say(path):
    assert path.read_text().startswith('# ')
    assert config.idle_options(config.load(['--config_path', str(path)])) == []


def test_original_recipe_is_the_default_spelled_out():
    """With every option that a recipe for ImageNet changes."""
    folder = config.DEFAULT_PATH.parent / 'recipes'
    assert config.load(['--config_path', str(folder / 'original.yaml')]) == config.load([])
    spelled_out = yaml.safe_load((folder / 'original.yaml').read_text()).keys()
    for name in ('paper.yaml', 'fast.yaml'):
        assert yaml.safe_load((folder / name).read_text()).keys() <= spelled_out


@pytest.mark.parametrize(
    'arguments, lines',
    [
        ([], []),
        (['--use_nesterov', 'true'], ['use_nesterov True has no effect with optimizer rmsprop']),
        (['--use_nesterov', 'true', '--optimizer', 'momentum'], []),
        (['--T_max', '9', '--lr_schedule', 'constant'], ['T_max 9 has no effect with lr_schedule constant']),
        (['--aux_loss_weight', '1'], ['aux_loss_weight 1.0 has no effect with aux_logits False']),
    ],
)
def test_options_without_effect_are_named(arguments, lines):
    assert config.idle_options(config.load(arguments)) == lines


def test_a_checkpoint_gives_network_options():
    recorded = {'num_classes': 7, 'block_counts': [1, 2, 1], 'bn_scale': True, 'lr': 9.0, 'label_offset': '1'}
    recorded['dropout_keep_prob'] = 0.5  # in checkpoints of earlier versions, whose network had it
    found = config.load(['--num_classes', '8'], recorded)
    assert 'dropout_keep_prob' not in config.network_options(found)
    assert (found.num_classes, found.block_counts, found.bn_scale, found.label_offset) == (8, [1, 2, 1], True, '1')
    assert found.lr == 0.045
    assert config.load([], recorded).num_classes == config.load(['--num_classes', 'auto'], recorded).num_classes == 7
    with pytest.raises(InputError, match='in the checkpoint'):
        config.load([], {'num_classes': 'many'})


def test_decay_of_batch_norm_by_itself():
    """A checkpoint gives the number that the training had; weights that record none are evaluated without one."""
    assert config.load(['--bn_decay', '0.5']).bn_decay == 0.5
    assert config.load(['--bn_decay', 'auto'], {'bn_decay': 0.848484848}).bn_decay == 0.848484848
    found = config.load([], {'num_classes': 7})
    assert found.bn_decay == 'auto' and 'bn_decay' not in config.network_options(found)
