"""Plots of a run, from the files in its folder."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs import summary_values
from timm_collab.cli import main
from timm_collab.train.errors import TrainError
from timm_collab.train.record import plots
from timm_collab.train.record.plots import (
    draw_confusion,
    draw_disagreement,
    draw_noise,
    draw_score,
    plot_run,
    read_rows,
)
from timm_collab.train.record.summary import RunSummary

pytest.importorskip('matplotlib')

SUMMARY = RunSummary.from_dict(summary_values(), 'a test')


def row(epoch: int, heads: int = 2) -> dict:
    top1 = [50.0 + epoch + head for head in range(heads)]
    return {
        'epoch': epoch, 'lr': 0.1 / (epoch + 1), 'train_loss': 3.0, 'train_hard_heads': [1.0] * heads,
        'train_soft_heads': [2.0] * heads, 'kept_head': heads - 1,
        'val': {'top1_heads': top1, 'top1_consensus': 60.0, 'top1_kept': top1[-1], 'loss_heads': [0.5] * heads,
                'disagreement': 10.0 if heads > 1 else None},
        'train_top1': {'given': 40.0, 'clean': 55.0},
    }


def lines(figure) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}


@pytest.fixture
def run(tmp_path) -> Path:
    (tmp_path / 'run' / 'single').mkdir(parents=True)
    for folder, heads in ((tmp_path / 'run', 2), (tmp_path / 'run' / 'single', 1)):
        text = ''.join(json.dumps(row(epoch, heads)) + '\n' for epoch in range(3))
        (folder / 'metrics.jsonl').write_text(text)
    (tmp_path / 'run' / 'summary.json').write_text(json.dumps(SUMMARY.to_dict()))
    return tmp_path / 'run'


def test_plots_need_two_files_and_are_reproducible(run, capsys):
    assert main(['plot', str(run)]) == 0
    files = [Path(line) for line in capsys.readouterr().out.split()]
    assert [file.name for file in files] == ['loss.png', 'accuracy.png', 'disagreement.png', 'lr.png', 'noise.png']
    first = [np.asarray(Image.open(file)) for file in files]
    assert all(picture.shape[1] == 960 and picture.std() > 10 for picture in first)
    assert plot_run(run) == files
    assert all(np.array_equal(a, np.asarray(Image.open(file))) for a, file in zip(first, files, strict=True))
    assert not list((run / 'plots').glob('.*'))


def test_lines_show_the_recorded_scores(run):
    rows, single = read_rows(run), read_rows(run / 'single')
    figure = draw_score(rows, SUMMARY, single[:2])
    drawn = lines(figure)
    assert drawn['head 0'] == [50, 51, 52] and drawn['head 1 (kept)'] == [51, 52, 53] and drawn['consensus'] == [60] * 3
    assert drawn['single network'][:2] == [50, 51] and np.isnan(drawn['single network'][2])
    assert lines(draw_noise(rows, SUMMARY, [])) == {'labels before noise': [55] * 3, 'labels trained on': [40] * 3}
    axes = figure.axes[0]
    title = 'Accuracy on the validation data\ncollab_test_resnet, 2-head tree, builtin:digits, 40.0 % of the training'
    assert axes.get_title(loc='left').startswith(title)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ('epoch', 'top-1 in %')
    assert {text.get_text() for text in axes.texts} == {'head 0 52', 'head 1 (kept) 53', 'consensus 60',
                                                        'single network 51'}


def with_confusion(counts: list[list[int]], names: list[str] | None = None) -> RunSummary:
    values = summary_values()
    values['test'] = {**values['test'], 'confusion_kept': counts}
    values['data'] = {**values['data'], 'num_classes': len(counts), 'label_names': names}
    return RunSummary.from_dict(values, 'a test')


def test_the_confusion_matrix_is_that_of_the_test_images(run):
    assert draw_confusion([row(0)], SUMMARY, []) is None is draw_confusion([row(0)], None, [])  # older runs
    names = ['cat', 'a dog with a very long name', '$x$', '猫']
    summary = with_confusion([[6, 2, 0, 0], [0, 3, 0, 1], [0, 0, 0, 0], [0, 0, 0, 5]], names)
    axes = draw_confusion([row(0)], summary, []).axes[0]
    shown = axes.images[0].get_array()
    assert shown[0].tolist() == [75, 25, 0, 0] and shown[1].tolist() == [0, 75, 0, 25] and shown.mask[2].all()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ['cat', 'a dog with a very l…', '$x$', '3'] == [each.get_text() for each in axes.get_xticklabels()]
    assert sorted(text.get_text() for text in axes.texts) == ['100', '25', '25', '75', '75']
    assert axes.get_title(loc='left').startswith('What the kept head takes the test images for\n')
    (run / 'summary.json').write_text(json.dumps(summary.to_dict()))
    assert plot_run(run)[-1] == run / 'plots' / 'confusion.png'


def test_a_confusion_matrix_of_many_classes_has_no_names():
    axes = draw_confusion([row(0)], with_confusion(np.eye(31, dtype=int).tolist()), []).axes[0]
    assert not axes.texts and len(axes.get_yticks()) < 31


def test_labels_at_the_ends_of_lines_do_not_overlap():
    rows = [row(epoch, heads=8) for epoch in range(2)]
    for each in rows:
        each['val']['top1_heads'] = [90.0 + head / 100 for head in range(8)]
    axes = draw_score(rows, None, []).axes[0]
    low, high = axes.get_ylim()
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert len(heights) == 9 and heights[-1] <= high
    assert np.diff(heights).min() >= 0.05 * (high - low) * (1 - 1e-9)


def test_scores_that_were_not_recorded_are_not_plotted():
    rows = [row(epoch, heads=1) for epoch in range(2)]
    for each in rows:
        del each['train_top1']
    assert draw_disagreement(rows, None, []) is None
    assert draw_noise(rows, None, []) is None


def test_an_unfinished_run_is_plotted(run):
    (run / 'summary.json').unlink()
    with open(run / 'metrics.jsonl', 'a') as file:
        file.write(json.dumps({**row(2), 'lr': 0.5}) + '\n{"epoch": 3, "lr')
    assert [each['lr'] for each in read_rows(run)][-1] == 0.5
    assert len(plot_run(run)) == 5


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda run: (run / 'metrics.jsonl').unlink(), 'holds no run to plot'),
    (lambda run: (run / 'metrics.jsonl').write_text(''), 'no epoch has ended'),
    (lambda run: (run / 'metrics.jsonl').write_text('{}\n' + json.dumps(row(0))), 'line 1 is not a row of metrics'),
    (lambda run: (run / 'summary.json').write_text('{'), "summary.json' is damaged"),
    (lambda run: (run / 'plots').write_text(''), "can't be written"),
])
def test_damaged_runs_are_refused(run, damage, message):
    damage(run)
    with pytest.raises(TrainError, match=message):
        plot_run(run)


def test_without_matplotlib_one_line_says_how_to_get_it(run, monkeypatch, capsys):
    monkeypatch.setattr(plots, 'can_plot', lambda: False)
    assert main(['plot', str(run)]) == 2
    assert "pip install 'timm-collab[plots]'" in capsys.readouterr().err
    assert not (run / 'plots').exists()
