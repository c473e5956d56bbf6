"""Ways of searching that are compared."""

import msgspec

from schemas import Fusion
from schemas.wire import decode, encode


class RetrievalSetting(msgspec.Struct, frozen=True, kw_only=True):
    """A way of searching, under the name that the report has for it. None is the deployment's."""

    name: str
    fusion: Fusion | None = None
    rerank: bool | None = False

    def reranked(self) -> "RetrievalSetting":
        return msgspec.structs.replace(self, name=f"{self.name}+rerank", rerank=True)


PREDEFINED = (
    RetrievalSetting(name="bm25", fusion=Fusion(alpha=0)),
    RetrievalSetting(name="dense", fusion=Fusion(alpha=1)),
    RetrievalSetting(name="convex", fusion=Fusion(method="convex", alpha=0.5)),
    RetrievalSetting(name="zscore", fusion=Fusion(method="zscore", alpha=0.5)),
    RetrievalSetting(name="rrf", fusion=Fusion(method="rrf")),
    RetrievalSetting(name="default", rerank=None),
)


def parse_setting(given: str) -> RetrievalSetting:
    """One of the predefined names, or `NAME=METHOD`, `NAME=METHOD:ALPHA`; each may end in `+rerank`; or ValueError."""
    name, equals, described = given.removesuffix("+rerank").partition("=")
    known = {setting.name: setting for setting in PREDEFINED}
    if not equals:
        if name not in known:
            raise ValueError(f"{given!r} is neither one of {', '.join(known)} nor NAME=METHOD[:ALPHA][+rerank]")
        return known[name].reranked() if given.endswith("+rerank") else known[name]
    method, colon, alpha = described.partition(":")
    fields: dict[str, object] = {"method": method}
    if colon:
        try:
            fields["alpha"] = float(alpha)
        except ValueError as exc:
            raise ValueError(f"{given!r}: the alpha {alpha!r} is not a number") from exc
    try:
        fusion = decode(encode(fields), Fusion)
    except msgspec.ValidationError as exc:
        raise ValueError(f"{given!r}: {exc}") from exc
    return RetrievalSetting(name=name, fusion=fusion, rerank=given.endswith("+rerank"))
