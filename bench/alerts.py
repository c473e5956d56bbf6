"""Dashboards and alerts on real data: what every query of them says of workers that work, and of workers in trouble.

    python -m bench.alerts            # about ten minutes; it needs the local servers, and Prometheus or Go

Six workers of their own run on the servers of the settings, with a language model that always gives the same answer,
and a real Prometheus reads their /metrics. Every query of the dashboards is asked. Then one trouble after the other is
made, and what fires is told. So that this takes no hours, the rules run `FASTER` times as fast, those of `DAYS` more
so: windows, `for`, and every bound of 60 seconds and more are divided. Shares and counts are as they are. What each
alert does at its true pace, tests/data/prometheus shows.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from confluent_kafka import Producer
from rich.table import Table

from bench import prometheus
from bench.deployment import STATIC, Deployment, deployment
from bench.language_model import LanguageModel, language_model, prices
from headrace.cli.console import out
from headrace.cli.publishing import producer_config
from headrace.cli.worker import command
from topics import GROUPS

FASTER = 30
A_DAY_A_MINUTE = 1440
DAYS = {"HeadraceModelCostJumped": A_DAY_A_MINUTE, "HeadraceModelUsageEstimated": A_DAY_A_MINUTE}
"""What looks back over a day, or waits for an hour."""
FIRES_WITHIN_S = 240.0
NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there: what a server that is away looks like."""
EMPTY = {
    "headrace_llm_usage_estimated_total": "the model's server counts its tokens",
    "headrace_citations_removed_total": "the model cites what it was given",
    "headrace_gpu_": "no GPU here",
    "keda_": "no KEDA here",
    "headrace_chunks_reused_total": "nothing was updated",
    "headrace_retries_total": "no server was away",
    "headrace_waiting": "no server was away",
    "headrace_dead_letters_total": "nothing died",
    "headrace_degraded_answers_total": "no answer lacked a part",
    "headrace_answer_errors_total": "no question got an error",
    "ALERTS": "nothing fires",
}
"""Why a query may say nothing while all is well, by what is in it."""
ELSEWHERE = {
    "HeadraceScalerErrors": "no KEDA here",
    "HeadraceLagWithoutPods": "no KEDA here",
}
"""Alerts that can't be provoked here; their rule tests show them."""


def faster(expr: str, by: int = FASTER) -> str:
    """The expression with its windows and bounds of time divided."""
    expr = re.sub(r"(?<![\w.])\d+[mhd]\b", lambda found: divided(found[0], by), expr)
    expr = re.sub(
        r"([<>]) (\d+)(?![\d.])",
        lambda found: f"{found[1]} {int(found[2]) / by:g}" if int(found[2]) >= 60 else found[0],
        expr,
    )
    # The bucket above 120 / FASTER.
    return expr.replace('le="300.0"', 'le="10.0"').replace('le="120.0"', 'le="5.0"')


def divided(duration: str, by: int = FASTER) -> str:
    """Of one number and unit, as Prometheus writes them."""
    milliseconds = int(duration[:-1]) * {"m": 60, "h": 3600, "d": 86400}[duration[-1]] * 1000 // by
    return f"{milliseconds}ms" if milliseconds % 1000 else f"{milliseconds // 1000}s"


class Prometheus:
    """A running one, with what it was asked."""

    def __init__(self, url: str) -> None:
        self._url = url

    def ask(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Series with a value now. NaN is none: it is a share of nothing."""
        return [found for found in self.ask("query", query=expr)["result"] if found["value"][1] != "NaN"]

    def firing(self) -> dict[str, dict[str, Any]]:
        """Firing alerts by name, one of each."""
        return {a["labels"]["alertname"]: a for a in self.ask("alerts")["alerts"] if a["state"] == "firing"}


@contextmanager
def running(deployed: Deployment) -> Iterator[Prometheus]:
    """A Prometheus that reads this deployment's workers every second, by the rules, made faster."""
    program = prometheus.program("prometheus")
    if program is None:
        sys.exit("no prometheus (Debian has the package) and no Go here")
    rules = prometheus.rules()
    for group in rules["groups"]:
        group["interval"] = "1s"
        for rule in group["rules"]:
            by = DAYS.get(rule.get("alert"), FASTER)
            rule["expr"] = faster(rule["expr"], by)
            if "for" in rule:
                rule["for"] = divided(rule["for"], by)
    folder, first = deployed.folder, deployed.settings.worker.port
    targets = [f"127.0.0.1:{first + place}" for place in range(len(GROUPS))]
    jobs = [{"job_name": "headrace", "scrape_interval": "1s", "static_configs": [{"targets": targets}]}]
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "scrape_configs": jobs}))
    listen = f"127.0.0.1:{first + len(GROUPS) + 100}"
    arguments = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/tsdb"]
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen([program, *arguments, f"--web.listen-address={listen}"], stdout=log, stderr=log)
    try:
        server = Prometheus(f"http://{listen}")
        _until(lambda: bool(server.query("up == 1")), "Prometheus reads a worker", within_s=60)
        yield server
    finally:
        process.terminate()
        process.wait()


def _until(true: Callable[[], bool], what: str, *, within_s: float = FIRES_WITHIN_S) -> None:
    """Raises TimeoutError where it doesn't come."""
    began = time.monotonic()
    while True:
        try:
            if true():
                return
        except OSError:  # Prometheus doesn't listen yet.
            pass
        if time.monotonic() - began > within_s:
            raise TimeoutError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.5)


class Trouble:
    """What is done to a deployment, and what becomes of it."""

    def __init__(self, deployed: Deployment, server: Prometheus) -> None:
        self.deployed = deployed
        self.server = server
        self.seen: dict[str, tuple[str, float, str]] = {}
        """Of each alert that fired: what was done, after how many seconds, and what it says."""
        self._names = deployed.settings.kafka.names
        self._producer = Producer({**producer_config(deployed.settings.kafka.confluent()), "linger.ms": 0})
        self._published = 0
        self._asked = 0

    def publish(self, count: int, *, lane: str = "raw", broken: bool = False) -> None:
        for _ in range(count):
            self._published += 1
            value = b"{" if broken else json.dumps({"text": f"Sluice {self._published} opens at six."}).encode()
            self._producer.produce(self._names.topic(f"documents.{lane}"), value, f"default/{self._published}")
        self._producer.flush()

    def ask(self, count: int) -> None:
        for _ in range(count):
            self._asked += 1
            value = json.dumps({"query": f"When does sluice {self._asked} open?", "mode": "answer"})
            headers = [("kafka_correlationId", str(self._asked).encode())]
            self._producer.produce(self._names.topic("queries"), value, headers=headers)
        self._producer.flush()

    def leave(self, topic: str, timestamp_ms: int) -> None:
        """A record of that time in each partition. It is no message, and dies when its stage takes it."""
        for partition in range(self.deployed.settings.kafka.partitions):
            self._producer.produce(
                self._names.topic(topic), b"{", f"default/old-{partition}", partition=partition, timestamp=timestamp_ms
            )
        self._producer.flush()

    def stop(self, stage: str) -> None:
        worker = self.deployed.workers.pop(stage)
        worker.terminate()
        worker.wait()

    def start(self, stage: str, **environment: str) -> None:
        """A worker with other settings."""
        with self.deployed.log(stage).open("ab") as log:
            self.deployed.workers[stage] = subprocess.Popen(
                command(stage), stdout=log, stderr=log, env={**self.deployed.environment, **environment}
            )

    def restart(self, stage: str, **environment: str) -> None:
        self.stop(stage)
        self.start(stage, **environment)

    def provokes(self, done: str, *alerts: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        began = time.monotonic()

        def all_fire() -> bool:
            meanwhile()
            for name, alert in self.server.firing().items():
                said = alert["annotations"]["description"].strip()
                self.seen.setdefault(name, (done, time.monotonic() - began, said))
            return all(alert in self.seen for alert in alerts)

        out().print(f"{done}: {', '.join(alerts)}")
        try:
            _until(all_fire, done)
        except TimeoutError as late:
            sys.exit(f"{late}: {sorted(set(alerts) - self.seen.keys())} did not fire")


def main() -> None:
    with language_model() as model, deployment({**STATIC, **os.environ, **model.environment}) as deployed:
        deployed.start()
        deployed.wait()
        with running(deployed) as server:
            trouble = Trouble(deployed, server)
            silent = _healthy(trouble)
            _make(trouble, model)
            out().print(_dashboards_in_trouble(server))
            over = _mended(trouble)
    missing = sorted(prometheus.alerts().keys() - trouble.seen.keys() - ELSEWHERE.keys())
    out().print(_told(trouble.seen, over))
    for name, why in ELSEWHERE.items():
        out().print(f"{name}: not here, {why}")
    if silent or missing:
        sys.exit(f"no data: {silent}; never fired: {missing}")


def _healthy(trouble: Trouble) -> list[str]:
    """Works for a while; the queries that say nothing and have no reason to."""
    # What the start of the workers looked like is over.
    _until(lambda: not trouble.server.firing(), "nothing fires while all is well")
    for _ in range(20):
        trouble.publish(20)
        trouble.publish(2, lane="urgent")
        trouble.ask(10)
        time.sleep(1)
    # On a machine that is short of CPU, documents are late by 10 s, which is 300 s here.
    out().print(f"firing while all is well: {', '.join(trouble.server.firing()) or 'nothing'}")
    table = Table("dashboard", "panel", "series", title="Dashboards while all is well")
    silent = []
    for query in prometheus.queries():
        count = len(trouble.server.query(_asked(query.expr)))
        why = next((why for part, why in EMPTY.items() if part in query.expr), None)
        if not count and why is None:
            silent.append(f"{query.dashboard}: {query.panel}: {query.expr}")
        table.add_row(query.dashboard, query.panel, str(count) if count else why or "NOTHING")
    out().print(table)
    return silent


def _asked(expr: str) -> str:
    return expr.replace("[5m]", "[30s]").replace("[30m]", "[60s]")


def _make(trouble: Trouble, model: LanguageModel) -> None:
    _expensive(trouble, model)

    long_ago = int((time.time() - 4 * 86400) * 1000)
    trouble.publish(1, broken=True)
    trouble.provokes("a record that is not JSON", "HeadraceDeadLetters")

    def broken() -> None:
        trouble.publish(3, broken=True)

    trouble.provokes("many of them", "HeadraceManyDeadLetters", meanwhile=broken)

    # Before all else in every partition, as after four days without that stage.
    trouble.stop("upsert-opensearch")
    trouble.leave("documents.embeddings", long_ago)
    trouble.start("upsert-opensearch", HEADRACE_STORES__OPENSEARCH__URL=NOWHERE)
    trouble.provokes(
        "upsert-opensearch without OpenSearch, and records of four days ago",
        "HeadraceWaitsForServer",
        "HeadraceNoProgress",
        "HeadraceOldestUnprocessed",
        "HeadraceRecordsExpireSoon",
        "HeadraceLagDoesNotFall",
        meanwhile=lambda: trouble.publish(2),
    )
    trouble.restart("upsert-opensearch")
    trouble.provokes(
        "OpenSearch is back, and what waited comes late",
        "HeadraceFreshnessBudgetBurn",
        "HeadraceFreshnessBudgetBurnSlow",
    )

    trouble.restart("query", HEADRACE_STORES__MILVUS__URI=NOWHERE)
    trouble.provokes(
        "query without Milvus",
        "HeadraceDegradedAnswers",
        "HeadraceBreakerOpen",
        meanwhile=lambda: trouble.ask(5),
    )
    trouble.restart("query", HEADRACE_STORES__OPENSEARCH__URL=NOWHERE)
    trouble.provokes(
        "query without OpenSearch",
        "HeadraceAnswersBudgetBurn",
        "HeadraceAnswersBudgetBurnSlow",
        meanwhile=lambda: trouble.ask(5),
    )
    trouble.restart("query", HEADRACE_QUERY__RATE='{"per_second": 1, "burst": 1}')
    trouble.provokes(
        "ten questions a second where one may be", "HeadraceQuestionsTurnedAway", meanwhile=lambda: trouble.ask(5)
    )

    def again() -> None:
        trouble.restart("commit")
        trouble.deployed.wait(["commit"])
        time.sleep(3)

    trouble.provokes("commit restarts again and again", "HeadraceWorkerRestarts", meanwhile=again)
    _alone_in_its_group(trouble)
    _frozen_and_gone(trouble)


def _expensive(trouble: Trouble, model: LanguageModel) -> None:
    a_day_ago = f"sum(headrace_llm_cost_total offset {divided('1d', A_DAY_A_MINUTE)})"

    def asked_for_a_day() -> bool:
        trouble.ask(1)
        return bool(trouble.server.query(a_day_ago))

    _until(asked_for_a_day, "the model has cost little for a day")
    trouble.restart("query", **prices(10_000))
    trouble.provokes("a model of 10,000 times the price", "HeadraceModelCostJumped", meanwhile=lambda: trouble.ask(5))
    model.counts = False
    trouble.provokes("a server that counts no tokens", "HeadraceModelUsageEstimated", meanwhile=lambda: trouble.ask(5))
    model.counts = True


def _frozen_and_gone(trouble: Trouble) -> None:
    frozen = trouble.deployed.workers["chunk"]
    frozen.send_signal(signal.SIGSTOP)
    try:
        trouble.provokes("chunk is frozen", "HeadraceWorkerDown")
    finally:
        frozen.send_signal(signal.SIGCONT)
    trouble.stop("query")
    trouble.provokes("no query worker", "HeadraceNobodyAnswers")


def _alone_in_its_group(trouble: Trouble) -> None:
    """A frozen member keeps the others of its group waiting, until the brokers give it up."""
    with trouble.deployed.log("second-commit").open("ab") as log:
        # Given up later than another commit takes to start.
        own = {"HEADRACE_WORKER__PORT": "0", "HEADRACE_WORKER__SESSION_TIMEOUT_S": "60"}
        environment = {**trouble.deployed.environment, **own}
        second = subprocess.Popen(command("commit"), stdout=log, stderr=log, env=environment)
    try:
        joined = 'changes(headrace_rebalances_total{stage="commit"}[10s]) > 0'
        _until(lambda: not trouble.server.query(joined), "the group is at rest")
        _until(lambda: bool(trouble.server.query(joined)), "a second commit is in the group")
        second.send_signal(signal.SIGSTOP)
        trouble.restart("commit")
        trouble.provokes("commit waits for a frozen member of its group", "HeadraceWorkerStandsStill")
    finally:
        second.kill()
        second.wait()


def _dashboards_in_trouble(server: Prometheus) -> Table:
    """What had nothing to say before."""
    table = Table("dashboard", "panel", "series", title="Dashboards after all of it, of what said nothing before")
    for query in prometheus.queries():
        if any(part in query.expr for part in EMPTY):
            table.add_row(query.dashboard, query.panel, str(len(server.query(_asked(query.expr)))))
    return table


def _mended(trouble: Trouble) -> Mapping[str, float]:
    """Seconds until each alert that fired was over, while the workers work again."""
    trouble.deployed.start(["query"])
    trouble.deployed.wait()
    began, over = time.monotonic(), {}

    def all_over() -> bool:
        trouble.publish(2)
        trouble.ask(2)
        firing = trouble.server.firing()
        over.update(
            {name: time.monotonic() - began for name in trouble.seen if name not in firing and name not in over}
        )
        # A window of three days is 144 minutes here.
        return all("Slow" in name for name in firing)

    _until(all_over, "alerts end", within_s=400)
    return over


def _told(seen: Mapping[str, tuple[str, float, str]], over: Mapping[str, float]) -> Table:
    title = f"Alerts, {FASTER} times as fast, and a day a minute for {', '.join(DAYS)}"
    table = Table("alert", "provoked by", "after s", "said", "over after s", title=title)
    for name, (done, seconds, said) in seen.items():
        ended = f"{over[name]:.0f}" if name in over else "remembers three days"
        table.add_row(name, done, f"{seconds:.0f}", said, ended)
    return table


if __name__ == "__main__":
    main()
