import pytest
import torch
from torch import nn

from net.errors import UserError
from net.parameters import bias_of, compressible, matches, resolve

KINDS = {"features.0.weight": "conv", "features.3.weight": "conv", "classifier.weight": "linear"}


class Everything(nn.Module):
    """A layer of every kind, and what is not compressed."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.places = nn.Parameter(torch.randn(5, 4))
        self.lstm = nn.LSTM(4, 3, num_layers=2, bidirectional=True, proj_size=2)
        self.cell = nn.GRUCell(4, 3)
        self.attention = nn.MultiheadAttention(4, 2)
        self.other_attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
        self.conv = nn.ConvTranspose1d(4, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.bilinear = nn.Bilinear(2, 3, 4)
        self.lengths = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight


def test_every_kind_of_parameter():
    kinds = compressible(Everything())
    assert next(iter(kinds.items())) == ("embed.weight", "embedding")
    assert "head.weight" not in kinds  # tied
    assert kinds["cell.weight_hh"] == kinds["lstm.weight_hr_l1_reverse"] == "rnn"
    assert sum(kind == "rnn" for kind in kinds.values()) == 4 * 3 + 2
    attention = {name for name, kind in kinds.items() if kind == "attention"}
    assert attention == {
        "attention.in_proj_weight",
        *(f"other_attention.{x}_proj_weight" for x in "qkv"),
    }
    assert kinds["attention.out_proj.weight"] == "linear"
    assert kinds["conv.weight"] == kinds["bilinear.weight"] == "conv"
    left_out = ("places", "norm.weight", "attention.in_proj_bias", "lengths.bias")
    assert kinds.keys().isdisjoint(left_out)
    # Of a parametrized one its directions, not its lengths.
    parametrized = [name for name in kinds if "parametrizations" in name]
    assert parametrized == ["lengths.parametrizations.weight.original1"]


def test_a_state_dict_tells_the_same_as_its_module():
    model = Everything()
    del model.lengths, model.bilinear  # whose shapes alone do not tell what they are
    assert compressible(model.state_dict()) == compressible(model)


@pytest.mark.parametrize(
    "name",
    ["transformer.wte", "wpe", "bert.embeddings.word_embeddings", "model.embed_tokens", "shared"],
)
def test_embeddings_are_known_by_their_names(name):
    assert compressible({f"{name}.weight": torch.zeros(3, 2)}) == {f"{name}.weight": "embedding"}


@pytest.mark.parametrize("name", ["embeddings.projection", "lm_head", "attention.c_attn"])
def test_what_is_no_embedding(name):
    shape = (3, 2, 2) if "projection" in name else (3, 2)
    assert compressible({f"{name}.weight": torch.zeros(shape)})[f"{name}.weight"] != "embedding"


def test_old_weight_norm_keeps_its_lengths():
    state = {"fc.weight_g": torch.zeros(3, 1), "fc.weight_v": torch.zeros(3, 2)}
    assert list(compressible(state)) == ["fc.weight_v"]


def test_integers_and_complex_numbers_are_left_alone():
    state = {
        "a.weight": torch.zeros(2, 2, dtype=torch.int8),
        "b.weight": torch.zeros(2, 2).cfloat(),
    }
    assert compressible(state) == {}


@pytest.mark.parametrize(
    "last",
    ["weight_mask", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_packed"]
    + ["weight_epsilon", "weight_shape"],
)
def test_what_is_kept_beside_a_weight_is_none(last):
    assert list(compressible({"a.weight": torch.zeros(3, 2), f"a.{last}": torch.zeros(3, 2)})) == [
        "a.weight"
    ]


def test_types_without_arithmetic_and_sparse_tensors():
    state = {
        "a.weight": torch.zeros(2, 2).to(torch.float8_e5m2),
        "b.weight": torch.zeros(2, 2).to_sparse(),
        "c.weight": torch.zeros(2, 2).bfloat16(),
    }
    assert list(compressible(state)) == ["c.weight"]


def test_fused_experts_are_stacked_matrices():
    state = {f"mlp.experts.{n}_proj": torch.zeros(2, 3, 4) for n in ("gate_up", "down")}
    state["mlp.gate_up_proj"] = torch.zeros(2, 3, 4)
    assert compressible(state) == dict.fromkeys(list(state)[:2], "linear")
    assert compressible(state, include="mlp.gate_up_proj") == {"mlp.gate_up_proj": "linear"}


def test_a_stack_of_matrices_under_any_name():
    state = {
        "moe.input_linear.weight": torch.ones(2, 96, 64),
        "conv.weight": torch.ones(64, 32, 3),
        "positions.weight_v": torch.ones(192, 4, 128),
        "narrow.weight": torch.ones(2, 96, 63),
    }
    assert [*compressible(state).values()] == ["linear", "conv", "conv", "conv"]


def test_include_and_exclude():
    model = Everything()
    assert compressible(model, include="@rnn", exclude=["cell", "lstm.weight_h*"]).keys() == {
        *(f"lstm.weight_ih_l{i}{end}" for i in (0, 1) for end in ("", "_reverse")),
    }
    assert compressible(model, include=["places"]) == {"places": "linear"}
    assert compressible(model, exclude="norm").keys() == compressible(model).keys()
    assert "lengths.parametrizations.weight.original1" not in compressible(
        model, exclude="lengths.weight"
    )
    assert compressible(model, exclude="@conv").keys().isdisjoint({"conv.weight"})
    for option in ("include", "exclude"):
        with pytest.raises(UserError, match="no parameter matches 'cnn'; there are: places, embed"):
            compressible(model, **{option: "cnn"})


def test_a_lazy_layer_without_a_shape():
    with pytest.raises(UserError, match=r"1\.weight is lazy and has no shape yet"):
        compressible(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))


def test_biases():
    assert bias_of("fc1.weight") == "fc1.bias"
    assert bias_of("rnn.weight_ih_l0_reverse") == "rnn.bias_ih_l0_reverse"
    assert bias_of("attention.in_proj_weight") == "attention.in_proj_bias"
    for name in ("fc.parametrizations.weight.original1", "fc.weight_v", "fc.weight_orig"):
        assert bias_of(name) == "fc.bias"


def test_a_pattern_is_for_a_parameter_a_layer_or_a_kind():
    for pattern in ("lstm.weight_ih_l0", "lstm", "ls*", "*ih*", "@rnn"):
        assert matches("lstm.weight_ih_l0", "rnn", pattern)
    for pattern in ("lstm.weight", "@linear", "weight_ih_l0", "rnn"):
        assert not matches("lstm.weight_ih_l0", "rnn", pattern)


def test_a_number_is_for_every_parameter():
    assert resolve(1.5, KINDS) == dict.fromkeys(KINDS, 1.5)


def test_the_last_pattern_that_matches_decides():
    values = {"*": 5, "features.*": 8, "features.3": 7}
    assert list(resolve(values, KINDS).values()) == [8, 7, 5]
    assert list(resolve({"@conv": 8, "@linear": 5}, KINDS).values()) == [8, 8, 5]
    # A kind may be absent.
    assert resolve({"@conv": 8, "@linear": 5}, {"fc": "linear"}) == {"fc": 5}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"*": 1, "fc*": 2}, r"no parameter matches 'fc\*'; there are: features\.0, "),
        ({"features.*": 1}, "no pattern covers 'classifier', which is linear"),
        ({"*": 1, "@lstm": 2}, "unknown kind '@lstm'; known: @linear, @conv"),
    ],
)
def test_what_cannot_be_resolved(values, message):
    with pytest.raises(UserError, match=message):
        resolve(values, KINDS)
