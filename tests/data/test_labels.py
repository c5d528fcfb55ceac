"""Files of class names, read and written with the same limit."""

from src.data.labels import LARGEST, by_number, parse, text


def test_written_names_are_read(tmp_path):
    path, names = tmp_path / 'labels.txt', {1: 'cat', 3: 'a: b', LARGEST: 'last'}
    path.write_text(text(names))
    assert parse(path) == (names, True)
    assert by_number({1: 'cat', 3: 'dog'}) == ['', 'cat', '', 'dog']


def test_larger_numbers_are_part_of_names(tmp_path):
    path = tmp_path / 'labels.txt'
    path.write_text(text({LARGEST + 1: 'cat'}))
    assert parse(path) == ({0: f'{LARGEST + 1}:cat'}, False)
