"""One process of a launch: trains, and leaves its exit status where the launching process looks for it."""
from __future__ import annotations

import os
import sys
from pathlib import Path

from ..train.__main__ import main
from .launch import EXIT_FOLDER


def run() -> int:
    """Train as the command line says.

    Returns:
        Exit status, 1 if an exception went through.
    """
    folder = os.environ.get(EXIT_FOLDER)
    code = 1
    try:
        code = main()
    except Exception:
        # What a process says that lost the others, torch's word for word, hides what went wrong with the first.
        if not folder or not any(Path(folder).iterdir()):
            raise
    finally:
        if folder:
            rank = os.environ['RANK']
            partial = Path(folder).with_name(f'{Path(folder).name}-{rank}')
            partial.write_text(str(code))
            partial.replace(Path(folder, rank))
    return code


if __name__ == '__main__':
    sys.exit(run())
