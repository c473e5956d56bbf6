import io
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from headrace.cli import main
from headrace.encoders import Encoder, build_encoder, encoder_identity
from headrace.encoders import export as exporting
from headrace.encoders.export import export_encoder
from headrace.encoders.settings import EncoderSettings
from headrace.errors import Misconfigured

TEXTS = ["A turbine turns.", "", "Water flows down the channel. " * 8, "Bread is baked.", "ü 中文 😀", "oil " * 120]


@pytest.fixture(scope="module")
def exported(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the command, as anybody would."""
    made = tmp_path_factory.mktemp("exported")
    (made / "care.md").write_text("# Pump 7\n\n" + "Oil it daily. " * 500)
    with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        main(["encoder", "export", str(small_model), "--out", str(made / "small"), "--texts", str(made / "care.md")])
    assert ended.value.code == 0
    assert re.match(r".*/small: small; cosine with the original over \d+ texts: 1\.0000 in the mean", said.getvalue())
    return made / "small"


@pytest.fixture(scope="module")
def quantised(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "small-int8"
    export_encoder(str(small_model), folder, precision="int8", texts=TEXTS)
    return folder


def onnx(folder: Path) -> Encoder:
    return build_encoder(EncoderSettings(backend="onnx", model=str(folder), device="cpu", batch_tokens=64))


def test_its_vectors_are_those_of_torch(small_model: Path, exported: Path) -> None:
    ours, theirs = onnx(exported), build_encoder(EncoderSettings(model=str(small_model), device="cpu"))
    assert (ours.identity, ours.max_tokens) == (theirs.identity, theirs.max_tokens)
    contexts = ["Pump 7", "", "Pump 7", "", "", ""]
    for made, expected in (
        (ours.encode(TEXTS), theirs.encode(TEXTS)),
        (ours.encode(TEXTS, contexts=contexts), theirs.encode(TEXTS, contexts=contexts)),
        (ours.encode_queries(TEXTS), theirs.encode_queries(TEXTS)),
    ):
        assert made == pytest.approx(expected, abs=1e-4)
        assert np.einsum("ij,ij->i", made, expected) == pytest.approx(np.ones(len(TEXTS)), abs=1e-4)


def test_a_text_too_long_is_refused(exported: Path) -> None:
    with pytest.raises(Misconfigured, match="does not fit the encoder, which reads 128"):
        onnx(exported).encode(["oil " * 200])


def test_it_runs_without_torch(exported: Path) -> None:
    code = (
        "import sys\n"
        "from headrace.encoders import build_encoder\n"
        "from headrace.encoders.settings import EncoderSettings\n"
        f"build_encoder(EncoderSettings(backend='onnx', model={str(exported)!r}, device='cpu')).encode(['oil'])\n"
        "print(*{'torch', 'transformers', 'sentence_transformers', 'onnx'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_int8_vectors_are_near_those_of_torch_and_go_by_another_name(small_model: Path, quantised: Path) -> None:
    made = onnx(quantised).encode(TEXTS)
    expected = build_encoder(EncoderSettings(model=str(small_model), device="cpu")).encode(TEXTS)
    assert np.einsum("ij,ij->i", made, expected).min() > 0.97
    identity = encoder_identity(EncoderSettings(backend="onnx", model=str(quantised)))
    assert identity.recipe == "small@int8+title"


def test_an_export_that_differs_too_much_leaves_nothing_behind(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exporting.LEAST, "int8", (1.01, 1.01))
    with pytest.raises(
        Misconfigured, match=r"too far from the original: over 6 texts the cosine is \d\.\d+ in the mean"
    ):
        export_encoder(str(small_model), tmp_path / "bad", precision="int8", texts=TEXTS)
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_overwrites(small_model: Path, exported: Path) -> None:
    with pytest.raises(Misconfigured, match="is there already; name another folder with --out"):
        export_encoder(str(small_model), exported, precision="float32", texts=TEXTS)


def test_a_folder_that_was_not_exported_is_refused_with_the_command_that_exports_it(small_model: Path) -> None:
    with pytest.raises(Misconfigured, match=r"has no model.onnx and no headrace.json; `headrace encoder export"):
        onnx(small_model)


def test_a_device_that_is_not_here_is_refused(exported: Path) -> None:
    with pytest.raises(Misconfigured, match=r"encoder.device: cuda:63 is not here"):
        build_encoder(EncoderSettings(backend="onnx", model=str(exported), device="cuda:63"))
