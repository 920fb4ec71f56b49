import pytest
import torch

import huffman_encode
from net import checkpoint, encoding


def test_the_same_bytes_as_the_pipeline(pipeline, tmp_path, capsys):
    arguments = [str(pipeline.saves / checkpoint.SHARED), "--directory", str(tmp_path / "e")]
    assert huffman_encode.main(arguments) == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "e").iterdir()}
    assert files == {path.name: path.read_bytes() for path in pipeline.encodings.iterdir()}
    printed = capsys.readouterr().out
    total = sum(map(len, files.values()))
    assert f"{total:,}" in printed.splitlines()[-1]  # the total line counts every byte on disk
    for column in ("dense B", "encoded B", "ratio", "percent", "bits/weight", "bits/index"):
        assert column in printed


def test_a_bare_state_dict(tmp_path, capsys):
    torch.manual_seed(0)
    state = {"layer/one.weight": torch.randn(40, 30), "steps": torch.tensor(7)}
    torch.save(state, tmp_path / "m.pt")
    assert huffman_encode.main([str(tmp_path / "m.pt"), "--directory", str(tmp_path / "e")]) == 0
    assert "neither pruned nor shared: layer/one.weight (98.82 %)" in capsys.readouterr().out
    decoded, meta = encoding.load(tmp_path / "e")
    assert meta == {}
    assert torch.equal(decoded["layer/one.weight"], state["layer/one.weight"])
    assert decoded["steps"] == 7


def test_no_note_for_shared_weights(pipeline, tmp_path, capsys):
    huffman_encode.main(
        [str(pipeline.saves / checkpoint.SHARED), "--directory", str(tmp_path / "e")]
    )
    assert "note:" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_no_model_touches_nothing(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "m.pt").write_bytes(content)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "mine").write_text("precious")
    assert huffman_encode.main([str(tmp_path / "m.pt"), "--directory", str(tmp_path / "e")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [p.name for p in (tmp_path / "e").iterdir()] == ["mine"]


def test_an_encoding_replaces_the_one_before_and_nothing_else(pipeline, tmp_path):
    (tmp_path / "mine").write_text("precious")
    torch.save({"other": torch.arange(5)}, tmp_path / "m.pt")
    directory = ["--directory", str(tmp_path)]
    assert huffman_encode.main([str(tmp_path / "m.pt"), *directory]) == 0
    assert huffman_encode.main([str(pipeline.saves / checkpoint.SHARED), *directory]) == 0
    state, _ = encoding.load(tmp_path)
    assert list(state) == list(checkpoint.load(pipeline.saves / checkpoint.SHARED).state_dict)
    assert (tmp_path / "mine").read_text() == "precious"
    files = len(list(pipeline.encodings.iterdir()))
    assert len(list(tmp_path.iterdir())) == files + 2
