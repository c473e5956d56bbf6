"""Questions and hits to prompts: numbered sources within a token budget, and instructions that tell them from orders.

Each prompt draws a boundary at random, and the tags around sources carry it. A text that was written before can't hold
it, so no document can end its own source and speak as the instructions do.
"""

import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jinja2
import msgspec
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.errors import Misconfigured
from headrace.llm.settings import LLMSettings
from schemas import Hit

CountTokens: TypeAlias = Callable[[str], int]

NO_ANSWER = "NOT_IN_SOURCES"
"""What the model is told to reply when the sources don't answer; no reader ever sees it."""
LEAST_CHARACTERS = 200
"""Of the first source, whatever the budget: a prompt without any source is no use at all."""

_OWN = Path(__file__).parent / "templates"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A passage as the model sees it.

    `text` begins at the character `start` of the document as it was sent. Where `exact`, it is the document's slice
    from `start` to `end`; where not (HTML), `start` and `end` enclose what it was made of.
    """

    number: int
    hit: Hit
    text: str
    title: str | None
    source: str | None
    start: int
    end: int
    exact: bool


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent, and what answers are checked against: `sources` are numbered from 1, without gaps."""

    question: str
    system: str
    user: str
    sources: list[Source]
    model: str
    unknown_text: str


class Templates(NamedTuple):
    system: jinja2.Template
    user: jinja2.Template

    def render(self, question: str, sources: Sequence[Source], boundary: str) -> tuple[str, str]:
        known = {"question": question, "passages": sources, "boundary": boundary, "no_answer": NO_ANSWER}
        return self.system.render(known).strip(), self.user.render(known).strip()


def load_templates(settings: LLMSettings) -> Templates:
    """The deployment's templates or our own, tried once.

    Raises Misconfigured when one is missing or broken, or when question and passages don't come out whole, with the
    boundary on either side of each passage.
    """
    return _load(settings.system_template, settings.user_template)


def build_prompt(question: str, hits: Sequence[Hit], settings: LLMSettings, count_tokens: CountTokens) -> Prompt:
    """As many of the first `max_passages` hits as fit into `context_tokens`, in their order.

    A hit with a `passage` gives that, else its own text. One that doesn't fit whole is left out, and a later, shorter
    one may still come in; but the first is cut to what fits.
    """
    templates, boundary = load_templates(settings), secrets.token_hex(8)

    def fits(sources: Sequence[Source]) -> bool:
        system, user = templates.render(question, sources, boundary)
        return count_tokens(system) + count_tokens(user) <= settings.context_tokens

    sources: list[Source] = []
    for hit in hits[: settings.max_passages]:
        source = _source(len(sources) + 1, hit)
        if fits([*sources, source]):
            sources.append(source)
        elif not sources:
            sources.append(_cut_to_fit(source, fits))
    system, user = templates.render(question, sources, boundary)
    return Prompt(
        question=question,
        system=system,
        user=user,
        sources=sources,
        model=settings.model or "",
        unknown_text=settings.unknown_text,
    )


def _source(number: int, hit: Hit) -> Source:
    shown = hit.passage or hit
    return Source(
        number=number,
        hit=hit,
        text=shown.text,
        title=_one_line(hit.title),
        source=_one_line(hit.source),
        start=shown.start,
        end=shown.end,
        exact=len(shown.text) == shown.end - shown.start,
    )


def _one_line(text: str | None) -> str | None:
    return " ".join(text.split()) if text is not None else None


def _cut_to_fit(source: Source, fits: Callable[[Sequence[Source]], bool]) -> Source:
    fitting, too_many = LEAST_CHARACTERS, len(source.text)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if fits([_cut(source, middle)]):
            fitting = middle
        else:
            too_many = middle
    return _cut(source, fitting)


def _cut(source: Source, characters: int) -> Source:
    """At white space, if there is some in the second half."""
    text = source.text[:characters]
    if characters < len(source.text):
        space = max(text.rfind(" "), text.rfind("\n"))
        text = text[:space] if space > characters // 2 else text
    end = source.start + len(text) if source.exact else source.end
    return msgspec.structs.replace(source, text=text, end=end)


@lru_cache(maxsize=8)
def _load(system: Path | None, user: Path | None) -> Templates:
    # Sandboxed: a template is a deployment's text, and has no business in the process that renders it.
    environment = ImmutableSandboxedEnvironment(
        autoescape=False,  # no page is rendered, and escaped text would no longer be the documents' own
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates = Templates(
        _template(environment, "system_template", system or _OWN / "system.jinja"),
        _template(environment, "user_template", user or _OWN / "user.jinja"),
    )
    _try(templates)
    return templates


def _template(environment: jinja2.Environment, setting: str, path: Path) -> jinja2.Template:
    try:
        return environment.from_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as exc:
        raise Misconfigured(f"llm.{setting}: {path} can't be read: {exc}") from exc
    except jinja2.TemplateError as exc:
        raise Misconfigured(f"llm.{setting}: {path} is not a template: {exc}") from exc


def _try(templates: Templates) -> None:
    hits = [
        Hit(rank=n, score=1, doc_id="d", chunk_id="c", ordinal=0, version=1, text=text, start=0, end=len(text))
        for n, text in enumerate(("First <passage> & text", "Second <passage> & text"), 1)
    ]
    question, boundary = "Which <question>?", "0123456789abcdef"
    try:
        system, user = templates.render(question, [_source(hit.rank, hit) for hit in hits], boundary)
        templates.render(question, [_source(1, msgspec.structs.replace(hits[0], title="t", source="s"))], boundary)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as exc:
        raise Misconfigured(f"llm.system_template, llm.user_template: they can't be rendered: {exc}") from exc
    if question not in user + system:
        raise Misconfigured("llm.user_template: the question is not in what it makes")
    places = [user.find(hit.text) for hit in hits]
    if -1 in places:
        raise Misconfigured("llm.user_template: the passages are not in what it makes")
    between = [user[: places[0]], user[places[0] : places[1]], user[places[1] :]]
    if boundary not in system or not all(boundary in part for part in between):
        raise Misconfigured(
            "llm.user_template, llm.system_template: {{ boundary }} must stand before and after each passage, and in "
            "the instructions: it keeps documents from passing for instructions"
        )
