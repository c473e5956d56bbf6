"""Who sends: JSON Web Tokens, their tenant and scopes.

Importing this stays light: cryptography is loaded with the first Authenticator.
"""

from headrace.auth.authenticator import PUBLISH, QUERY, Authenticator, Denied, DeniedCode, authorization_of
from headrace.auth.bearer import NO_TOKEN, Bearer
from headrace.auth.keys import Keys, KeySource, keys_in_file, keys_of_server

__all__ = [
    "NO_TOKEN",
    "PUBLISH",
    "QUERY",
    "Authenticator",
    "Bearer",
    "Denied",
    "DeniedCode",
    "KeySource",
    "Keys",
    "authorization_of",
    "keys_in_file",
    "keys_of_server",
]
