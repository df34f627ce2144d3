"""The summary of a run as a file: what is written, and what is read of older and newer versions."""
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.runs import summary_values
from timm_collab.train.errors import TrainError
from timm_collab.train.metrics.metric import MAP, TOP1
from timm_collab.train.record.summary import RunSummary
from timm_collab.train.record.summary_parts import ExportSummary

ROOT = Path(__file__).parents[3]
OLDER = sorted((ROOT / 'hub').glob('*/summary.json'))
TEACHER = {'path': 'teacher', 'architecture': 'resnet18', 'multiply_adds': 3}


def test_a_summary_reads_itself_back(tmp_path) -> None:
    summary = RunSummary.from_dict(summary_values(
        teacher=TEACHER, hardware='NVIDIA H100', commit='abc', single=summary_values(num_processes=2)), 'a test')
    exported = dataclasses.replace(summary, export=ExportSummary(1, 'float32', '0' * 64, '0.1.0'))
    for each in (summary, exported):
        each.write(tmp_path / 'summary.json')
        assert RunSummary.read(tmp_path / 'summary.json') == each
    assert summary.teacher is not None and summary.teacher.architecture == 'resnet18'
    assert summary.single is not None
    assert (summary.computed_on, summary.single.computed_on) == ('NVIDIA H100', '2 processes on cpu')


def test_the_keys_in_the_file_are_those_of_older_versions_and_the_format() -> None:
    values = summary_values(teacher=None, commit=None, peak_memory_mb=None)
    values['data'] |= {
        'skipped': 0, 'replaced': 3, 'turned': 0, 'sixteen_bit': 0, 'classes': ['0', '1'], 'left_out': {'hidden': 2},
        'splits': {'train': {'name': 'train', 'images': 3, 'per_class': {'0': 1, '1': 2}}},
        'duplicates': {'within': 1, 'across': 0},
    }
    assert RunSummary.from_dict(values, 'a test').to_dict() == {'format': 1, **values}


def test_scores_are_named_after_the_metric() -> None:
    row = {'map_kept': 40.0, 'map_consensus': 50.0, 'map_heads': [30.0, 40.0]}
    values = {key: value for key, value in summary_values(test=None, val=row).items() if 'error_' not in key}
    summary = RunSummary.from_dict({**values, **row, 'error_on': 'held out'}, 'a test')
    assert summary.metric is MAP and summary.scores.heads == [30.0, 40.0] and summary.measured == row
    assert summary.to_dict()['map_consensus'] == 50.0 and 'error_kept' not in summary.to_dict()
    assert RunSummary.from_dict(summary_values(), 'a test').metric is TOP1


@pytest.mark.parametrize('path', OLDER, ids=lambda path: path.parent.name)
def test_summaries_of_older_versions_are_read(path) -> None:
    values = json.loads(path.read_text())
    summary = RunSummary.read(path)
    assert 'format' not in values and summary.hardware is None and summary.teacher is None
    assert summary.scores.heads == values['error_heads'] and summary.data.num_classes == 10
    assert summary.single is not None and summary.single.scores.kept == values['single']['error_kept']
    assert summary.export is not None and summary.export.sha256 == values['export']['sha256']
    written = summary.to_dict()
    assert _common(written, values) == values
    assert summary.data.splits is None and summary.data.duplicates is None  # older versions didn't count


def _common(written, values):
    """What was written, without the keys of mappings that older versions didn't have."""
    if not isinstance(values, dict):
        return written
    return {name: _common(written[name], value) for name, value in values.items()}


def test_there_are_summaries_of_older_versions() -> None:
    assert len(OLDER) == 2


def test_unknown_keys_of_a_newer_version_are_ignored() -> None:
    values = summary_values(format=2, weather='fine')
    values['data']['weather'] = 'fine'
    assert RunSummary.from_dict(values, 'a test') == RunSummary.from_dict(summary_values(), 'a test')


@pytest.mark.parametrize(('format_number', 'ending'), [
    (1, ''), (2, r' \(its format is 2, this version of timm-collab reads up to 1\)')])
def test_missing_keys_are_one_error_that_names_them(format_number, ending) -> None:
    values = summary_values(format=format_number, single=summary_values())
    del values['tree'], values['error_heads'], values['data']['path'], values['single']['noise']
    message = "^'s.json' lacks tree, error_heads, data.path, single.noise: it is damaged, or from another version"
    with pytest.raises(TrainError, match=f'{message}{ending}$'):
        RunSummary.from_dict(values, 's.json')


@pytest.mark.parametrize('changes', [{'data': 3}, {'kept_head': None}, {'error_heads': 1.0}, {'format': 'one'}])
def test_values_of_other_types_are_damage(changes) -> None:
    with pytest.raises(TrainError, match=r"^'s.json' is damaged: it is not the summary of a run$"):
        RunSummary.from_dict(summary_values(**changes), 's.json')


@pytest.mark.parametrize('changes', [{'num_heads': 3}, {'kept_head': 2}, {'kept_head': -1}])
def test_heads_that_contradict_each_other_are_refused(changes) -> None:
    with pytest.raises(TrainError, match=r"^'s.json' contradicts itself: scores of 2 heads, "):
        RunSummary.from_dict(summary_values(**changes), 's.json')
