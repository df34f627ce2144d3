"""Write the tables and plots of docs/performance.md from the rows of `cost.py`, `gpu_cost.py` and `hard_losses.py`.

python -m benchmarks.cost_report          # write them
python -m benchmarks.cost_report --check  # write nothing, fail if the document's tables differ from the rows
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .cost_claims import Row, claims, find, line, networks
from .cost_rows import RESULTS, read
from .documents import DocumentError, fill, table
from .gpu_cost import RESULTS as GPU_RESULTS
from .hard_losses import RESULTS as HARD_LOSS_RESULTS

DOCUMENT = Path(__file__).parents[1] / 'docs' / 'performance.md'
PATTERNS = {'hierarchical': 'tab:blue', 'simple': 'tab:orange', 'instances': 'tab:green'}


def blocks(rows: Sequence[Row]) -> dict[str, str]:
    """Text of each block of the document."""
    makers: dict[str, Callable[[Sequence[Row]], str]] = {
        'machine': _machine, 'claims': _claims, 'four heads': _four_heads, 'rivals': _rivals, 'lines': _lines,
        'kept': _kept, 'trees': _trees,
    }
    return {f'cost: {name}': maker(rows) for name, maker in makers.items()} | {
        'cost: gpu': _gpu(read(GPU_RESULTS)), 'cost: hard losses': _hard_losses(read(HARD_LOSS_RESULTS))}


def _machine(rows: Sequence[Row]) -> str:
    first = rows[0]
    commits = ', '.join(f'`{commit}`' for commit in sorted({row['commit'] for row in rows}))
    rounds = sorted({int(row['rounds']) for row in find(rows, quantity='step')})
    spread = f'{rounds[0]} to {rounds[-1]}' if len(rounds) > 1 else str(rounds[0])
    return (f'{first["cpu"]}, {first["threads"]} threads, torch {first["torch"]}, timm {first["timm"]}, timm-collab'
            f' {first["timm_collab"]} at {commits}; medians of {spread} rounds, with'
            ' quartiles in parentheses.')


def _claims(rows: Sequence[Row]) -> str:
    return table(['claim', 'network', 'measured', 'at most', 'holds'], [
        [claim.text, claim.network, f'{claim.measured:.3f}', f'{claim.bound:.3f}', 'yes' if claim.holds else '**no**']
        for claim in claims(rows)
    ])


def _four_heads(rows: Sequence[Row]) -> str:
    lines = []
    for network in networks(rows):
        for pattern in PATTERNS:
            steps = find(rows, network=network, pattern=pattern, heads=4, quantity='step', against='single')
            peaks = find(rows, network=network, pattern=pattern, heads=4, quantity='peak', against='single')
            for step, peak in zip(steps, peaks, strict=True):
                lines.append([
                    f'{network}, {step["size"]} px, batch {step["batch"]}', f'{pattern}: `{step["tree"]}`',
                    f'{_number(step["other"])} ms', f'{float(step["multiply_adds"]):.2f}',
                    f'{float(step["by_stages"]):.2f}', f'**{float(step["ratio"]):.2f}** {_spread(step)}',
                    f'{float(step["parameters"]):.2f}', f'{_number(peak["other"])} MiB', f'{float(peak["ratio"]):.2f}',
                ])
    return table(['network', 'four heads', 'single step', 'multiply-adds', 'by the stages', 'step', 'parameters',
                  'single peak', 'peak'], lines)


def _rivals(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        if row['against'] not in ('by hand', 'separate') or row['quantity'] != 'step':
            continue
        [peak] = find(rows, **{key: row[key] for key in ('network', 'pattern', 'heads', 'against')}, quantity='peak')
        other = 'the same tree by hand' if row['against'] == 'by hand' else f'{row["heads"]} separate networks'
        lines.append([row['network'], f'`{row["tree"]}`', other, f'{float(row["ratio"]):.3f} {_spread(row)}',
                      f'{float(peak["ratio"]):.3f}'])
    return table(['network', 'tree', 'against', 'step', 'peak'], lines)


def _lines(rows: Sequence[Row]) -> str:
    lines = []
    for network in networks(rows):
        fitted = line(rows, network)
        if fitted is not None:
            lines.append([network, ', '.join(map(str, fitted.heads)), f'{fitted.slope:.3f}', f'{fitted.r2:.4f}',
                          f'{100 * fitted.deviation:.1f} %'])
    return table(['network', 'heads, one fork', 'a head adds, single steps', 'R²', 'largest distance'], lines)


def _kept(rows: Sequence[Row]) -> str:
    return table(['network', 'inference of', 'against the plain network'], [
        [row['network'], 'the pruned head' if row['quantity'] == 'pruned' else 'the tree, which runs its kept head',
         f'{float(row["ratio"]):.3f} {_spread(row)}']
        for row in rows if row['quantity'] in ('kept head', 'pruned')
    ])


def _trees(rows: Sequence[Row]) -> str:
    lines = []
    for row in find(rows, quantity='step', against='single'):
        same = {key: row[key] for key in ('network', 'pattern', 'heads')}
        [forward] = find(rows, **same, quantity='forward', against='single')
        [peak] = find(rows, **same, quantity='peak', against='single')
        [predicted] = find(rows, **same, quantity='peak', against='predicted')
        lines.append([
            row['network'], row['heads'], f'`{row["tree"]}`', *(f'{float(row[key]):.2f}' for key in (
                'parameters', 'multiply_adds', 'by_stages')), f'{float(row["ratio"]):.2f} {_spread(row)}',
            f'{float(forward["ratio"]):.2f}', f'{float(peak["ratio"]):.2f}', f'{float(predicted["ratio"]):.3f}',
        ])
    return table(['network', 'heads', 'tree', 'parameters', 'multiply-adds', 'by the stages', 'step', 'forward',
                  'peak', 'peak / predicted'], lines)


def _gpu(rows: Sequence[Row]) -> str:
    devices = dict.fromkeys(f'{row["device"]}, torch {row["torch"]}, timm {row["timm"]}, `{row["commit"]}`'
                            for row in rows)
    return table(['network', 'tree', 'mode', 'single step', 'step', 'multiply-adds', 'single peak', 'peak'], [
        [f'{row["network"]}, {row["size"]} px, batch {row["batch"]}', f'`{row["tree"]}`', row['mode'],
         f'{float(row["single_ms"]):.1f} ms', f'**{float(row["step_ratio"]):.2f}** {_spread(row)}',
         f'{float(row["multiply_adds"]):.2f}', f'{_number(row["single_mib"])} MiB', f'{float(row["peak_ratio"]):.2f}']
        for row in rows
    ]) + f'\n\n{"; ".join(devices)}; medians of {", ".join(dict.fromkeys(row["rounds"] for row in rows))} rounds.'


def _hard_losses(rows: Sequence[Row]) -> str:
    lines = []
    for row in find(rows, quantity='step'):
        same = {key: row[key] for key in ('loss', 'classes')}
        alone = next(iter(find(rows, **same, quantity='objective')), None)
        lines.append([
            row['loss'], row['classes'], f'{float(alone["own_ms"]):.2f} ms' if alone else '',
            f'{float(alone["ratio"]):.2f}' if alone else '', f'**{float(row["ratio"]):.3f}** {_spread(row)}',
            row['bytes_per_image']])
    first = rows[0]
    loads = sorted(float(row['load']) for row in rows)
    return table(['loss', 'classes', 'objective', 'against cross-entropy', 'step', 'bytes per image'], lines) + (
        f'\n\n{first["cpu"]}, {first["threads"]} thread, torch {first["torch"]}, timm {first["timm"]},'
        f' `{first["commit"]}`; medians of {first["rounds"]} rounds, CPU time. The machine was busy: its load was'
        f' {loads[0]:.1f} to {loads[-1]:.1f}.')


def _spread(row: Row) -> str:
    return f'({float(row["low"]):.2f} to {float(row["high"]):.2f})'


def _number(text: str) -> str:
    return f'{float(text):,.0f}'


def draw(rows: Sequence[Row], folder: Path) -> None:
    """Plot time and memory against the number of heads, one panel per network."""
    import matplotlib as mpl

    mpl.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    plots = (
        ('step', 'step', 'multiply_adds', 'Time of a training step', 'what the multiply-adds say'),
        ('memory', 'peak', '', 'Peak memory of a training step', "what the single network's liveness says"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, quantity, column, title, dashes in plots:
        names = networks(rows)
        columns = min(3, len(names))
        lines = -(-len(names) // columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(3.8 * columns, 3 * lines + 1), squeeze=False, sharey=True, layout='constrained')
        for axis, network in zip(axes.flat, names, strict=False):
            for pattern, colour in PATTERNS.items():
                found = [row for row in find(rows, network=network, quantity=quantity, against='single')
                         if row['pattern'] in (pattern, 'single')]
                if not found:
                    continue
                points = sorted(
                    (int(row['heads']), float(row['ratio']), _predicted(rows, row, column)) for row in found)
                heads, measured, predicted = zip(*points, strict=True)
                axis.plot(heads, predicted, '--', color=colour, linewidth=1)
                axis.plot(heads, measured, 'o', color=colour, markersize=5)
            row = find(rows, network=network)[0]
            axis.set_title(f'{network}, {row["size"]} px, batch {row["batch"]}', fontsize=10)
            axis.set_xticks(range(1, 9))
            axis.set_xlim(.5, 8.5)
            axis.set_xlabel('heads')
            axis.set_ylabel('single network = 1')
            axis.grid(alpha=.3)
        axes[0, 0].set_ylim(bottom=0)  # shared by all panels
        for axis in axes.flat[len(names):]:
            axis.set_visible(False)
        figure.suptitle(f"{title}, as a multiple of the single network's")
        legend = [Line2D([], [], color=colour, marker='s', linestyle='', label=label) for label, colour in zip(
            ('hierarchical: forks stage by stage', 'simple: one fork', 'instances: nothing shared'), PATTERNS.values(),
            strict=True)]
        legend += [Line2D([], [], color='black', marker='o', linestyle='', label='measured'),
                   Line2D([], [], color='black', linestyle='--', label=dashes)]
        figure.legend(handles=legend, loc='outside lower center', ncols=3, fontsize=9)
        figure.savefig(folder / f'{name}.png', dpi=110)
        plt.close(figure)


def _predicted(rows: Sequence[Row], row: Row, column: str) -> float:
    """Ratio that a row should have."""
    if column:
        return float(row[column])
    same = {key: row[key] for key in ('network', 'pattern', 'heads')}
    [predicted] = find(rows, **same, quantity='peak', against='predicted')
    return float(predicted['other']) / float(row['other'])


def main() -> None:
    """Write or check the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing, fail if the tables differ')
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--document', type=Path, default=DOCUMENT)
    args = parser.parse_args()
    rows = read(args.results)
    if not rows:
        parser.error(f'{args.results} has no rows: measure with python -m benchmarks.cost')
    try:
        difference = fill(args.document, blocks(rows), args.check)
    except DocumentError as error:
        sys.exit(str(error))
    if args.check and difference:
        sys.exit(f"'{args.document}' differs from its result files:\n{difference}")
    if not args.check:
        draw(rows, args.document.with_suffix(''))


if __name__ == '__main__':
    main()
