"""Compare methods with a grid of runs: each cell is an ordinary run, each difference is paired by seed.

In: a YAML file with methods, settings and seeds. Out: the runs, a table of their results, a report and plots.
Nothing here trains: a cell is the training command in its own process.
"""
from .grid import Cell, Study, read_study
from .pictures import draw_pictures, pictures_of
from .report import report_text, write_report
from .rows import Row, read_rows, recorded_rows, rows_of
from .runner import run_study

__all__ = [
    'Cell',
    'Row',
    'Study',
    'draw_pictures',
    'pictures_of',
    'read_rows',
    'read_study',
    'recorded_rows',
    'report_text',
    'rows_of',
    'run_study',
    'write_report',
]
