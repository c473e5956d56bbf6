import threading

import numpy as np
import pytest
import torch

from headrace.encoders import Encoder, build_encoder
from headrace.encoders.reading import CONTEXT_TOKENS, Window
from headrace.encoders.settings import EncoderSettings
from headrace.encoders.transformer import Ids, TransformerEncoder
from headrace.errors import Misconfigured
from schemas import EncoderIdentity

TEXTS = ["A turbine turns.", "", "Water flows down the channel to the turbine. " * 8, "Bread is baked.", "ü 中文 😀"]


def test_it_is_an_encoder_that_names_the_model_and_not_this_machine(encoder: TransformerEncoder[torch.Tensor]) -> None:
    port: Encoder = encoder
    assert port.identity == EncoderIdentity(
        name="sentence-transformers/all-MiniLM-L6-v2", dimension=384, normalised=True, context="title"
    )
    assert port.max_tokens == 256


def test_vectors_are_float32_of_length_one(encoder: TransformerEncoder[torch.Tensor]) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 384)
    assert vectors.flags.c_contiguous
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-6)


def test_vectors_are_those_of_sentence_transformers_in_the_order_of_the_texts(
    encoder: TransformerEncoder[torch.Tensor],
) -> None:
    expected = encoder._network.model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    assert encoder.encode(TEXTS) == pytest.approx(expected, abs=1e-5)


def test_nothing_to_encode_is_an_empty_matrix(encoder: TransformerEncoder[torch.Tensor]) -> None:
    assert encoder.encode([]).shape == encoder.encode_queries([]).shape == (0, 384)


def test_a_passage_is_never_cut_unnoticed(encoder: TransformerEncoder[torch.Tensor]) -> None:
    fits, too_long = "water " * 254, "water " * 255
    assert encoder.encode([fits]).shape == (1, 384)
    with pytest.raises(Misconfigured, match="257 tokens does not fit the encoder, which reads 256"):
        encoder.encode([fits, too_long])


def test_a_context_is_read_before_the_text(encoder: TransformerEncoder[torch.Tensor]) -> None:
    apart = encoder.encode(["Oil it daily.", "Bread is baked."], contexts=["Pump 7", ""])
    assert apart == pytest.approx(encoder.encode(["Pump 7 Oil it daily.", "Bread is baked."]), abs=1e-5)


def test_a_text_that_fills_the_window_keeps_its_end_beside_a_context(encoder: TransformerEncoder[torch.Tensor]) -> None:
    first, last = "water " * 254, "water " * 253 + "bread"
    alike, other = encoder.encode([first, last], contexts=["Pump 7", "Pump 7"])
    plain, _ = encoder.encode([first, last])
    assert float(alike @ plain) < 0.9999
    assert float(alike @ other) < 0.9999


def test_only_so_much_of_a_long_context_is_read(encoder: TransformerEncoder[torch.Tensor]) -> None:
    read, unread = "pump " * CONTEXT_TOKENS, "bread " * 1000
    [whole, cut] = encoder.encode(["Oil it."] * 2, contexts=[read, read + unread])
    assert cut == pytest.approx(whole, abs=1e-5)


def test_a_context_gives_way_where_the_network_has_no_room(
    encoder: TransformerEncoder[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "water " * 250
    monkeypatch.setattr(encoder._reader, "_window", Window(tokens=256, positions=256, max_tokens=256))
    [squeezed] = encoder.encode([text], contexts=["pump " * 20])
    [expected] = encoder.encode([text], contexts=["pump pump pump"])
    assert squeezed == pytest.approx(expected, abs=1e-5)
    full = "water " * 254
    assert encoder.encode([full], contexts=["pump"]) == pytest.approx(encoder.encode([full]), abs=1e-5)


def test_a_text_too_long_is_refused_with_a_context_too(encoder: TransformerEncoder[torch.Tensor]) -> None:
    with pytest.raises(Misconfigured, match="257 tokens does not fit"):
        encoder.encode(["water " * 255], contexts=["pump"])


def test_a_question_that_is_too_long_is_cut_at_its_end(encoder: TransformerEncoder[torch.Tensor]) -> None:
    read, unread = "water " * 254, "bread " * 1000
    [whole, cut] = encoder.encode_queries([read, read + unread])
    assert cut == pytest.approx(whole, abs=1e-5)
    assert encoder.encode([read + unread], truncate=True)[0] == pytest.approx(whole, abs=1e-5)


def test_what_means_the_same_is_nearer_than_what_does_not(encoder: TransformerEncoder[torch.Tensor]) -> None:
    [question] = encoder.encode_queries(["What makes the turbine spin?"])
    turbine, bread = encoder.encode(["Flowing water drives the turbine.", "Bread is baked in an oven."]) @ question
    assert turbine > bread + 0.3


def test_threads_may_share_it(encoder: TransformerEncoder[torch.Tensor]) -> None:
    expected = encoder.encode(TEXTS)
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(np.allclose(encoder.encode(TEXTS), expected, atol=1e-6)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4


def test_a_vector_that_is_no_number_is_a_bug_and_never_leaves(
    encoder: TransformerEncoder[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder._network, "forward", lambda ids, _: torch.full((len(ids), 384), float("nan")))
    with pytest.raises(RuntimeError, match=r"no usable vector .* for 2 of 2 texts from .*MiniLM.* on cpu in float32"):
        encoder.encode(["a", "b"])


def test_a_batch_too_large_for_the_device_names_the_setting(
    encoder: TransformerEncoder[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoder._network, "model", full)
    with pytest.raises(Misconfigured, match=r"encoder.batch_tokens: 32 tokens at once do not fit"):
        encoder.encode(["a"])


def test_an_urgent_call_waits_for_one_batch_at_most(
    encoder: TransformerEncoder[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = encoder._network.forward
    begun, go_on = threading.Event(), threading.Event()
    rows: list[int] = []

    def slowly(ids: Ids, mask: Ids) -> torch.Tensor:
        rows.append(len(ids))
        begun.set()
        assert go_on.wait(10)
        return forward(ids, mask)

    monkeypatch.setattr(encoder._network, "forward", slowly)
    bulk = threading.Thread(target=encoder.encode, args=(["water " * 30] * 3,))
    urgent = threading.Thread(target=encoder.encode, args=(["oil", "oil"],), kwargs={"urgent": True})
    bulk.start()
    assert begun.wait(10)
    urgent.start()
    while len(encoder._turns._waiting) < 1:
        urgent.join(0.001)
    go_on.set()
    for thread in (bulk, urgent):
        thread.join(10)
    assert rows == [1, 2, 1, 1]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_on_a_cpu_is_refused(precision: str) -> None:
    with pytest.raises(Misconfigured, match=f"encoder.precision: {precision} needs a CUDA device"):
        build_encoder(EncoderSettings(device="cpu", precision=precision))  # type: ignore[arg-type]


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(Misconfigured, match=r"encoder.device: cuda:63 is not here"):
        build_encoder(EncoderSettings(device="cuda:63"))
