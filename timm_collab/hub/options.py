"""Options of an export."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..train.errors import nearest
from .errors import require

_NAMES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma
gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl
ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(_NAMES.split())


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of an export.

    Args:
        license: The Hub's name of the licence of the weights; `other` needs the next two.
        license_name: Name of a licence that the Hub doesn't list.
        license_link: Its URL.
        head: `best`, the kept head, or a number from 0.
        half: Round the weights to float16.
        tree: Add the tree with all heads, to continue training, prune another head, or average all heads.
        labels: File with a class name per line, in place of the run's.
        dataset: Id on the Hub of the data set that the run read from a local folder.
        baseline: Run of the single network to compare with, if the run has none of its own.
        note: Further text for the card, e.g. on the data.
        formats: `pt2` (torch.export) and `onnx`, written next to the folder.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    head: str | int = 'best'
    half: bool = False
    tree: bool = False
    labels: Path | None = None
    dataset: str | None = None
    baseline: Path | None = None
    note: str | None = None
    formats: tuple[str, ...] = ()


def check_license(license: str | None, name: str | None, link: str | None) -> None:
    """Check that a licence is given, as the Hub names it.

    Args:
        license: The Hub's name.
        name: Name of a licence that the Hub doesn't list.
        link: URL of its text.

    Raises:
        HubError: It is missing, unknown or incomplete.
    """
    require(license, '--license is missing: say under which licence the weights are published, e.g. --license'
                     ' apache-2.0, or --license other with --license-name and --license-link')
    assert license is not None
    require(license in LICENSES, f"--license: '{license}' is not in this version's list of the Hub's licences"
                                 f'{nearest(license, sorted(LICENSES))}; for one that is not there write --license'
                                 ' other --license-name NAME --license-link URL')
    require((license == 'other') == bool(name) and bool(name) == bool(link),
            '--license-name and --license-link go together, and with --license other')
