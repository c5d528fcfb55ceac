"""Options: types, order of precedence, and one clear InputError for whatever cannot be used."""

import pathlib
import pickle

import pytest
import yaml

from src import option_kinds, options
from src.errors import InputError
from src.options import load_settings, save_settings

ROOT = pathlib.Path(__file__).resolve().parents[1]
OPTIONS = option_kinds.declared()


@pytest.fixture
def write(tmp_path):
    """Writes a file of options: content -> path"""

    def write_file(content):
        path = tmp_path / 'given.yaml'
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write_file


def fails(argv, *expected):
    with pytest.raises(InputError) as caught:
        load_settings(argv)
    message = str(caught.value)
    assert '\n' not in message and all(text in message for text in expected), message


def test_every_option_is_explained_and_every_number_is_bounded(capsys):
    assert load_settings([]) == yaml.safe_load(option_kinds.DEFAULT_PATH.read_text())
    of_others = 'learning_rate data_path ckpt_file work_nums class_num epoch_size imgsz weights pretrained width'
    assert {*of_others.split()} == {*options.OTHERS} and {*options.OTHERS.values()} < {*OPTIONS}
    for name, option in OPTIONS.items():
        notations = [match.group() for match in option_kinds.CONSTRAINT.finditer(option.help)]
        assert option.kind not in (int, float) or any(notation.startswith('>') for notation in notations), name
        assert option.kind is not bool or 'true or false' in option.help, name
    with pytest.raises(SystemExit) as caught:
        load_settings(['--bogus', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and '--config_path' in text
    assert all(f'--{name} {option.shown} {option.help}' in text for name, option in OPTIONS.items())


def test_good_values_and_their_precedence(write):
    text = "\ufefflr: 1e-5\nseed: 2\nblock_counts:\n- 1\n- 2\n- 3\nfreeze: [mixed_5*, 'a,b']\neval_dir:\nlog_name: 'null'\n"
    found = load_settings(['--config_path', write(text)])
    assert (found.lr, found.block_counts, found.freeze) == (1e-5, [1, 2, 3], ['mixed_5*', 'a,b'])
    assert (found.eval_dir, found.log_name) == ('', 'null')
    line = ['--lr', '3', '--config_path', write(text), '--lr', '4', '--data_dir=--odd', '--label_offset', '0']
    found = load_settings([*line, '--use_nesterov', 'TRUE', '--block_counts', '[1,1,1]'])
    assert (found.lr, found.seed, found.momentum, found.data_dir) == (4.0, 2, 0.9, '--odd')
    assert (found.label_offset, found.use_nesterov, found.block_counts) == ('0', True, [1, 1, 1])


@pytest.mark.parametrize(
    'name, text, expected',
    [
        ('use_nesterov', 'maybe', 'true or false'),
        ('batch_size', '1e3', 'a whole number, >= 0'),
        ('lr', 'nan', 'a finite number, > 0'),
        ('optimizer', 'adam', 'one of: rmsprop, momentum'),
        ('bn_decay', '1.5', 'expected auto or a number, >= 0, <= 1'),
        ('block_counts', '[1, 1]', 'exactly 3 values'),
    ],
)
def test_bad_values_name_option_value_origin_and_remedy(write, name, text, expected):
    fails([f'--{name}', text], f'{name} is', text, 'on the command line', expected)
    path = write(f'{name}: {text}')
    fails(['--config_path', path], f'{name} is', f'in {path}', expected)


@pytest.mark.parametrize(
    'given, expected',
    [
        (['--batchsize', '1'], 'unknown option --batchsize; did you mean --batch_size?'),
        (['--imgsz', '1'], 'unknown option --imgsz; did you mean --image_size?'),
        (['--epoch_size', '1'], '; did you mean --max_epochs?'),
        (['--zzzzzz', '1'], 'unknown option --zzzzzz; --help lists'),
        (['--data_dir', '--lr', '1'], 'argument --data_dir: expected one argument'),
        (['--lr', '1', '2'], "unexpected argument '2'"),
        (['--config_path', 'missing.yaml'], 'missing.yaml: No such file'),
        ('batchsize: 1', 'given.yaml; did you mean batch_size?'),
        ('lr: [1]', "lr is ['1'] in "),
        ('freeze: {a: 1}', "freeze is {'a': '1'} in "),
        (b'\xff\xfe\x80', "'utf-8' codec can't decode"),
    ],
)
def test_bad_command_lines_and_files(write, given, expected):
    fails(given if isinstance(given, list) else ['--config_path', write(given)], expected)


def test_save_round_trip(tmp_path):
    """Bit for bit, and text stays text."""
    numbers = ['--lr', '1e-5', '--momentum', '0.12345678901234567', '--freeze', 'a,2,null', '--log_dir', '1e3']
    texts = ['--log_name', 'null', '--file_name', 'yes', '--data_dir', 'ü \udcff \'x\' "y"\n# :', '--ckpt_path', ' - a']
    loaded, path = load_settings([*numbers, *texts]), tmp_path / 'saved.yaml'
    save_settings(loaded, path)
    again = load_settings(['--config_path', str(path)])
    assert again == loaded and [*map(repr, again.values())] == [*map(repr, loaded.values())]


def test_settings_are_read_only():
    settings = load_settings(['--num_classes', '7'])
    for change in (lambda: setattr(settings, 'lr', 1.0), lambda: settings.update({'lr': 1.0}), lambda: settings.learning):
        with pytest.raises(AttributeError):
            change()
    assert pickle.loads(pickle.dumps(settings.but(lr=1.0))) == {**settings, 'lr': 1.0}  # for data workers


def test_differences_name_what_changes_a_result():
    now = load_settings(['--lr', '0.1'])
    assert [*options.differences({}, now)] == [('lr', 0.045, 0.1)]
    same = {**now, 'data_dir': 'elsewhere', 'seed': 1, 'max_overflow_steps': 9, 'lr_head': 0.0}
    assert [*options.differences(same, now)] == []
    assert [*options.differences({**now, 'rmsprop_decay': 0.8}, now)] == [('rmsprop_decay', 0.8, 0.9)]


def test_recipes_use_what_they_set():
    """The original's recipe is the default spelled out, with every option that a recipe for ImageNet changes."""
    spelled_out = yaml.safe_load((ROOT / 'recipes/original.yaml').read_text()).keys()
    assert load_settings(['--config_path', str(ROOT / 'recipes/original.yaml')]) == load_settings([])
    for path in (ROOT / 'recipes').iterdir():
        assert path.read_text().startswith('# ')
        load_settings(['--config_path', str(path)])
        assert path.stem not in ('paper', 'fast') or yaml.safe_load(path.read_text()).keys() <= spelled_out


def test_a_checkpoint_has_the_network_options():
    recorded = {'num_classes': 7, 'block_counts': [1, 2, 1], 'bn_decay': 0.848484848, 'lr': 9.0}
    found = load_settings(['--num_classes', '8'], recorded)
    assert (found.num_classes, found.block_counts, found.lr) == (8, [1, 2, 1], 0.045)
    found = load_settings(['--num_classes', 'auto', '--bn_decay', 'auto'], recorded)
    assert (found.num_classes, found.bn_decay) == (7, 0.848484848)
    assert 'bn_decay' not in load_settings([], {'num_classes': 7}).network()  # weights that record none
    with pytest.raises(InputError, match='in the checkpoint'):
        load_settings([], {'num_classes': 'many'})
