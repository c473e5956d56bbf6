"""A model's tokenizer, as the chunk stage counts with it and an encoder reads with it."""

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE


def load_tokenizer(file: Path) -> Tokenizer:
    """It neither cuts nor pads, whatever its file says. What the library raises has no class but Exception."""
    tokenizer: Tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.pre_tokenizer is None and isinstance(tokenizer.model, BPE):
        # It remembers the tokens of 10,000 words, and here a whole text is one: no text comes twice, and a worker grew
        # by 100 MB in 100,000 documents.
        model = tokenizer.model
        model._resize_cache(0)
        tokenizer.model = model
    return tokenizer
