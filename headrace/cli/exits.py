"""What the exit code of a command means."""

from enum import IntEnum


class Exit(IntEnum):
    FINE = 0
    FAILED = 1
    """Some documents failed, what was asked for isn't there, the answer is an error, or something isn't as it should be."""
    USAGE = 2
    MISCONFIGURED = 3
    AWAY = 4


EPILOG = (
    "[bold]Exit codes[/bold]: 0 fine · 1 some documents failed, not found, the answer is an error, or something is not "
    "as it should be · 2 usage · 3 misconfigured · 4 a server is away.\n\n"
    "[bold]Settings[/bold] come from [cyan]headrace.toml[/cyan] (or the file that [cyan]HEADRACE_CONFIG[/cyan] names) "
    "and from the environment, e.g. [cyan]HEADRACE_KAFKA__BOOTSTRAP_SERVERS[/cyan]; [cyan]headrace config[/cyan] shows "
    "them."
)
