"""`python -m timm_collab.train` and `accelerate launch -m timm_collab.train`."""
from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .config.parse import parse_config
from .errors import TrainError, found_everywhere


def main(argv: Sequence[str] | None = None) -> int:
    """Train by the recipe of a command line.

    Args:
        argv: Arguments after the program's name; those of the process when None.

    Returns:
        Exit status: 0; 2 for a mistake in the recipe or the data, explained by one line on stderr; 75 if a signal
        stopped the run after it was saved, 130 if that was Ctrl-C.
    """
    try:
        with found_everywhere():
            config = parse_config(sys.argv[1:] if argv is None else argv)
        # Imported late: a misspelt key is refused before anything heavy is loaded.
        from .distributed.processes import leave_process_group
        from .distributed.signals import StoppedError
        from .run import train
        try:
            train(config)
        except StoppedError as error:
            leave_process_group()
            return error.exit_status
        except TrainError as error:
            if error.everywhere:  # no other process waits for this one
                leave_process_group()
            raise
        leave_process_group()
    except TrainError as error:
        if not error.everywhere or os.environ.get('LOCAL_RANK', '0') == '0':  # once per machine, not per GPU
            print(f'error: {_one_line(error)}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return 0


def _one_line(error: TrainError) -> str:
    """The message; torch wraps that of an error in a loader's worker into the worker's traceback."""
    return str(error).strip().splitlines()[-1].removeprefix(f'{type(error).__module__}.{type(error).__name__}: ')


if __name__ == '__main__':
    sys.exit(main())
