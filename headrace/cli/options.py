"""Options that several commands share."""

from typing import Annotated

import typer


def check_tenant(value: str | None) -> str | None:
    """Refuses, as wrong usage, a tenant that is not of the contract's form."""
    from schemas import key

    try:
        return None if value is None else key.check_tenant(value)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Tenant = Annotated[str, typer.Option("--tenant", "-t", help="Whose documents.", callback=check_tenant)]
MaybeTenant = Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant's.", callback=check_tenant)]
Urgent = Annotated[bool, typer.Option("--urgent", help="Take the fast path, which every stage drains first.")]
