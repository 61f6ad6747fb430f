"""Data sets from the hub, through `datasets`, with the commit that was read. Knows no benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from prmbench.core.records import UserError
from prmbench.core.redaction import first_line


def splits(hub_id: str, names: Sequence[str], revision: str | None) -> tuple[list[Any], str | None]:
    """The splits of those names; also the revision, resolved where none was given. Raises UserError."""
    import datasets
    import huggingface_hub

    huggingface_hub.utils.logging.set_verbosity_error()  # its retries, one line each
    try:
        found = [datasets.load_dataset(hub_id, split=name, revision=revision) for name in names]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{hub_id}: cannot be loaded from the hub ({first_line(error)}); give local files with --data"
        ) from error
    return found, revision or resolved_revision(found[0].info.download_checksums or {})


def resolved_revision(sources: Iterable[str]) -> str | None:
    """The commit in the addresses that `datasets` says it read, such as hf://datasets/owner/name@<sha>/file."""
    return next((found[1] for found in (re.search(r"@([0-9a-f]{40})/", s) for s in sources) if found), None)
