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
    """A document that can't be filled."""


def block_names(document: Path, kind: str) -> list[str]:
    """Names of a document's blocks of one kind, their first word, in the document's order.

    Raises:
        DocumentError: A block has no end.
    """
    text = document.read_text(encoding='utf-8')
    names = [match['name'] for match in _BLOCK.finditer(text) if match['name'].split(':')[0] == kind]
    if len(names) != len(re.findall(f'^<!-- {kind}:', text, re.MULTILINE)):
        raise DocumentError(f"'{document}': a block begins with <!-- {kind}: NAME --> and ends with <!-- end -->, each"
                            ' on a line of its own')
    return names


def fill(document: Path, blocks: Mapping[str, str], check: bool = False) -> str:
    """Write blocks into a document, whole or not at all.

    Args:
        document: The document.
        blocks: Text for each block, by its name in full (`cost: claims`). Blocks with another first word are left.
        check: Write nothing.

    Returns:
        How the document differed, as a unified diff; '' where it didn't.

    Raises:
        DocumentError: A block that the document lacks, or one of the same kind that nothing was made for.
    """
    there = [name for kind in sorted({name.split(':')[0] for name in blocks}) for name in block_names(document, kind)]
    if sorted(there) != sorted(blocks):
        raise DocumentError(f"'{document}' has the blocks {there}, each of {sorted(blocks)} should be there once:"
                            ' write <!-- NAME --> and <!-- end -->, each on a line')

    def filled(match: re.Match[str]) -> str:
        name = match['name']
        return f'<!-- {name} -->\n{blocks[name].strip()}\n<!-- end -->' if name in blocks else match[0]

    text = document.read_text(encoding='utf-8')
    new = _BLOCK.sub(filled, text)
    if new != text and not check:
        partial = document.with_name(f'.{document.name}.partial')
        partial.write_text(new, encoding='utf-8')
        partial.replace(document)
    return '\n'.join(difflib.unified_diff(
        text.splitlines(), new.splitlines(), str(document), 'results', lineterm='', n=0))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
