"""The cost study: predictions from the single network, rows measured once, and claims."""
from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import cost
from benchmarks.cost import Bench, Cell, Network
from benchmarks.cost_claims import Line, claims
from benchmarks.cost_rows import append, read
from benchmarks.measure import in_turn
from benchmarks.step_profile import by_operator
from timm_collab.tree import HeadTree

TOY = Network('cifar_resnet20', 4, 16, classes=10)


@pytest.fixture(scope='module')
def bench() -> Bench:
    return Bench(TOY)


@pytest.mark.parametrize(('pattern', 'heads'), [
    ('hierarchical', 1), ('hierarchical', 4), ('hierarchical', 8), ('simple', 2), ('simple', 3), ('instances', 2),
])
def test_predicted_peak_memory_of_a_tree(bench: Bench, pattern: str, heads: int) -> None:
    model = bench.grow(pattern, heads)
    tree = bench.side(model, cost.CollaborativeLoss())
    assert tree.peak() == pytest.approx(bench.stages.bytes_of(model.tree), rel=.01)
    if heads > 1:
        assert tree.peak() > 1.1 * bench.single.peak()


def test_peak_memory_of_a_linear_layer() -> None:
    linear = nn.Linear(256, 1024, bias=False)
    side = cost.Side(linear, lambda output, _: output.sum(), torch.randn(64, 256), torch.zeros(64))
    output, gradient = 4 * 64 * 1024, 4 * 256 * 1024
    # The output is freed after its sum; its gradient is an expanded scalar until the matrix product copies it.
    assert output + gradient <= side.peak() <= output + 2 * gradient


def test_sides_take_turns_in_balanced_order() -> None:
    taken: list[int] = []

    def step(side: int) -> Callable[[], float]:
        return lambda: float(taken.append(side) or len(taken))

    seconds = in_turn([step(side) for side in range(4)], 119)
    assert len(seconds) == 119
    rounds = [taken[start:start + 4] for start in range(0, len(taken), 4)]
    assert all(sorted(each) == [0, 1, 2, 3] for each in rounds) and len(rounds) == 120
    assert seconds[0] == tuple(5. + rounds[1].index(side) for side in range(4))  # by side, whatever the order
    follows = Counter(pair for each in rounds for pair in pairwise(each))
    assert len(follows) == 12 and min(follows.values()) > 15 and max(follows.values()) < 45  # 30 of each, by chance
    assert all(follows[a, b] == follows[b, a] for a, b in follows)


def test_predicted_time_counts_each_node(bench: Bench) -> None:
    bench.single.step()
    seconds = bench.stages.seconds()
    assert set(seconds) == {'1', '2', '3', 'objective', 'optimizer'}
    assert min(seconds.values()) > 0

    def time_of(spec: str, parameters: float) -> float:
        return bench.stages.time_of(HeadTree.parse(spec), parameters)

    assert time_of('head', 1) == pytest.approx(1)
    assert time_of('input:3', 3) == pytest.approx(3)
    more = seconds['2'] + 3 * seconds['3'] + 3 * seconds['objective'] + 2 * seconds['optimizer']
    assert time_of('layer1:2,layer2:2', 3) == pytest.approx(1 + more / sum(seconds.values()))


def test_a_tree_runs_the_operators_of_its_nodes(bench: Bench) -> None:
    tree = bench.side(bench.grow('hierarchical', 4), cost.CollaborativeLoss())
    tree.step()  # the first step with a new size also traces the network
    (_, single), (ms, of_tree) = by_operator(bench.single), by_operator(tree)
    convolutions, nodes = 7 + 6 + 6, 7 + 2 * 6 + 4 * 6
    assert of_tree['convolutions'] * convolutions == single['convolutions'] * nodes
    assert of_tree['normalisation'] * convolutions == single['normalisation'] * nodes
    assert min(ms.values()) > 0


def test_rows_of_the_tree_with_all_comparisons(bench: Bench) -> None:
    rows = bench.measure(Cell(TOY, 'hierarchical', 4), rounds=2)
    found = {(row['quantity'], row['against']) for row in rows}
    assert found == {
        ('step', 'single'), ('step', 'separate'), ('forward', 'single'), ('kept head', 'single'), ('pruned', 'single'),
        ('peak', 'single'), ('peak', 'separate'), ('peak', 'predicted'),
    }
    step = rows[0]
    assert step['tree'] == 'layer1:2,layer2:2'
    assert 2 < step['multiply_adds'] < 2.5
    assert step['low'] <= step['ratio'] <= step['high']
    assert all(row['own'] > 0 and row['other'] > 0 for row in rows)


def test_comparison_with_a_tree_written_by_hand() -> None:
    rows = Bench(Network('test_resnet', 2, 32, classes=5)).measure(Cell(TOY, 'hierarchical', 4), rounds=1)
    [peak] = [row for row in rows if (row['quantity'], row['against']) == ('peak', 'by hand')]
    assert peak['ratio'] == pytest.approx(1, abs=.005)


def test_rows_in_the_file_are_not_measured_again(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measured = []

    class Counted(Bench):
        def __init__(self, network: Network) -> None:
            pass

        def measure(self, cell: Cell, rounds: int) -> list[dict[str, object]]:
            measured.append((cell.pattern, cell.heads))
            self.network = cell.network
            row = {**dict(zip(cost.KEY, cell.key, strict=True)), 'tree': 'head', 'quantity': 'step', **cost.machine()}
            return [{**row, **dict.fromkeys(('ratio', 'low', 'high', 'multiply_adds', 'by_stages'), 1.25)}]

    monkeypatch.setattr(cost, 'Bench', Counted)
    path = tmp_path / 'deep' / 'cost.csv'
    threads = str(torch.get_num_threads())

    def run(*heads: str, threads: str = threads) -> object:
        options = ['--networks', 'test_resnet', '--patterns', 'simple', '--output', str(path), '--threads', threads]
        monkeypatch.setattr(sys, 'argv', ['cost', *options, '--heads', *heads])
        with pytest.raises(SystemExit) as stopped:
            cost.main()
        return stopped.value.code

    assert run('1', '2') == 0
    assert run('1', '2', '4') == 0
    assert measured == [('single', 1), ('simple', 2), ('simple', 4)]
    assert [row['heads'] for row in read(path)] == ['1', '2', '4']
    before = torch.get_num_threads()
    try:
        assert run('8', threads=str(before + 1)) == 2
    finally:
        torch.set_num_threads(before)
    assert f'was measured with threads {threads}' in capsys.readouterr().err
    assert len(measured) == 3


def test_line_fit() -> None:
    exact = Line.through(range(1, 9), [1 + .5 * (heads - 1) for heads in range(1, 9)])
    assert exact.slope == pytest.approx(.5)
    assert exact.r2 == pytest.approx(1)
    assert exact.deviation == pytest.approx(0, abs=1e-9)
    bent = Line.through([1, 2, 3], [1., 2., 6.])  # the line is 2.5 x - 2
    assert bent.deviation == pytest.approx(1.)
    assert bent.r2 == pytest.approx(1 - 1.5 / 14)


@pytest.mark.parametrize(('changed', 'missed'), [
    ({}, []),
    ({('step', 'single'): 2.2}, ['step of 4 hierarchical heads / (multiply-adds x single)']),
    ({('step', 'by hand'): 1.03}, ['step / that of the same tree by hand']),
    ({('step', 'separate'): .51}, ['step / that of 4 separate networks']),
    ({('peak', 'by hand'): 1.03}, ['peak memory / that of the same tree by hand']),
    ({('peak', 'predicted'): 1.06}, ['peak memory / predicted, worst of 1 trees']),
    ({('pruned', 'single'): 1.03}, ['inference of the pruned head / plain timm']),
])
def test_claims_fail_beyond_their_bounds(tmp_path: Path, changed: dict[tuple[str, str], float],
                                          missed: list[str]) -> None:
    ratios = {('step', 'single'): 2., ('step', 'by hand'): 1., ('step', 'separate'): .49, ('peak', 'by hand'): 1.,
              ('peak', 'predicted'): 1., ('pruned', 'single'): 1., **changed}
    append(tmp_path / 'cost.csv', [
        {'network': 'resnet50', 'pattern': 'hierarchical', 'heads': 4, 'quantity': quantity, 'against': against,
         'ratio': ratio, 'multiply_adds': 2.} for (quantity, against), ratio in ratios.items()])
    assert [claim.text for claim in claims(read(tmp_path / 'cost.csv')) if not claim.holds] == missed
