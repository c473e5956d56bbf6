"""`headrace evaluate`."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.console import complain, err, out, print_json
from headrace.cli.exits import Exit
from headrace.cli.options import Json, check_tenant

if TYPE_CHECKING:
    from headrace.cli.asking import Asker
    from headrace.cli.evaluating import Interview, Show, Tuned
    from headrace.config import Settings
    from headrace.evaluation import Dataset, Question, Relevance, Report, RetrievalSetting, SettingReport
    from schemas import Chunking

TOO_FEW = "there are too few questions to tune on some and report on others"


def evaluate(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="A data set of BEIR's shape: corpus.jsonl and queries.jsonl (.gz too), qrels.tsv or qrels/test.tsv.",
            show_default=False,
        ),
    ] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(
            "--judgements",
            metavar="FILE",
            help='Instead of DIR, of documents that are published already: JSON Lines of {"query": …, "doc_ids": […], '
            '"evidence": [{"doc_id": …, "start": …, "end": …}]}. Takes --tenant.',
        ),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option("--tenant", "-t", help="With --judgements: whose documents.", callback=check_tenant),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            "-s",
            metavar="NAME[=METHOD[:ALPHA]][+rerank]",
            help="Measure these ways of searching only: bm25, dense, convex, zscore, rrf, default (the deployment's), "
            "or one's own, such as mine=zscore:0.4; repeatable. [default: all of these]",
        ),
    ] = None,
    rerank: Annotated[bool, typer.Option("--rerank", help="Measure the fused ways with the reranker, too.")] = False,
    sweep: Annotated[
        bool,
        typer.Option(
            "--sweep",
            help="Tune the chunks' size, the fusion and its weight, and how many passages are read, on the train split "
            "(or half of the questions), and report on the others.",
        ),
    ] = False,
    unanswerable: Annotated[
        Path | None,
        typer.Option(
            "--unanswerable",
            metavar="FILE",
            help="Questions that these documents don't answer, a line each, or JSON Lines with `query` or `text`: tune "
            'below which cosine the answer is "I don\'t know", too.',
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit-queries", min=1, metavar="N", help="Ask the first N questions only.")
    ] = None,
    in_flight: Annotated[int, typer.Option("--in-flight", min=1, max=256, help="Questions on their way at once.")] = 16,
    timeout: Annotated[float, typer.Option("--timeout", min=1, max=600, help="Seconds for each question.")] = 60,
    publish_timeout: Annotated[
        float,
        typer.Option("--publish-timeout", min=1, help="Give up when no document was finished for so many seconds."),
    ] = 600,
    save: Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Write what was measured here.")] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            help="Compare with what --save wrote; exit 1 when a measure fell by more than chance explains.",
        ),
    ] = None,
    keep: Annotated[
        bool,
        typer.Option(
            "--keep/--delete", help="Whether the published data set stays, so that the next run is quick, or goes."
        ),
    ] = True,
    json: Json = False,
) -> None:
    """Measure how good the hits are: nDCG@10, recall@100, MRR@10 and, where the data set says where answers stand, how
    often the first passages have them, each with its 95 % interval.

    The documents of DIR are published into a tenant of their own, through the real pipeline, and the questions asked
    over the real topics. A run that was interrupted goes on where it was. A question that is not answered, or answered
    without one of the stores, ends the run: it would lower the measures and say nothing of the setting.
    """
    from msgspec.structs import replace

    from headrace.cli.asking import Asker
    from headrace.cli.kafka import translated
    from headrace.config import load_settings

    ways = _settings(given, rerank=rerank)
    if (folder is None) == (judgements is None):
        raise typer.BadParameter("name a data set, or --judgements", param_hint="DIR")
    if (judgements is None) != (tenant is None):
        raise typer.BadParameter("goes with --judgements, which needs it", param_hint="--tenant")
    earlier = _baseline(baseline)
    strangers = _unanswerable(unanswerable)
    if save is not None and not save.resolve().parent.is_dir():
        raise typer.BadParameter(f"{save.parent} is not a folder", param_hint="--save")
    settings = load_settings()
    from headrace.auth import Bearer

    with ExitStack() as opened, translated(settings.kafka.confluent()):
        show = opened.enter_context(_progress())
        source = (
            _Published(settings, _dataset(folder), publish_timeout)
            if folder is not None
            else _Live(_judgements(judgements), tenant or "")
        )
        if earlier is not None and earlier.documents != source.documents:
            raise typer.BadParameter(
                f"measured {earlier.name} ({earlier.documents}), and this is {source.name} ({source.documents})",
                param_hint="--baseline",
            )
        asker = opened.enter_context(Asker(settings.kafka, Bearer(settings.auth)))
        run = _Run(settings, source, asker, in_flight, timeout, show)
        try:
            relevance = run.relevance(strangers, limit) if strangers else None
            report, tuned = run.sweep(limit) if sweep else (run.measure(ways, _first(source.test, limit)), None)
        finally:
            if not keep:
                source.delete()
    report = replace(report, relevance=relevance)
    _finish(report, tuned, earlier, source, save=save, keep=keep, json=json)


def _finish(
    report: "Report",
    tuned: "Tuned | None",
    earlier: "Report | None",
    source: "_Source",
    *,
    save: Path | None,
    keep: bool,
    json: bool,
) -> None:
    import msgspec

    from headrace.cli.evaluation_tables import print_comparison, print_relevance, print_report, print_tuned
    from headrace.evaluation import compare

    compared = compare(report, earlier) if earlier is not None else None
    if save is not None:
        save.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    if json:
        print_json({"report": report, "tuned": tuned, "comparison": compared})
    else:
        if tuned is not None:
            print_tuned(out(), tuned, source.split)
        print_report(out(), report)
        if report.relevance is not None:
            print_relevance(out(), report.relevance)
        if compared is not None:
            print_comparison(out(), compared)
    if keep:
        for tenant in source.tenants:
            complain(f"kept for the next run: tenant {tenant} (`headrace delete --all --tenant {tenant}`)")
    if compared is not None and compared.fell:
        for change in compared.fell:
            complain(
                f"{change.setting}: {change.measure} fell from {change.before:.4f} to {change.after:.4f} "
                f"({change.by.low:+.4f} to {change.by.high:+.4f})"
            )
        raise typer.Exit(Exit.FAILED)


class _Published:
    """A data set that is published first, cut in one way or another, each into a tenant of its own."""

    def __init__(self, settings: "Settings", dataset: "Dataset", timeout_s: float) -> None:
        from headrace.encoders import encoder_identity
        from headrace.evaluation import halves

        self._settings = settings
        self._dataset = dataset
        self._timeout_s = timeout_s
        self._encoder = encoder_identity(settings.encoder).recipe
        self.name, self.documents = dataset.name, dataset.digest
        self.tenants: list[str] = []
        self.test = dataset.test
        self.split = f"{len(dataset.train):,} questions of the train split"
        self.train, self.unseen = dataset.train, dataset.test
        if not dataset.train:
            self.train, self.unseen = halves(dataset.test)
            self.split = f"{len(self.train):,} of {len(dataset.test):,} questions, drawn by their ids: no train split"

    def chunkings(self) -> "list[Chunking]":
        from headrace.cli.evaluating import chunkings_to_try
        from headrace.encoders import max_tokens

        return chunkings_to_try(self._settings.chunking.chunking(), max_tokens(self._settings.encoder))

    def ready(self, chunking: "Chunking") -> str:
        """The tenant that has the documents, cut so."""
        from headrace.auth import Bearer
        from headrace.cli.evaluating import describe, documents, scratch_tenant
        from headrace.cli.progress import progress
        from headrace.cli.publishing import publish
        from headrace.errors import HeadraceError

        tenant = scratch_tenant(self._dataset, chunking, self._encoder)
        if tenant in self.tenants:
            return tenant
        self.tenants.append(tenant)
        complain(f"publishing {self._dataset.count:,} documents ({describe(chunking)}) as tenant {tenant}")
        with progress(err(), waits=True) as watch:
            tally = publish(
                documents(self._dataset, tenant, chunking),
                self._settings.kafka,
                watch,
                wait_s=self._timeout_s,
                bearer=Bearer(self._settings.auth),
            )
        told = ", ".join(f"{count:,} {status}" for status, count in tally.outcomes.items() if count)
        if not tally.fine:
            raise HeadraceError(
                f"not every document could be published ({told or 'none was finished'}, {len(tally.unfinished):,} "
                "unfinished); the same command goes on where this one was"
            )
        complain(f"{told} in {tally.seconds:.1f} s")
        return tenant

    def delete(self) -> None:
        from headrace.auth import Bearer
        from headrace.cli.evaluating import deletions
        from headrace.cli.progress import progress
        from headrace.cli.publishing import publish

        with progress(err(), waits=True) as watch:
            for tenant in self.tenants:
                publish(
                    deletions(self._dataset, tenant),
                    self._settings.kafka,
                    watch,
                    wait_s=self._timeout_s,
                    bearer=Bearer(self._settings.auth),
                )


class _Live:
    """Documents that are there; how they are cut was decided when they were published."""

    def __init__(self, questions: "list[Question]", tenant: str) -> None:
        from headrace.evaluation import halves

        self._tenant = tenant
        self.name, self.documents = f"tenant {tenant}", f"tenant {tenant}"
        self.tenants: list[str] = []
        self.test = questions
        self.train, self.unseen = halves(questions)
        self.split = f"{len(self.train):,} of {len(questions):,} questions, drawn by their ids"

    def chunkings(self) -> "list[Chunking] | None":
        return None

    def ready(self, chunking: "Chunking") -> str:
        del chunking
        return self._tenant

    def delete(self) -> None:
        """They are not ours."""


_Source = _Published | _Live


class _Run:
    def __init__(
        self, settings: "Settings", source: _Source, asker: "Asker", in_flight: int, timeout_s: float, show: "Show"
    ) -> None:
        self._settings = settings
        self._default = settings.chunking.chunking()
        self._source = source
        self._asker = asker
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._show = show

    def measure(self, ways: "Sequence[RetrievalSetting]", questions: "Sequence[Question]") -> "Report":
        reports = []
        for way in ways:
            reports.append(self._interview(self._default).measure(way, questions))
            complain(f"{way.name}: {len(questions):,} questions in {reports[-1].seconds:.1f} s")
        return self._report(reports, len(questions), self._default)

    def sweep(self, limit: int | None) -> "tuple[Report, Tuned]":
        from msgspec.structs import replace

        from headrace.cli.evaluating import Trial, tune
        from headrace.evaluation import parse_setting

        train, test = self._sides(limit)

        def tried(trial: Trial) -> None:
            complain(f"{trial.chunking}, {trial.setting}: {trial.value:.4f}")

        tuned = tune(self._interview, train, self._source.chunkings() or [self._default], tried=tried)
        reports = [
            self._interview(self._default).measure(parse_setting("default"), test),
            self._interview(tuned.chunking).measure(replace(tuned.setting, name="tuned"), test),
        ]
        return self._report(reports, len(test), tuned.chunking), tuned

    def relevance(self, unanswerable: "Sequence[Question]", limit: int | None) -> "Relevance":
        from headrace.evaluation import Cosines, halves, tune_relevance

        answerable = self._sides(limit)
        others = [_first(side, limit) for side in halves(unanswerable)]
        if not all(others):
            raise typer.BadParameter(TOO_FEW, param_hint="--unanswerable")
        interview = self._interview(self._default)
        started = time.monotonic()
        # Together, so that what goes wrong with one of them is seen beside all others.
        sides = [*answerable, *others]
        cosines = iter(interview.nearest([question for side in sides for question in side]))
        known_train, known_test, train, test = ([next(cosines) for _ in side] for side in sides)
        complain(f"relevance: {sum(map(len, sides)):,} questions in {time.monotonic() - started:.1f} s")
        return tune_relevance(Cosines(known_train, train), Cosines(known_test, test))

    def _sides(self, limit: int | None) -> "tuple[Sequence[Question], Sequence[Question]]":
        """To tune on, and to report on."""
        train, test = _first(self._source.train, limit), _first(self._source.unseen, limit)
        if not train or not test:
            raise typer.BadParameter(TOO_FEW)
        return train, test

    def _interview(self, chunking: "Chunking") -> "Interview":
        from headrace.cli.evaluating import Interview

        return Interview(
            asker=self._asker,
            tenant=self._source.ready(chunking),
            in_flight=self._in_flight,
            timeout_s=self._timeout_s,
            show=self._show,
        )

    def _report(self, reports: "list[SettingReport]", questions: int, chunking: "Chunking") -> "Report":
        from headrace.cli.evaluating import describe
        from headrace.encoders import encoder_identity
        from headrace.evaluation import Report

        return Report(
            name=self._source.name,
            documents=self._source.documents,
            encoder=encoder_identity(self._settings.encoder).recipe,
            chunking=describe(chunking) if self._source.chunkings() else "as published",
            questions=questions,
            settings=reports,
        )


def _settings(given: list[str] | None, *, rerank: bool) -> "list[RetrievalSetting]":
    from headrace.evaluation import PREDEFINED, parse_setting

    try:
        ways = [parse_setting(one) for one in given] if given else list(PREDEFINED)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--setting") from exc
    if rerank:
        ways += [way.reranked() for way in ways if not way.rerank and way.name not in ("bm25", "dense", "default")]
    names = [way.name for way in ways]
    if len(set(names)) < len(names):
        raise typer.BadParameter("two settings have one name", param_hint="--setting")
    return ways


def _dataset(folder: Path) -> "Dataset":
    from headrace.errors import HeadraceError
    from headrace.evaluation import read_dataset

    if not folder.is_dir():
        raise typer.BadParameter(f"{folder} is not a folder", param_hint="DIR")
    try:
        return read_dataset(folder)
    except ValueError as exc:
        raise HeadraceError(str(exc)) from exc


def _judgements(file: Path | None) -> "list[Question]":
    from headrace.errors import HeadraceError
    from headrace.evaluation import read_judgements

    try:
        return read_judgements(file) if file is not None else []
    except ValueError as exc:
        raise HeadraceError(str(exc)) from exc


def _unanswerable(file: Path | None) -> "list[Question]":
    from headrace.errors import HeadraceError
    from headrace.evaluation import read_unanswerable

    try:
        return read_unanswerable(file) if file is not None else []
    except ValueError as exc:
        raise HeadraceError(str(exc)) from exc


def _baseline(file: Path | None) -> "Report | None":
    import msgspec

    from headrace.evaluation import Report
    from schemas import decode

    if file is None:
        return None
    try:
        return decode(file.read_bytes(), Report)
    except OSError as exc:
        raise typer.BadParameter(f"{file}: {exc.strerror}", param_hint="--baseline") from exc
    except msgspec.DecodeError as exc:
        raise typer.BadParameter(f"{file} is nothing that --save wrote: {exc}", param_hint="--baseline") from exc


def _first(questions: "Sequence[Question]", limit: int | None) -> "Sequence[Question]":
    return questions if limit is None else questions[:limit]


@contextmanager
def _progress() -> "Iterator[Show]":
    """A bar on a terminal, nothing elsewhere: each setting has its line when it is done."""
    console = err()
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console) as bar:
        task = bar.add_task("asking", total=None, visible=False)

        def show(what: str, answered: int, of: int) -> None:
            bar.update(task, description=f"asking {what}", completed=answered, total=of, visible=answered < of)

        yield show
