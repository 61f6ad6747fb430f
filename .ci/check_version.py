"""Ends with an error unless a tag, the package and CITATION.cff name one version: `check_version.py v1.2.3`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

PLACES = {
    "prmbench/__init__.py": r'^__version__ = "([^"]+)"$',  # pyproject.toml takes it from there
    "CITATION.cff": r"^version: (\S+)$",
    "CHANGELOG.md": r"^## (\d\S*)",
}


def main(tag: str, root: Path) -> str:
    """Returns what is wrong; empty if nothing is."""
    wanted, faults = tag.removeprefix("v"), []
    for place, pattern in PLACES.items():
        match = re.search(pattern, (root / place).read_text(encoding="utf-8"), re.MULTILINE)
        if match is None or match[1] != wanted:
            faults.append(f"{place} has {match[1] if match else 'none'}")
    if not tag.startswith("v"):
        faults.append("a tag is v and the version")
    return f"tag {tag}: {'; '.join(faults)}" if faults else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(__file__).parents[1]))
