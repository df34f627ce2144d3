"""The table of epochs and the progress bar."""
from __future__ import annotations

import io
import sys

import pytest
import torch

from tests.runs import summary_values
from timm_collab.train.data.counts import SplitCounts
from timm_collab.train.record.progress import Progress, peak_memory
from timm_collab.train.record.report import EpochTable, final_lines, imbalance, left_out_line
from timm_collab.train.record.summary import RunSummary


def row(epoch: int, top1: list[float], **more) -> dict:
    return {
        'epoch': epoch, 'lr': 0.05, 'train_loss': 1.5, 'images_per_second': 1234.0, 'kept_head': len(top1) - 1,
        'val': {'top1_heads': top1, 'top1_consensus': 91.0, 'disagreement': 7.5 if len(top1) > 1 else None}, **more,
    }


def test_a_tree_has_a_column_per_head():
    table = EpochTable(20)
    head, line = table.lines(row(0, [85.0, 86.26], val_without_ema={'top1_kept': 80.0}))
    titles = 'epoch lr loss img/s head 0 head 1 consensus disagree no EMA'
    assert head.split() == titles.split()
    assert line.split() == ['1/20', '5.00e-02', '1.5000', '1,234', '85.0', '86.3*', '91.0', '7.5', '80.0']
    assert len(head) == len(line) <= 100


def test_a_single_network_has_one_column():
    head, line = EpochTable(100).lines(row(99, [85.0]))
    assert head.split() == ['epoch', 'lr', 'loss', 'img/s', 'val', 'top-1']
    assert line.split() == ['100/100', '5.00e-02', '1.5000', '1,234', '85.0']
    assert len(head) == len(line)


def test_balanced_accuracy_has_a_narrow_column_where_it_is_asked_for():
    one = row(0, [85.0, 86.0])
    one['val']['balanced_kept'] = 71.25
    head, line = EpochTable(20, balanced=True).lines(one)
    assert head.split()[-3:] == ['consensus', 'balanced', 'disagree'] and line.split()[-3:] == ['91.0', '71.2', '7.5']
    assert len(head) == len(line) <= 100


def test_a_device_that_waits_for_its_loader_is_reported_once():
    table = EpochTable(20, loaded=1234 * 10, remedy='raise data.workers')  # an epoch takes 10 seconds
    waits = [1.9, 3.7, 5.0]
    lines = [table.lines(row(epoch, [85.0], wait_seconds=wait))[-1] for epoch, wait in enumerate(waits)]
    assert ['the loader' in line for line in lines] == [False, True, False]
    assert lines[1] == 'the loader kept the device waiting 37 % of the epoch: raise data.workers'
    assert not any('loader' in line for line in EpochTable(20).lines(row(0, [85.0], wait_seconds=9.0)))


@pytest.mark.parametrize(('counts', 'line'), [
    ({'cat': 10, 'dog': 14}, ''),
    ({'cat': 10, 'dog': 25}, "smallest 'cat' with 10 training images, largest 'dog' with 25, 2.5 times as many"),
    ({'cat': 3, 'dog': 0}, "smallest 'dog' with 0 training images, largest 'cat' with 3"),
    (None, ''),
])
def test_classes_of_different_size_are_named(counts, line):
    assert imbalance(SplitCounts('train', 35, counts)) == line


def test_reasons_are_counted_and_the_rest_summed_up():
    left_out = {'hidden': 1200, 'broken link': 3, 'not an image (.txt)': 1}
    assert left_out_line(left_out) == '1,204 (hidden: 1,200, broken link: 3, not an image (.txt): 1)'
    assert left_out_line(left_out, 1) == '1,204 (hidden: 1,200, 2 other reasons)'
    assert left_out_line(left_out, 2) == '1,204 (hidden: 1,200, broken link: 3, 1 other reason)'
    assert left_out_line({'no label': 11}) == '11 (no label)'


def test_the_header_is_repeated():
    table = EpochTable(60)
    counts = [len(table.lines(row(epoch, [85.0]))) for epoch in range(10, 60)]
    assert [index for index, count in enumerate(counts) if count == 2] == [0, 25]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_loss_accuracy_speed_memory_and_time(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, 'stderr', terminal)
    with Progress(1000, 2, 10, torch.device('cpu'), is_main=True) as progress:
        progress.bar.mininterval = 0
        progress.update(400, loss=1.25, score=61.5)
        progress.update(100)
        progress.bar.refresh()
    shown = terminal.getvalue()
    assert 'epoch 3/10' in shown and ' 50%' in shown
    assert 'loss=1.250' in shown and 'top-1=61.5%' in shown and 'GB' in shown and ' images/s' in shown


@pytest.mark.parametrize(('stream', 'is_main'), [(io.StringIO(), True), (Terminal(), False)])
def test_no_bar_in_a_log_file_nor_on_other_processes(monkeypatch, stream, is_main):
    monkeypatch.setattr(sys, 'stderr', stream)
    with Progress(1000, 0, 1, torch.device('cpu'), is_main=is_main) as progress:
        progress.update(500, loss=1.0)
    assert stream.getvalue() == ''


def test_a_resumed_epoch_starts_at_its_position(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    with Progress(1000, 0, 1, torch.device('cpu'), is_main=True, done=300) as progress:
        assert (progress.bar.n, progress.bar.total) == (300, 1000)


def test_memory_is_that_of_the_process():
    before = peak_memory(torch.device('cpu'))
    block = torch.ones(200 * 2**18)  # 200 MB
    assert peak_memory(torch.device('cpu')) >= max(before, block.numel() * 4)


def summary(**changes) -> RunSummary:
    return RunSummary.from_dict(summary_values(**changes), 'here')


def test_the_last_lines_compare_three_networks_and_name_the_kept_epoch():
    alone = dict(network='single network', num_heads=1, kept_head=0, error_heads=[20.0], error_kept=20.0)
    epoch = {'epoch': 4, 'averaged': False, 'kept_head': 1, 'val': {'top1_kept': 1.0}, 'test': {'top1_kept': 88.5}}
    done = summary(
        epochs=5, last=epoch, kept={**epoch, 'epoch': 2}, single=summary_values(**alone),
        plain=summary_values(**{**alone, 'error_kept': 30.0}), load='the line')
    lines = final_lines(done)
    assert lines[1].startswith('test error: single network, cross-entropy 30.0 %    single network 20.0 %    ')
    assert lines[2] == f'{done.network}: epoch 3 of 5 was kept; error after the last epoch: 11.5 %'
    assert lines[-1] == 'the line' and len(lines) == 5


@pytest.mark.parametrize(('recall', 'named'), [
    ([80.0, 60.0, 70.0], None), ([80.0, 2.0, 70.0], "'b' (2.0 %)"), ([5.0, 4.0, 6.0], None),
    ([90.0, None, 1.0], "'c' (1.0 %)"),
])
def test_a_class_that_is_lost_is_named(recall, named):
    values = summary_values()
    done = summary(
        test={**values['test'], 'recall_kept': recall}, data={**values['data'], 'classes': ['a', 'b', 'c']})
    found = [line for line in final_lines(done) if 'hardly any' in line]
    assert [named in line for line in found] == [True] * (named is not None)
