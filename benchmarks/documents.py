"""Tables in a document that are made from result files, and the check that they still are.

A document has blocks between two lines of its own, which a reader doesn't see:

    <!-- cost: claims -->
    ...
    <!-- end -->

`fill` puts what was made for each block in its place; everything else in a document is written by hand.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

_BLOCK = re.compile(r'^<!-- (?P<name>[\w-]+: [^\n]+?) -->\n(?P<body>.*?)^<!-- end -->$', re.MULTILINE | re.DOTALL)


class DocumentError(ValueError):
    """A document that can't be filled, or doesn't hold what its result files say."""


def fill(document: Path, blocks: Mapping[str, str], check: bool = False) -> None:
    """Write blocks into a document, whole or not at all.

    Args:
        document: The document.
        blocks: Text for each block, by its name in full (`cost: claims`). Blocks with another first word are left.
        check: Write nothing: fail where the document holds something else.

    Raises:
        DocumentError: A block that the document lacks, or one of the same kind that nothing was made for; with
            `check`, a block that differs.
    """
    text = document.read_text(encoding='utf-8')
    there = [match['name'] for match in _BLOCK.finditer(text)]
    kinds = {name.split(':')[0] for name in blocks}
    wanted = [name for name in there if name.split(':')[0] in kinds]
    if sorted(wanted) != sorted(blocks):
        raise DocumentError(f"'{document}' has the blocks {wanted}, each of {sorted(blocks)} should be there once:"
                            ' write <!-- NAME --> and <!-- end -->, each on a line')

    def filled(match: re.Match[str]) -> str:
        name = match['name']
        return f'<!-- {name} -->\n{blocks[name].strip()}\n<!-- end -->' if name in blocks else match[0]

    new = _BLOCK.sub(filled, text)
    if check and new != text:
        lines = difflib.unified_diff(text.splitlines(), new.splitlines(), str(document), 'results', lineterm='', n=0)
        raise DocumentError(f"'{document}' doesn't say what its result files say:\n" + '\n'.join(lines))
    if new != text:
        partial = document.with_name(f'.{document.name}.partial')
        partial.write_text(new, encoding='utf-8')
        partial.replace(document)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
