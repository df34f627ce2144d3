"""Generate blocks of a document from result files, and check that they are up to date.

A block stands between two comments, each on its own line:

    <!-- cost: claims -->
    ...
    <!-- end -->

`fill` replaces the text of blocks; the rest of a document is written by hand.
"""
from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from timm_collab.train.paths import atomic

_BLOCK = re.compile(r'^<!-- (?P<name>[\w-]+: [^\n]+?) -->\n(?P<body>.*?)^<!-- end -->$', re.MULTILINE | re.DOTALL)


class DocumentError(ValueError):
    """A document lacks a block, or has an invalid one."""


def block_names(document: Path, kind: str) -> list[str]:
    """Names of a document's blocks of one kind, in order; the kind is the part before the colon.

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
    """Write blocks into a document, atomically.

    Args:
        document: The document.
        blocks: Text of each block by its full name, such as `cost: claims`. Blocks of other kinds stay unchanged.
        check: Write nothing.

    Returns:
        Unified diff of the document before and after; '' without differences.

    Raises:
        DocumentError: The document lacks a block, or has another one of the same kind.
    """
    found = [name for kind in sorted({name.split(':')[0] for name in blocks}) for name in block_names(document, kind)]
    if sorted(found) != sorted(blocks):
        raise DocumentError(f"'{document}' has the blocks {found}, each of {sorted(blocks)} should be there once:"
                            ' write <!-- NAME --> and <!-- end -->, each on a line')

    def filled(match: re.Match[str]) -> str:
        name = match['name']
        return f'<!-- {name} -->\n{blocks[name].strip()}\n<!-- end -->' if name in blocks else match[0]

    text = document.read_text(encoding='utf-8')
    new = _BLOCK.sub(filled, text)
    if new != text and not check:
        with atomic(document) as partial:
            partial.write_text(new, encoding='utf-8')
    return '\n'.join(difflib.unified_diff(
        text.splitlines(), new.splitlines(), str(document), 'results', lineterm='', n=0))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
