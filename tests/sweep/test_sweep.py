from __future__ import annotations

import csv
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import timm
from torch import Tensor, nn

from timm_collab.sweep import __main__ as sweep
from timm_collab.sweep.examine import NO_CLASSIFIER, OK, Row, check_numbers, examine
from timm_collab.sweep.records import VERSIONS, append_row, read_rows, write_rows
from timm_collab.sweep.table import write_table

DOCS = Path(__file__).parents[2] / 'docs'


def test_classifier_passes() -> None:
    row = check_numbers(examine('test_efficientnet'))
    assert (row.structure, row.numbers, row.module) == (OK, OK, 'efficientnet')
    plain = timm.create_model('test_efficientnet')
    assert row.params == pytest.approx(sum(p.numel() for p in plain.parameters()) / 1e6, abs=.005)
    assert row.tree == str(timm.create_model('collab_test_efficientnet').tree)
    assert row.points > 5 and row.gmacs > 0 and row.size == '112x112' and not row.failed


@pytest.mark.parametrize('arch', ['qwen3_vit_88m_enc', 'mobilenetv5_300m_enc'])
def test_encoder_without_classifier_is_not_a_failure(arch: str) -> None:
    if not timm.is_model(arch):
        pytest.skip(f'this timm has no {arch}')
    row = examine(arch)
    assert row.structure == NO_CLASSIFIER and not row.failed


def test_network_without_default_classifier_gets_one() -> None:
    assert timm.get_pretrained_cfg('vit_small_patch16_dinov3').num_classes == 0
    assert examine('vit_small_patch16_dinov3').structure == OK


class DataDependent(nn.Module):
    """A forward that can't be traced, as it depends on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.num_classes = nn.Linear(3, 3), nn.Linear(3, 4), 4
        self.pretrained_cfg = {'input_size': (3, 8, 8)}

    def get_classifier(self) -> nn.Module:
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.mean((2, 3)))
        return self.head(x if x.is_meta or x.sum() > 0 else -x)


def test_errors_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    row = examine('no_such_architecture')
    assert row.failed and row.structure.startswith('failed: RuntimeError: Unknown model')
    monkeypatch.setattr('timm_collab.sweep.examine._tree', lambda arch, plain: DataDependent())
    row = examine('test_resnet')
    assert row.failed and row.structure.startswith('failed: AttributeError')


def test_last_row_of_an_architecture_counts(tmp_path: Path) -> None:
    path = tmp_path / 'rows.csv'
    assert read_rows(path) == {}
    first, second = Row('b', 'm', 1.5, .1, 3, 'layer1:2', OK, seconds=1.), Row('a', structure=NO_CLASSIFIER, seconds=2.)
    append_row(path, first)
    append_row(path, second)
    tried = Row(**{**vars(first), 'numbers': OK})
    append_row(path, tried)
    assert read_rows(path) == {'b': tried, 'a': second}
    with path.open('a') as file:
        file.write('c,m,1.0,')  # an incomplete line
    assert read_rows(path) == {'b': tried, 'a': second}
    write_rows(path, read_rows(path).values())
    assert [line['arch'] for line in csv.DictReader(path.open())] == ['a', 'b']
    path.write_text(path.read_text().replace('timm ', 'timm 0.'))
    assert read_rows(path) == {}  # written with other versions
    path.write_text('arch,top1\nresnet50,80.4\n')
    with pytest.raises(ValueError, match=r'rows.csv is not the record of a sweep: name another file with --output'):
        read_rows(path)


def test_command_resumes(
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sweep, 'ProcessPoolExecutor', lambda jobs, *_: ThreadPoolExecutor(jobs))
    path, table = tmp_path / 'rows.csv', tmp_path / 'new' / 'table.md'
    arguments = ['test_resnet', 'test_vit', 'mobilenetv5_300m_enc', '--jobs', '1', '--output', str(path)]
    assert sweep.main([*arguments, '--numbers', 'all', '--table', str(table)]) == 0
    out = capsys.readouterr().out
    assert '2 of 3 architectures have a head tree, numbers checked for 2 of them, 0 failed' in out
    assert 'no classifiers: mobilenetv5_300m_enc' in out
    assert '| resnet | 1 | 1 | 1 | 16 | test_resnet | `layer2:2,layer3:2` |' in table.read_text()
    found = path.read_text()
    monkeypatch.setattr(sweep, 'examine', None)
    monkeypatch.setattr(sweep, 'check_numbers', None)
    assert sweep.main([*arguments, '--numbers', 'all']) == 0
    assert path.read_text() == found


def test_command_reports_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'rows.csv'
    assert sweep.main(['no_such*', '--output', str(path)]) == 2
    assert 'no architecture of timm matches no_such*' in capsys.readouterr().err
    append_row(path, Row('test_resnet', 'resnet', structure=OK, numbers='failed: CheckError: logits', seconds=1.))
    rows = list(read_rows(path).values())
    assert sweep._report(rows) == 1
    assert 'test_resnet: structure ok, numbers failed: CheckError: logits' in capsys.readouterr().out
    write_table(tmp_path / 'table.md', rows)
    assert '- test_resnet: structure ok; numbers failed' in (tmp_path / 'table.md').read_text()


def test_command_in_a_subprocess(tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'timm_collab.sweep', 'test_resnet', '--jobs', '1', '--output', 'sweep.csv']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith('1 of 1 architectures have a head tree') and list(read_rows(tmp_path / 'sweep.csv'))


def test_numbers_are_checked_from_the_smallest() -> None:
    rows = [
        Row('c', 'm', 30., 3., structure=OK),
        Row('a', 'm', 10., 1., structure=OK),
        Row('b', 'n', 20., 2., structure=OK),
        Row('d', 'n', 900., 9., structure=OK),
        Row('e', 'o', 1., 1., structure=NO_CLASSIFIER),
        Row('f', 'p', 1., 1., structure=OK, numbers=OK),
    ]

    def chosen(numbers: str) -> list[str]:
        return [row.arch for row in sweep._chosen(rows, sweep._parser().parse_args(['--numbers', numbers]))]

    assert chosen('none') == []
    assert chosen('smallest') == ['a', 'b']
    assert chosen('all') == ['a', 'b', 'c']


def test_published_table_matches_the_published_rows(tmp_path: Path) -> None:
    record = DOCS / 'architectures.csv'
    with record.open(newline='') as file:
        versions = {line['versions'] for line in csv.DictReader(file)}
    if versions != {VERSIONS}:
        pytest.skip(f'the table was made with {versions}')
    write_table(tmp_path / 'table.md', read_rows(record).values())
    assert (tmp_path / 'table.md').read_text() == (DOCS / 'architectures.md').read_text()


