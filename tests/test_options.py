"""Options: types, order of precedence, and one clear InputError for whatever cannot be used."""

import copy
import pathlib
import pickle

import pytest
import yaml

from src import option_kinds, options
from src.errors import InputError
from src.options import load_settings, save_settings

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPTIONS = options.declared()


@pytest.fixture(name='write')
def _write(tmp_path):
    def write(content):
        path = tmp_path / 'given.yaml'
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def fails(argv, *parts):
    with pytest.raises(InputError) as caught:
        load_settings(argv)
    message = str(caught.value)
    assert '\n' not in message and all(part in message for part in parts), message


def test_defaults_are_the_yaml_file_and_meet_their_own_constraints():
    loaded = load_settings([])
    assert loaded == yaml.safe_load(options.DEFAULT_PATH.read_text())
    assert loaded.block_counts == [4, 7, 3] and loaded.weight_decay == 1e-5 and loaded.freeze == []
    words = []
    for name, option in OPTIONS.items():
        text = ','.join(map(str, option.default)) if isinstance(option.default, list) else str(option.default)
        words.append(f'--{name}={text}')
    assert load_settings(words) == loaded


def test_every_option_is_explained_and_every_number_is_bounded():
    assert {option.group for option in OPTIONS.values()} == {'Data', 'Network', 'Recipe', 'Run', 'Export'}
    for name, option in OPTIONS.items():
        assert len(option.help) > 10, name
        notations = [match.group() for match in option_kinds.CONSTRAINT.finditer(option.help)]
        assert option.kind not in (int, float) or any(notation.startswith('>') for notation in notations), name
        assert option.kind is not bool or 'true or false' in option.help, name
        if condition := option_kinds.CONDITION.search(option.help):
            OPTIONS[condition[1]].convert(condition[2])


@pytest.mark.parametrize(
    'name, text, value',
    [
        ('use_nesterov', 'TRUE', True),
        ('bn_scale', 'NO', False),
        ('batch_size', '32', 32),
        ('lr', '1e-5', 1e-5),
        ('lr', '2', 2.0),
        ('label_offset', '0', '0'),
        ('log_name', '007', '007'),
        ('num_classes', 'auto', 'auto'),
        ('data_dir', '/a b/ü=c', '/a b/ü=c'),
        ('block_counts', '[1, 2, 3]', [1, 2, 3]),
        ('freeze', '[conv2d_1a_3x3, mixed_5*]', ['conv2d_1a_3x3', 'mixed_5*']),
    ],
)
def test_good_values(write, name, text, value):
    for argv in [f'--{name}', text], [f'--{name}={text}'], ['--config_path', write(f'{name}: {text}\n')]:
        got = load_settings(argv)[name]
        assert got == value and type(got) is type(value)


def test_command_line_only():
    found = load_settings(['--block_counts', '1,1,1', '--data_dir=--odd', '--lr', '1', '--lr', '2', '--eval_dir', ''])
    assert (found.block_counts, found.data_dir, found.lr, found.eval_dir) == ([1, 1, 1], '--odd', 2.0, '')


@pytest.mark.parametrize(
    'text, name, value',
    [
        ('block_counts:\n- 1\n- 2\n- 3\n', 'block_counts', [1, 2, 3]),
        ("freeze: ['a,b']", 'freeze', ['a,b']),
        ('eval_dir:\n', 'eval_dir', ''),
        ("log_name: 'null'", 'log_name', 'null'),
        ('\ufefflr: 2', 'lr', 2.0),
        ('lr_head: 0.0\nopset: auto\nfold_bn: true\naipp:\nlr: 2\n', 'lr', 2.0),  # config.yaml of earlier versions
    ],
)
def test_file_only(write, text, name, value):
    assert load_settings(['--config_path', write(text)])[name] == value


def test_precedence(write):
    loaded = load_settings(['--lr', '3', '--config_path', write('lr: 2\nseed: 2\n')])
    assert (loaded.lr, loaded.seed, loaded.momentum) == (3.0, 2, 0.9)


@pytest.mark.parametrize(
    'name, text, expected',
    [
        ('use_nesterov', 'maybe', 'true or false'),
        ('batch_size', '1e3', 'a whole number, >= 0'),
        ('batch_size', "''", 'a whole number'),
        ('seed', '4294967296', '< 4294967296'),
        ('image_size', '74', '>= 75'),
        ('lr', 'nan', 'a finite number, > 0'),
        ('optimizer', 'adam', 'one of: rmsprop, momentum'),
        ('num_classes', 'automatic', 'expected auto or a whole number, >= 2'),
        ('bn_decay', '1.5', 'expected auto or a number, >= 0, <= 1'),
        ('block_counts', '[1, 1]', 'exactly 3 values'),
        ('freeze', "['', a]", 'each text'),
    ],
)
def test_bad_values_name_option_value_origin_and_remedy(write, name, text, expected):
    bare = text.replace("''", '')
    fails([f'--{name}', bare], f'{name} is', bare[:10], 'on the command line', expected)
    path = write(f'# first line\n{name}: {text}\n')
    fails(['--config_path', path], f'{name} is', f'{path} line 2', expected)


@pytest.mark.parametrize(
    'argv, part',
    [
        (['--batchsize', '1'], 'unknown option --batchsize; did you mean --batch_size?'),
        (['--learning_rate', '1'], 'did you mean --lr?'),
        (['--weights=x'], 'did you mean --restore_path or --ckpt_path?'),
        (['--epochs', '3'], '--max_epochs'),
        (['--zzzzzz', '1'], 'unknown option --zzzzzz; --help lists'),
        (['--data_dir', '--lr', '1'], 'argument --data_dir: expected one argument'),
        (['train'], "unexpected argument 'train'"),
        (['--lr', '1', '2'], "unexpected argument '2'"),
        (['--block_counts', '1,,1'], "block_counts is '1,,1'"),
    ],
)
def test_bad_command_lines(argv, part):
    fails(argv, part)


@pytest.mark.parametrize(
    'content, part',
    [
        ('batchsize: 1', 'line 1; did you mean batch_size?'),
        ('lr: 1\nlr: 2', 'line 2: lr is given twice'),
        ('lr: {a: 1}', 'not nested'),
        ('[a]: 1', 'must be text'),
        ('- lr', 'not a mapping'),
        ('lr: [1', 'line 1: expected'),
        ('lr: 1: 2', 'line 1: mapping values'),
        (b'\xff\xfe\x80', "'utf-8' codec can't decode"),
        (b'#' * (1 << 20), 'larger than'),
    ],
)
def test_bad_files(write, content, part):
    path = write(content)
    fails(['--config_path', path], path, part)


def test_missing_file_or_directory(tmp_path):
    fails(['--config_path', 'missing.yaml'], 'missing.yaml: No such file')
    fails(['--config_path', str(tmp_path)], f'{tmp_path}: Is a directory')


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        load_settings(['--bogus', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and '--config_path' in text
    for name, option in OPTIONS.items():
        assert f'--{name} {option.shown} {option.help}' in text and f' {option.group}: ' in text


@pytest.mark.parametrize(
    'argv',
    [
        [],
        ['--lr', '1e-5', '--momentum', '0.12345678901234567', '--freeze', 'a,2,null', '--block_counts=1,1,1'],
        ['--use_nesterov', 'on', '--seed', '0', '--log_name', 'null', '--log_dir', '1e3', '--file_name', 'yes'],
        ['--data_dir', 'ü \udcff \'x\' "y"\n# : ' + 'long ' * 50, '--ckpt_path', ' - a', '--eval_dir', '*x'],
    ],
)
def test_save_round_trip(tmp_path, argv):
    loaded, path = load_settings(argv), tmp_path / 'saved.yaml'
    save_settings(loaded, path)
    again = load_settings(['--config_path', str(path)])
    assert again == loaded and [*map(repr, again.values())] == [*map(repr, loaded.values())]
    assert [item.name for item in tmp_path.iterdir()] == ['saved.yaml']


def test_save_failures_leave_nothing(tmp_path):
    (tmp_path / 'taken').mkdir()
    for path in tmp_path / 'absent' / 'saved.yaml', tmp_path / 'taken':
        with pytest.raises(InputError, match=f'^{path}: '):
            save_settings(load_settings([]), path)
    assert [item.name for item in tmp_path.iterdir()] == ['taken']


def test_settings_are_read_only():
    settings = load_settings([])
    for change in (
        lambda: setattr(settings, 'lr', 1.0),
        lambda: settings.__setitem__('lr', 1.0),
        lambda: settings.update(lr=1.0),
        lambda: settings.but(learning=1.0),
        lambda: settings.learning,
    ):
        with pytest.raises(AttributeError):
            change()
    other = settings.but(lr=1.0, batch_size=4)
    assert (other.lr, other.batch_size, other.seed) == (1.0, 4, 1) and settings.lr == 0.045
    for same in pickle.loads(pickle.dumps(other)), copy.deepcopy(other), options.Settings(dict(other)):
        assert same == other and same.lr == 1.0
    settings.block_counts.append(9)
    assert load_settings([]).block_counts == [4, 7, 3]


def test_groups():
    settings = load_settings(['--bn_decay', '0.5', '--num_classes', '7'])
    network = {
        'num_classes': 7,
        'image_size': 299,
        'block_counts': [4, 7, 3],
        'bn_decay': 0.5,
        'bn_scale': False,
        'aux_logits': False,
    }
    assert settings.group('Network') == settings.network() == network
    assert {*settings.group('Data', 'Recipe')} >= {'seed', 'lr', 'amp_level', 'dropout_keep_prob', 'label_offset'}
    assert not {*settings.group(*options.RESULT)} & {'data_dir', 'num_workers', 'log_dir', 'resume', 'device_target'}
    assert options.Settings({'num_classes': 7, 'lr': 1.0}).network() == {'num_classes': 7}  # what a checkpoint records


def test_differences_name_what_changes_a_result():
    now = load_settings(['--lr', '0.1'])
    assert [*options.differences({}, now)] == [('lr', 0.045, 0.1)]
    same = {**now, **options.GONE, 'data_dir': 'elsewhere', 'seed': 1, 'max_overflow_steps': 9}
    assert [*options.differences(same, now)] == []
    gone = {**now, 'lr_of_the_head': 1.0}
    assert [*options.differences(gone, now)] == []


def test_an_option_that_has_gone_counts_where_it_had_another_value(monkeypatch, write):
    monkeypatch.setitem(options.GONE, 'rmsprop_rho', 0.9)
    monkeypatch.setattr(options, 'GONE_OF_RESULT', ['rmsprop_rho'])
    settings = load_settings([])
    assert [*options.differences({'rmsprop_rho': 0.9}, settings)] == []
    assert [*options.differences({'rmsprop_rho': 0.8}, settings)] == [('rmsprop_rho', 0.8, 0.9)]
    load_settings(['--config_path', write('rmsprop_rho: 0.9')])
    fails(['--config_path', write('rmsprop_rho: 0.8')], 'line 1: earlier versions had it, now it is always 0.9')
    fails(['--rmsprop_rho', '0.8'], 'unknown option --rmsprop_rho: earlier versions had it, now it is always 0.9')


def test_recipes_use_what_they_set():
    """The original's recipe is the default spelled out, with every option that a recipe for ImageNet changes."""
    spelled_out = yaml.safe_load((ROOT / 'recipes/original.yaml').read_text()).keys()
    assert load_settings(['--config_path', str(ROOT / 'recipes/original.yaml')]) == load_settings([])
    for path in (ROOT / 'recipes').iterdir():
        assert path.read_text().startswith('# ')
        assert load_settings(['--config_path', str(path)]).idle() == []
        assert path.stem not in ('paper', 'fast') or yaml.safe_load(path.read_text()).keys() <= spelled_out


def test_options_without_effect_are_named():
    def idle(*arguments):
        return load_settings([*arguments]).idle()

    assert idle() == idle('--use_nesterov', 'true', '--optimizer', 'momentum') == []
    assert idle('--use_nesterov', 'true') == ['use_nesterov True has no effect with optimizer rmsprop']
    assert idle('--T_max', '9', '--lr_schedule', 'constant') == ['T_max 9 has no effect with lr_schedule constant']


def test_a_checkpoint_gives_network_options():
    recorded = {'num_classes': 7, 'block_counts': [1, 2, 1], 'bn_scale': True, 'lr': 9.0, 'label_offset': '1'}
    recorded['dropout_keep_prob'] = 0.5
    found = load_settings(['--num_classes', '8'], recorded)
    assert (found.num_classes, found.block_counts, found.bn_scale, found.label_offset) == (8, [1, 2, 1], True, '1')
    assert (found.lr, found.dropout_keep_prob) == (0.045, 0.8)
    assert load_settings([], recorded).num_classes == load_settings(['--num_classes', 'auto'], recorded).num_classes == 7
    with pytest.raises(InputError, match='in the checkpoint'):
        load_settings([], {'num_classes': 'many'})


def test_decay_of_batch_norm_by_itself():
    """A checkpoint gives the number that the training had; weights that record none are evaluated without one."""
    assert load_settings(['--bn_decay', '0.5'], {'bn_decay': 0.8}).bn_decay == 0.5
    assert load_settings(['--bn_decay', 'auto'], {'bn_decay': 0.848484848}).bn_decay == 0.848484848
    found = load_settings([], {'num_classes': 7})
    assert found.bn_decay == 'auto' and 'bn_decay' not in found.network()
