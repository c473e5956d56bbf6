"""What a sender says who it is with."""

from headrace.auth.settings import AuthSettings
from headrace.errors import Misconfigured

AUTHORIZATION = "authorization"


class Bearer:
    """The headers that show the token of these settings; none where they have no token."""

    def __init__(self, settings: AuthSettings) -> None:
        self._settings = settings

    def headers(self) -> list[tuple[str, bytes]]:
        """Raises Misconfigured where the token file can't be read, or what it has is no token."""
        token = self._token()
        if token is None:
            return []
        if not token or not token.isascii() or any(character.isspace() for character in token):
            raise Misconfigured("the token to send is empty, or has characters that no token has (auth.token)")
        return [(AUTHORIZATION, b"Bearer " + token.encode())]

    def _token(self) -> str | None:
        if self._settings.token is not None:
            return self._settings.token.get_secret_value()
        if self._settings.token_file is None:
            return None
        try:
            return self._settings.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise Misconfigured(f"auth.token_file can't be read: {exc}") from exc


NO_TOKEN = Bearer(AuthSettings())
