"""Texts as a model reads them: with its prompt and their context in front, and within its window."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from headrace.encoders.model import TOKENIZER_FILE, max_tokens, positions, prompts, window
from headrace.errors import Misconfigured
from headrace.tokenizing import load_tokenizer

CONTEXT_TOKENS = 64
"""Of a context at most: 19 titles of 20 in SciFact have fewer than 40."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a model reads of a text, in tokens, special ones included."""

    tokens: int
    """Of a passage or a question, with the model's prompt."""
    positions: int
    """Of a passage and its context together: at least `tokens`, where the network has places beyond them."""
    max_tokens: int
    """Of a passage without the model's prompt."""


class Reader:
    """Tokenises with the model's own tokenizer, outside of anybody's turn. Thread-safe."""

    def __init__(
        self,
        tokenizer_file: Path,
        window: Window,
        *,
        passage_prompt: str = "",
        query_prompt: str = "",
        special_tokens: bool = True,
    ) -> None:
        # Tokenizers carry their truncation with them, so there is one that cuts and one that doesn't.
        self._whole = load_tokenizer(tokenizer_file)
        self._cutting = load_tokenizer(tokenizer_file)
        self._cutting.enable_truncation(window.tokens)
        self._window = window
        self._passage_prompt = passage_prompt
        self._query_prompt = query_prompt
        self._special_tokens = special_tokens

    @property
    def max_tokens(self) -> int:
        return self._window.max_tokens

    def passages(self, texts: Sequence[str], contexts: Sequence[str] | None, *, truncate: bool) -> "Read":
        """Raises Misconfigured when a text doesn't fit and may not be cut."""
        if contexts is None or not any(contexts):
            return self._read([self._passage_prompt + text for text in texts], truncate=truncate)
        shortened = {context: self._first_tokens(context, CONTEXT_TOKENS) for context in set(contexts)}
        before = [shortened[context] for context in contexts]
        joined = self._joined(before, texts)
        if truncate:
            return self._read(joined, truncate=True)
        rows = self._rows(self._whole, joined)
        long = [place for place, row in enumerate(rows) if len(row) > self._window.tokens]
        if long:
            self._squeeze(long, before, texts, joined, rows)
        return Read(joined, rows)

    def questions(self, texts: Sequence[str]) -> "Read":
        return self._read([self._query_prompt + text for text in texts], truncate=True)

    def _read(self, texts: list[str], *, truncate: bool) -> "Read":
        rows = self._rows(self._whole, texts)
        long = [place for place, row in enumerate(rows) if len(row) > self._window.tokens]
        if not long:
            return Read(texts, rows)
        if not truncate:
            raise Misconfigured(
                f"a text of {max(map(len, rows))} tokens does not fit the encoder, which reads {self._window.tokens}: "
                f"chunks of at most {self._window.max_tokens} tokens do; "
                "give all workers the same HEADRACE_ENCODER__MODEL"
            )
        for place, row in zip(long, self._rows(self._cutting, [texts[place] for place in long]), strict=True):
            rows[place] = row
            texts[place] = self._first_tokens(texts[place], len(row) - self._special)
        return Read(texts, rows)

    def _squeeze(
        self, long: list[int], before: Sequence[str], texts: Sequence[str], joined: list[str], rows: list[list[int]]
    ) -> None:
        """Where a text leaves its context too little room, less of that is read, in `joined` and in `rows`.

        Beside a text it may reach into positions that passages alone leave free: all-MiniLM-L6-v2 has 512 of them, and
        passages of at most 256 tokens.
        """
        alone = self._read([self._passage_prompt + texts[place] for place in long], truncate=False)
        for place, own in zip(long, alone.rows, strict=True):
            if len(rows[place]) > self._window.positions:
                # One token less than there is room for: some tokenizers join what meets.
                fits = self._first_tokens(before[place], self._window.positions - len(own) - 1)
                [joined[place]] = self._joined([fits], [texts[place]])
                [rows[place]] = self._rows(self._whole, [joined[place]])
                if not fits or len(rows[place]) > self._window.positions:
                    joined[place], rows[place] = self._passage_prompt + texts[place], own

    def _joined(self, before: Sequence[str], texts: Sequence[str]) -> list[str]:
        prompt = self._passage_prompt
        return [
            f"{prompt}{context} {text}" if context else prompt + text
            for context, text in zip(before, texts, strict=True)
        ]

    def _first_tokens(self, text: str, count: int) -> str:
        """The text up to the end of its so many'th token."""
        if len(text) <= count:
            return text  # A character is hardly ever several tokens, and where it is, a few more do no harm.
        if count <= 0:
            return ""
        ends = [end for _, end in self._whole.encode(text, add_special_tokens=False).offsets]
        return text if len(ends) <= count else text[: ends[count - 1]]

    @property
    def _special(self) -> int:
        return int(self._whole.num_special_tokens_to_add(False)) if self._special_tokens else 0

    def _rows(self, tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=self._special_tokens)
        return [encoding.ids for encoding in encodings]


@dataclass(frozen=True)
class Read:
    """Texts in the order they were given, as the model gets them: as text, and as rows of token ids."""

    texts: list[str]
    rows: list[list[int]]


def reader_of(folder: Path) -> Reader:
    """As the model in this folder reads. Raises Misconfigured when its files don't say how."""
    wanted = prompts(folder)
    return Reader(
        folder / TOKENIZER_FILE,
        Window(tokens=window(folder), positions=positions(folder), max_tokens=max_tokens(folder)),
        passage_prompt=wanted.passage,
        query_prompt=wanted.query,
    )
