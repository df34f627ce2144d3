from __future__ import annotations

import dataclasses

import pytest

from timm_collab.study import draw_pictures, pictures_of, report_text
from timm_collab.train.record.plots import can_plot

from . import toys


def tables(text: str) -> dict[str, dict[str, list[str]]]:
    """By setting and method, the cells of each line."""
    found: dict[str, dict[str, list[str]]] = {}
    setting = ''
    for line in text.splitlines():
        if line.startswith('## '):
            setting = line[3:]
        elif line.startswith('| '):
            method, *cells = [cell.strip() for cell in line.strip('|').split('|')]
            found.setdefault(setting, {})[method] = cells
    return found


def test_tables_match_the_rows(study):
    text = report_text(study, toys.rows(), {'errors': 'here/errors.png'}, 'there/runs.csv')
    found = tables(text)
    assert list(found) == ['clean', '40 %']
    assert found['40 %']['method'] == [
        'seeds', 'last', 'error', 'difference to single', 'best', 'consensus', 'step', 'training', 'time']
    # The differences are -1, -2, -3: deviation 1, Student's t of two degrees of freedom 4.303.
    assert found['40 %']['tree'] == [
        '3', '23.00 ± 3.00', '22.00 ± 3.00', '-2.00 ± 2.48', '21.00 ± 3.00', '21.50 ± 3.00', '2.00', '2.00', '3.00']
    assert found['40 %']['single'][:4] == ['3', '25.00 ± 4.00', '24.00 ± 4.00', '']
    assert found['clean']['tree'][:4] == ['1', '6.25', '5.25', '+0.25']
    assert text.startswith('**8 of 18 runs have not finished.**')
    assert '![Errors by method](here/errors.png)' in text and '[runs.csv](there/runs.csv)' in text
    assert "on split 'test'; 1,000 training images; wrong labels among them: 0.0 %; 40.0 %. cpu, 1 thread" in text
    assert 'commit abc' in text and 'teacher' not in text and 'Memory' not in text


def test_a_difference_that_is_clear_is_bold(study):
    rows = [dataclasses.replace(row, error=row.error - 2 * (row.method == 'tree')) for row in toys.rows()]
    assert tables(report_text(study, rows, {}, 'runs.csv'))['40 %']['tree'][2] == '20.00 ± 3.00'
    assert '| **-4.00 ± 2.48** |' in report_text(study, rows, {}, 'runs.csv')


def test_memory_and_teachers_are_shown_where_they_are_known(study):
    rows = [dataclasses.replace(row, peak_memory_mb=1000.0 + row.seed) for row in toys.rows()]
    rows[-1] = dataclasses.replace(rows[-1], teacher_seconds=60.0, teacher_multiply_adds=3_000_000)
    assert (rows[-1].setting, rows[-1].method) == ('40 %', 'tree')
    text = report_text(study, rows, {}, 'runs.csv')
    # One of three runs with a teacher: training (2 + 2 + 3) / 3, time (3 + 3 + 9) / 3.
    assert tables(text)['40 %']['tree'][-4:] == ['2.00', '2.33', '5.00', '1,001']
    assert 'If a method learns from a teacher' in text and 'Memory is the peak memory' in text


def test_without_multiply_adds_their_columns_are_left_out(study):
    rows = [dataclasses.replace(row, multiply_adds=None) for row in toys.rows()]
    text = report_text(study, rows, {}, 'runs.csv')
    assert tables(text)['40 %']['method'][-2:] == ['consensus', 'time'] and 'multiply-adds' not in text


def test_plots_depend_on_the_available_data(study):
    rows = toys.rows()
    assert pictures_of(study, rows) == ['errors', 'gain', 'noise']
    assert pictures_of(study, [row for row in rows if row.setting == 'clean']) == ['errors', 'gain']
    assert pictures_of(study, [row for row in rows if row.method == 'single']) == ['errors', 'noise']


@pytest.mark.skipif(not can_plot(), reason='needs matplotlib')
@pytest.mark.parametrize('column', ['multiply_adds', 'train_seconds'])
def test_pictures_are_drawn_with_their_metadata(study, tmp_path, column):
    from PIL import Image
    rows = toys.rows()
    if column == 'train_seconds':
        rows = [dataclasses.replace(row, multiply_adds=None) for row in rows]
    names = draw_pictures(study, rows, tmp_path / 'pictures', {'Source': 'abc'})
    assert names == ['errors', 'gain', 'noise']
    for name in names:
        with Image.open(tmp_path / 'pictures' / f'{name}.png') as image:
            assert image.info['Source'] == 'abc' and image.width > 500
    assert len(list((tmp_path / 'pictures').iterdir())) == 3


@pytest.mark.skipif(not can_plot(), reason='needs matplotlib')
def test_the_pictures_show_the_numbers(study):
    from timm_collab.study.pictures import draw_gain, draw_noise
    rows = toys.rows()
    _, noisy = draw_gain(study, rows).axes
    tree = noisy.containers[0]
    assert tree.get_label() == 'tree' and tree[0].get_xydata().tolist() == [[2.0, -2.0]]
    [segment] = tree[2][0].get_segments()
    assert segment[:, 1].tolist() == pytest.approx([-2 - 2.484, -2 + 2.484], abs=1e-3)
    [curves] = draw_noise(study, rows).axes
    assert {each.get_label(): each[0].get_xydata().tolist() for each in curves.containers} == {
        'single': [[0.0, 5.5], [40.0, 24.0]], 'tree': [[0.0, 5.25], [40.0, 22.0]]}


@pytest.mark.skipif(not can_plot(), reason='needs matplotlib')
def test_a_panel_shows_what_ran_there(study):
    from timm_collab.study.pictures import draw_errors, draw_noise
    rows = [row for row in toys.rows() if (row.setting, row.method) != ('clean', 'tree')]
    clean, noisy = draw_errors(study, rows).axes
    assert [label.get_text() for label in clean.get_yticklabels()] == ['single']
    assert [label.get_text() for label in noisy.get_yticklabels()] == ['single', 'tree']
    [curves] = draw_noise(study, rows).axes
    assert [each.get_label() for each in curves.containers] == ['single']  # of the tree there is one rate only


@pytest.mark.skipif(not can_plot(), reason='needs matplotlib')
def test_methods_of_one_colour_differ_by_marker(study):
    from timm_collab.study.pictures import _color, _marker
    many = dataclasses.replace(study, methods=tuple(f'method {index}' for index in range(24)))
    looks = {(_color(many, method), _marker(many, method)) for method in many.methods}
    assert len(looks) == len(many.methods)
