"""A grid of runs that compares methods: each cell an ordinary run, each difference paired by seed."""
from .grid import Cell, Study, read_study
from .report import write_report
from .runner import run_study

__all__ = ['Cell', 'Study', 'read_study', 'run_study', 'write_report']
