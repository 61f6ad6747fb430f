"""Started by torchrun: trains the runs of a JSON list in turn; process 0 alone gets SIGTERM at `stop_at`."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from prmbench.config import TrainRMConfig
from prmbench.core import processes
from prmbench.training.train import train


def main() -> None:
    for told in json.loads(Path(sys.argv[1]).read_text()):
        stop_at = told.pop("stop_at", None)
        processes.KEPT_GRADIENT_BYTES = told.pop("kept_gradient_bytes", 1 << 30)
        os.environ["LOCAL_WORLD_SIZE"] = str(told.pop("per_node", os.environ["WORLD_SIZE"]))

        def progress(done: int, _: int, __: float, stop_at: int | None = stop_at) -> None:
            if done == stop_at and os.environ["RANK"] == "0":
                os.kill(os.getpid(), signal.SIGTERM)

        with suppress(KeyboardInterrupt):
            train(TrainRMConfig(**told), progress)


if __name__ == "__main__":
    main()
