"""Options that several commands share."""

from typing import Annotated

import typer


def _tenant(value: str | None) -> str | None:
    from schemas.key import check_tenant

    try:
        return None if value is None else check_tenant(value)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from exc


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Tenant = Annotated[str, typer.Option("--tenant", "-t", help="Whose documents.", callback=_tenant)]
MaybeTenant = Annotated[str | None, typer.Option("--tenant", "-t", help="Only this tenant's.", callback=_tenant)]
Urgent = Annotated[bool, typer.Option("--urgent", help="Take the fast path, which every stage drains first.")]
