"""How many tokens a text is, without the model's own tokenizer, which few providers give away."""

BYTES_A_TOKEN = 3
"""Of UTF-8. English has about 4 bytes a token, Cyrillic 4 to 5, Chinese 3 to 4, code and figures about 3: for most
texts this says more than they have, so a prompt that fits by it fits."""


def estimated_tokens(text: str) -> int:
    return -(-len(text.encode()) // BYTES_A_TOKEN)
