import pytest
import torch
from torch import nn

from net.plan import plan
from net.roles import NEXT_BLOCK, SCORES, felt
from net.rounding import spreads_of, steps
from net.treatments import SharingConfig, felt_in

PARTS = ("attention.self.query", "attention.self.key", "attention.self.value", "output.dense")
NORM = "encoder.layer.{}.output.LayerNorm"
WORDS = "embeddings.word_embeddings"
EMBEDDED = "embeddings.LayerNorm"  # normalised


def names(blocks=3, parts=PARTS, norms=(EMBEDDED,), within=NORM, blocks_in="encoder.layer"):
    """({name: kind} of the weights, all names) of a transformer."""
    layers = [f"{blocks_in}.{i}.{part}" for i in range(blocks) for part in parts]
    kinds = {f"{WORDS}.weight": "embedding", **{f"{each}.weight": "linear" for each in layers}}
    normal = [*norms, *(within.format(i) for i in range(blocks))]
    return kinds, [*kinds, *(f"{each}.{end}" for each in normal for end in ("weight", "bias"))]


def relative(*args, **options):
    kinds, everything = names(*args, **options)
    return felt(everything, kinds)


def test_queries_and_keys_are_felt_less_and_later_blocks_more():
    found = relative()
    assert found[f"{WORDS}.weight"] == 1
    for i in range(3):
        block = NEXT_BLOCK ** (-2 * i)
        for part, own in zip(PARTS, (SCORES**-2, SCORES**-2, 1, 1), strict=True):
            assert found[f"encoder.layer.{i}.{part}.weight"] == pytest.approx(own * block)


@pytest.mark.parametrize(
    "options",
    [
        {"norms": ()},
        {"norms": ("encoder.norm",)},
        {"norms": (EMBEDDED, "encoder.final_layer_norm")},
        {"norms": (EMBEDDED, "ln_f")},
        {"within": "elsewhere.norm.{}"},
    ],
)
def test_blocks_are_alike_where_their_sums_may_not_be_normalised(options):
    found = relative(**options)
    assert set(found.values()) == {1.0, SCORES**-2}
    assert sum(each < 1 for each in found.values()) == 6


def test_a_head_with_a_normalisation_is_no_end_of_the_blocks():
    assert relative(norms=(EMBEDDED, "cls.predictions.transform.LayerNorm")) == relative()


@pytest.mark.parametrize(
    "parts",
    [
        ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        ("attention.wq", "attention.wk", "attention.wv"),
        ("SelfAttention.q", "SelfAttention.k", "SelfAttention.v"),
        ("Query", "Key", "Value"),
    ],
)
def test_names_of_attention(parts):
    found = relative(parts=(*parts, "mlp.fc1"), norms=(), blocks_in="model.layers")
    each = [SCORES**-2, SCORES**-2, 1.0, 1.0]
    assert [x for name, x in found.items() if "layers" in name] == pytest.approx(3 * each)


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": 1},  # no list
        {"parts": ("attn.c_attn", "attn.c_proj")},  # all in one
        {"parts": ("q", "v")},
        {"parts": ("query_norm", "key_norm", "value_norm")},
        {"parts": ("conv1", "conv2")},
    ],
)
def test_nothing_is_said_of_other_models(options):
    assert relative(**options) == {}


def test_the_list_of_blocks_is_the_outermost_of_several():
    parts = [part.replace("attention.self", "layer.0.attention") for part in PARTS]
    found = relative(
        parts=parts, blocks_in="0.auto_model.encoder.layer", within=f"0.auto_model.{NORM}"
    )
    late = found[f"0.auto_model.encoder.layer.2.{parts[2]}.weight"]
    assert late == pytest.approx(NEXT_BLOCK**-4)


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {"word_embeddings": nn.Embedding(50, 8), "norm": nn.LayerNorm(8)}
        )
        self.layer = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(8, 8) for name in ("query", "key", "value")}
                | {"norm": nn.LayerNorm(8), "inner": nn.Linear(8, 32)}
            )
            for _ in range(3)
        )
        self.other = nn.Linear(8, 40)


def test_steps_by_role_are_as_fine_as_before_on_average():
    torch.manual_seed(0)
    model = Bert()
    state = model.state_dict()
    treatments = plan(state, SharingConfig("auto"))
    told = felt_in(treatments)
    assert told == felt_in(plan(model, SharingConfig("auto")))
    assert "other.weight" not in told
    spreads = spreads_of(state, [*told, "other.weight"])
    plain, found = steps(spreads, 0.05), steps(spreads, 0.05, felt=told)
    assert found["other.weight"] == plain["other.weight"]
    moved = [found[name] / plain[name] for name in told]
    sizes = [spreads[name].parameters for name in told]
    power = torch.tensor(moved).log() @ torch.tensor(sizes, dtype=torch.float)
    assert float(power) == pytest.approx(0, abs=1e-2)

    def deviations(name):
        return found[name] / spreads[name].deviation

    value = deviations("layer.1.value.weight")
    assert deviations("layer.1.query.weight") == pytest.approx(SCORES * value)
    assert deviations("layer.2.value.weight") == pytest.approx(NEXT_BLOCK * value)
    assert deviations("layer.1.inner.weight") == pytest.approx(2 * value)  # the root of the size


def test_what_is_measured_goes_before_what_names_tell():
    kinds, everything = names()
    spreads = {name: spreads_of({name: torch.eye(4)}, [name])[name] for name in kinds}
    told, known = felt(everything, kinds), dict.fromkeys(kinds, 1.0)
    assert steps(spreads, 0.05, known, told) == steps(spreads, 0.05, known)


def test_numbers_of_thousands_of_digits_are_no_places():
    names = [
        f"layer.{number}.attention.self.{what}.weight"
        for number in ("1" * 5000, "0", "1")
        for what in ("query", "key", "value")
    ]
    told = felt_in(plan({name: torch.randn(9, 9) for name in names}, SharingConfig("auto")))
    assert told.keys() == {name for name in names if len(name) < 100}
