"""Downloads data sets from the Hugging Face hub and reports the commit that was read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from prmbench.core.records import UserError
from prmbench.core.redaction import first_line


def splits(hub_id: str, names: Sequence[str], revision: str | None) -> tuple[list[Any], str | None]:
    """Return the named splits of a data set, and its revision, resolved to a commit where none was given.

    Raises:
        UserError: The data set cannot be loaded.
    """
    import datasets
    import huggingface_hub

    huggingface_hub.utils.logging.set_verbosity_error()  # else every retry is logged
    try:
        loaded = [datasets.load_dataset(hub_id, split=name, revision=revision) for name in names]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{hub_id}: cannot be loaded from the hub ({first_line(error)}); give local files with --data"
        ) from error
    return loaded, revision or resolved_revision(loaded[0].info.download_checksums or {})


def resolved_revision(sources: Iterable[str]) -> str | None:
    """Return the commit in the addresses that `datasets` has read, such as hf://datasets/owner/name@<sha>/file."""
    matches = (re.search(r"@([0-9a-f]{40})/", source) for source in sources)
    return next((match[1] for match in matches if match), None)
