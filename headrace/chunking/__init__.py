"""Documents to chunks that an encoder reads whole. Pure: nothing here connects to anything."""

from headrace.chunking.cutting import Chunks, chunk
from headrace.chunking.tokens import Reading, TokenCounter, Tokenizer, check_chunking, load_tokenizer

__all__ = ["Chunks", "Reading", "TokenCounter", "Tokenizer", "check_chunking", "chunk", "load_tokenizer"]
