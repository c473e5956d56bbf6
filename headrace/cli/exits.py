"""What the exit code of a command means."""

from enum import IntEnum


class Exit(IntEnum):
    FINE = 0
    FAILED = 1
    """Some documents failed, something isn't there or isn't as it should be, or the answer is an error."""
    USAGE = 2
    MISCONFIGURED = 3
    AWAY = 4
    STUCK = 5
    """A worker stood still and ended itself: start it again."""


EPILOG = (
    "**Exit codes**: 0 fine · 1 some documents failed, not found, the answer is an error, or something is not as it "
    "should be · 2 usage · 3 misconfigured · 4 a server is away · 5 a worker was stuck.\n\n"
    "**Settings** come from `headrace.toml` (or the file that `HEADRACE_CONFIG` names), from the environment, e.g. "
    "`HEADRACE_KAFKA__BOOTSTRAP_SERVERS`, and from the folder of secret files that `HEADRACE_SECRETS` names; "
    "`headrace config` shows them."
)
