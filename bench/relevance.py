"""Which `llm.min_relevance` suits an encoder: `python -m bench.relevance [--folder examples/covidqa]`.

Of questions that a corpus answers and of such that it doesn't, it prints the share whose nearest chunk's cosine is
below each threshold: the first are answers lost, the second "I don't know" where that is right.
"""

import argparse
import gzip
import json
from pathlib import Path

from headrace.chunking import chunk
from headrace.config import load_settings
from headrace.wiring import build_encoder, build_tokenizer

THRESHOLDS = (0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
UNANSWERED = (
    "How do I bake sourdough bread?",
    "What is the capital of Australia?",
    "Who won the football world cup in 1998?",
    "How long does it take to fly to Tokyo?",
    "What is a good recipe for lasagne?",
    "How do I change a bicycle tyre?",
    "When was the Eiffel Tower built?",
    "What is the best way to learn guitar?",
    "How does a mortgage work?",
    "Which planet has the most moons?",
    "How do I install Python on Windows?",
    "What is the tax rate in Germany?",
    "How are diamonds formed?",
    "Who painted the Mona Lisa?",
    "How do I train for a marathon?",
    "What makes a turbine spin?",
    "How do I prune apple trees?",
    "What is the speed of light?",
    "How old is the universe?",
    "Where can I buy cheap furniture?",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("examples/covidqa"))
    folder = parser.parse_args().folder
    settings = load_settings()
    tokenizer, _ = build_tokenizer(settings)
    encoder = build_encoder(settings)
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    chunking = settings.chunking.chunking()
    chunks = [one.text for text in texts for one in chunk(text, "text/plain", chunking, tokenizer)]
    vectors = encoder.encode(chunks)
    with (folder / "queries.jsonl").open(encoding="utf-8") as lines:
        answered = [json.loads(line)["text"] for line in lines]
    print(f"{len(chunks)} chunks; below   " + "".join(f"{threshold:>8}" for threshold in THRESHOLDS))
    for name, questions in (("answered", answered), ("unanswered", UNANSWERED)):
        nearest = (encoder.encode_queries(questions) @ vectors.T).max(axis=1)
        shares = "".join(f"{float((nearest < threshold).mean()):>8.1%}" for threshold in THRESHOLDS)
        print(f"{len(questions):>5} {name:<18}" + shares)


if __name__ == "__main__":
    main()
