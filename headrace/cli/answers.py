"""An answer as people read it: the text, what it rests on, and the hits."""

import re

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from schemas import Answer, Citation, Hit

SNIPPET_CHARACTERS = 320


def print_answer(console: Console, answer: Answer, *, hits: bool = True) -> None:
    """Everything an answer says; its hits only where asked for, or where there is nothing else."""
    if answer.error is not None:
        console.print(Text(f"{answer.error.code}: {answer.error.message}", style="bold red"))
        if answer.error.retry_after_ms is not None:
            console.print(f"Try again in {answer.error.retry_after_ms / 1000:g} s.")
    if answer.degraded:
        console.print(Text(f"Degraded: had to do without {', '.join(answer.degraded)}.", style="yellow"))
    if answer.answer is not None:
        console.print(Text(answer.answer.text or "No passage answers this.", style="bold"))
        found = {hit.chunk_id: hit for hit in answer.hits}
        for citation in answer.answer.citations:
            console.print()
            console.print(_citation(citation, found.get(citation.chunk_id)))
        console.print()
    if hits or answer.answer is None:
        _print_hits(console, answer)
    if total := answer.timings_ms.get("total"):
        console.print(Text(f"{total:.0f} ms", style="dim"))


def _print_hits(console: Console, answer: Answer) -> None:
    if not answer.hits:
        if answer.error is None:
            console.print("Nothing was found.")
        return
    console.print(Text(f"{len(answer.hits)} hit{'s' if len(answer.hits) != 1 else ''}", style="bold dim"))
    for hit in answer.hits:
        console.print(_hit(hit))


def quote(citation: Citation, hit: Hit) -> str:
    """What a citation cites. An HTML hit's text is not a slice of what was sent: then the passage stands for it."""
    if len(hit.text) == hit.end - hit.start and hit.start <= citation.start < citation.end <= hit.end:
        return hit.text[citation.start - hit.start : citation.end - hit.start]
    return hit.text


def _citation(citation: Citation, hit: Hit | None) -> RenderableType:
    place = _place(citation.doc_id, hit.title if hit else None, citation.start, citation.end)
    line = Text.assemble((f"{citation.marker} ", "bold cyan"), place)
    if hit is None:
        return line
    return Group(line, _quoted(quote(citation, hit)))


def _hit(hit: Hit) -> RenderableType:
    line = Text.assemble(
        (f"{hit.rank:>2}. ", "bold cyan"),
        _place(hit.doc_id, hit.title, hit.start, hit.end),
        (f"  {hit.score:.3f}", "dim"),
    )
    text = _snippet(hit) if hit.passage is None else _quoted(hit.passage.text)
    return Group(line, text) if hit.explanation is None else Group(line, text, _explained(hit))


def _explained(hit: Hit) -> RenderableType:
    """The steps that saw it, each with its place and score there."""
    said, scores = hit.explanation, hit.scores
    if said is None:
        return ""
    steps = [
        ("vectors", said.dense_rank, scores.dense, said.dense),
        ("keywords", said.bm25_rank, scores.bm25, said.bm25),
        ("fused", said.fused_rank, said.fused, None),
        ("reranker", said.rerank_rank, scores.rerank, said.rerank),
    ]
    parts = [
        f"{name} {rank}. {score:.3f}" + (f" (as {share:.3f})" if share is not None else "")
        for name, rank, score, share in steps
        if rank is not None and score is not None
    ]
    return Padding(Text(" · ".join(parts), style="dim"), (0, 0, 0, 4))


def _place(doc_id: str, title: str | None, start: int, end: int) -> Text:
    place = Text(doc_id, style="bold")
    if title:
        place.append(" · ", style="not bold").append(title, style="not bold italic")
    return place.append(f" · characters {start:,}–{end:,}", style="not bold dim")


def _quoted(text: str) -> RenderableType:
    return Padding(Text(f"“{' '.join(text.split())}”", style="green"), (0, 0, 0, 4))


def _snippet(hit: Hit) -> RenderableType:
    """Where the question's words are first, and those words."""
    text = Text(re.sub(r"\s", " ", hit.text), style="green")
    for word in hit.highlights:
        text.stylize("bold", word.start, word.end)
    first = hit.highlights[0].start if hit.highlights else 0
    begin = max(0, min(first - SNIPPET_CHARACTERS // 4, len(text) - SNIPPET_CHARACTERS))
    shown = text[begin : begin + SNIPPET_CHARACTERS]
    before, after = "…" * (begin > 0), "…" * (begin + SNIPPET_CHARACTERS < len(text))
    return Padding(Text.assemble(f"“{before}", shown, f"{after}”", style="green"), (0, 0, 0, 4))
