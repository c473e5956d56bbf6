"""`headrace dead replay --all --yes` that kills itself at the commit of its second transaction: before it, or right after."""

import os
import signal
import sys
from typing import Any

from confluent_kafka import Producer

from headrace.cli import main, settling


class Dying(Producer):
    commits = 0

    def commit_transaction(self, *timeout: Any) -> None:
        self.commits += 1
        if self.commits == 2 and sys.argv[1] == "before":
            self.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit_transaction(*timeout)
        if self.commits == 2:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    settling.Producer = Dying  # type: ignore[misc]
    main(["dead", "replay", "--all", "--yes"])
