import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

import net
from net.codec.tensors import write_tensor
from net.errors import UserError
from net.plan import plan
from net.report.tables import sharing_notes
from net.shards import Shards
from net.sharing import SharedState, WeightSharing
from net.treatments import SharingConfig

AUTO = SharingConfig("auto")
W = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


def how(source, config=AUTO):
    return {name: each.how for name, each in plan(source, config).items()}


def reason(state, name="x.weight", config=AUTO):
    treatment = plan(state, config)[name]
    assert treatment.how == "exact"
    return treatment.reason


class Rotary(nn.Module):
    """Attention with what such modules keep beside their weights."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        self.batch = nn.BatchNorm1d(32)
        self.gamma = nn.Parameter(torch.full((32,), 0.123))
        self.slope = nn.PReLU(32)
        self.register_buffer("inv_freq", 1 / 10000 ** (torch.arange(0, 32, 2) / 32))
        self.register_buffer("class_weight", torch.rand(8, 8))
        self.register_buffer("bias", torch.rand(32))


def test_a_module_is_asked_what_each_tensor_is():
    model = Rotary()
    found = plan(model, AUTO)
    assert found.keys() == model.state_dict().keys()
    assert {name for name, each in found.items() if each.how == "rate"} == {"q.weight"}
    normalised = {f"batch.{n}" for n in ("weight", "bias", "running_mean", "running_var")}
    normalised |= {"norm.weight", "norm.bias", "q.bias"}
    assert {name for name, each in found.items() if each.how == "round"} == normalised
    assert found["inv_freq"].reason == found["class_weight"].reason == "a buffer"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for bits in (4, "auto"):
        WeightSharing(model, bits)
        for name, tensor in model.state_dict().items():
            if found[name].how == "exact":
                assert torch.equal(tensor, before[name]), name


def test_a_normalisation_of_the_users_own_is_known_by_its_class():
    class MyRMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(8))

    class Normalize(MyRMSNorm):
        pass

    model = nn.Sequential(nn.Linear(8, 8), MyRMSNorm(), Normalize())
    assert how(model)["1.weight"] == "round"
    assert how(model)["2.weight"] == "exact"


def test_a_state_dict_is_treated_as_its_module():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 6, 3, groups=2),
        nn.GroupNorm(2, 6),
        nn.LSTM(6, 5),
        nn.MultiheadAttention(6, 2),
        nn.BatchNorm1d(7, affine=False),
        nn.PReLU(6),
    )
    assert how(model.state_dict()) == how(model)
    assert how(model)["4.bias_hh_l0"] == how(model)["5.in_proj_bias"] == "round"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("cent_table", torch.linspace(1997.38, 7180.0, 360)),
        ("alphas_cumprod", (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)),
        ("rotary.inv_freq", torch.rand(32)),
        ("energy.self_energies", -100 * torch.rand(9).double()),
        ("obs.running_mean", torch.randn(9)),
        ("criterion.weight", torch.rand(10)),
        ("act.weight", torch.rand(64)),
        ("scale_shift.weight", torch.rand(9)),
        ("layer.gamma", torch.rand(64)),
        ("relative_position_bias_table", torch.randn(49, 4)),
        ("norm.bias", torch.randn(64)),
        ("normalizer.weight", torch.rand(9)),
        ("denorm.weight", torch.rand(9)),
        ("x.weight_scores", torch.randn(64, 32)),
        ("optimizer.exp_avg_sq.w.weight", torch.rand(64, 32)),
    ],
)
def test_what_nothing_beside_it_explains_is_exact(name, tensor):
    layer = name.rpartition(".")[0]
    state = {"w.weight": W, name: tensor}
    if layer == "obs":
        state |= {"obs.running_var": torch.rand(9), "obs.count": torch.tensor(9)}
    if layer in ("scale_shift", "normalizer", "denorm"):
        state[f"{layer}.bias"] = torch.rand(9)
    for bits in (4, "auto"):
        assert torch.equal(SharedState(state, bits)[name], tensor)


@pytest.mark.parametrize(
    "layer", ["model.norm", "input_layernorm", "ln_f", "attn.q_norm", "bn1", "norms.0"]
)
def test_a_lone_weight_of_a_normalisation_is_known_by_its_name(layer):
    assert how({"w.weight": W, f"{layer}.weight": torch.rand(9)})[f"{layer}.weight"] == "round"
    older = {"w.weight": W, f"{layer}.gamma": torch.rand(9), f"{layer}.beta": torch.rand(9)}
    assert set(list(how(older).values())[1:]) == {"round"}


def test_running_statistics_tell_more_than_a_name():
    layer = nn.BatchNorm1d(9).state_dict()
    state = {"w.weight": W, **{f"scale_shift.{name}": each for name, each in layer.items()}}
    assert list(how(state).values()) == ["rate", *["round"] * 4, "exact"]


def test_the_filters_of_a_colour_shift_stay_with_their_bias():
    state = {"w.weight": W, "x.weight": torch.eye(3).view(3, 3, 1, 1), "x.bias": torch.randn(3)}
    assert list(how(state).values()) == ["rate", "exact", "exact"]
    state["x.weight"] = state["x.weight"] / torch.rand(3, 1, 1, 1)
    assert list(how(state).values()) == ["rate", "exact", "exact"]


def test_a_module_without_values():
    with pytest.raises(UserError, match="'weight': on the meta device, without values"):
        plan(nn.Linear(32, 64, device="meta"), AUTO)


def test_a_bias_has_the_length_of_its_weight_and_follows_it():
    state = {"x.weight": W, "x.bias": torch.randn(64), "y.weight": W + 1, "y.bias": torch.randn(7)}
    assert list(how(state).values()) == ["rate", "round", "rate", "exact"]
    assert list(how(state, SharingConfig(4)).values()) == ["cluster", "exact"] * 2
    assert how(state, SharingConfig("auto", exclude="x"))["x.bias"] == "exact"
    assert how(state, SharingConfig("auto", exclude="x.bias"))["x.bias"] == "exact"
    assert how(state, SharingConfig(4, bias_bits=2))["x.bias"] == "cluster"
    assert how({"x.bias": torch.randn(64)})["x.bias"] == "exact"


@pytest.mark.parametrize(
    "beside",
    [
        {"x.weight_scale": torch.rand(64, 1)},
        {"x.weight_scale_inv": torch.rand(4, 2)},
        {"x.weight_zero_point": torch.zeros(64, 1)},
        {"x.zero_point": torch.tensor(3)},
        {"x.weight.absmax": torch.rand(32), "x.weight.quant_map": torch.rand(16)},
        {"x.weight_quantizer._amax": torch.tensor(1.0)},
        {"x.qweight": torch.zeros(9, 9, dtype=torch.int32), "x.scales": torch.rand(4, 64)},
        {"x.input_scale": torch.tensor(0.1)},
    ],
)
def test_quantized_layers_are_named_and_kept(beside):
    state = {"x.weight": W, "x.bias": torch.randn(64), **beside, "head.weight": W + 1}
    assert reason(state) == "quantized already"
    found = SharedState(state)
    for name in state:
        assert torch.equal(found[name], state[name]) == (name != "head.weight")


def test_masks_and_what_they_mask():
    layer = nn.Linear(40, 30)
    prune.l1_unstructured(layer, "weight", 0.7)
    state = layer.state_dict()
    assert how(state) == {"bias": "round", "weight_orig": "rate", "weight_mask": "exact"}
    assert how(layer) == how(state)


def test_types_without_arithmetic_are_kept():
    state = {"x.weight": W.to(torch.float8_e4m3fn), "y.weight": W, "z.weight": W.to(torch.int8)}
    assert list(how(state).values()) == ["exact", "rate", "exact"]
    assert reason(state) == "of a type or layout without arithmetic"


def test_few_values_stay_as_they_are():
    few = W.sign() * 0.123456
    for bits in (3, "auto"):
        state = SharedState({"x.weight": few, "y.weight": W}, bits)
        assert torch.equal(state["x.weight"], few)
        assert state.plan["x.weight"].reason == "2 values only"
    many = torch.randint(1, 17, (64, 32)) / 7
    assert how({"x.weight": many}, SharingConfig(2))["x.weight"] == "cluster"
    assert how({"x.weight": many}, SharingConfig(4))["x.weight"] == "exact"
    # What is trained stays among the few values, which centroids do.
    layer = nn.Linear(32, 64)
    layer.weight.data = few
    assert (plan(layer, AUTO)["weight"].how, plan(layer, AUTO)["weight"].bits) == ("cluster", 1)


@pytest.mark.parametrize("bits", [4, "auto"])
def test_zeros_of_few_values_lose_their_sign(bits):
    weight = W.clamp(-2, 2).round() * 0.3  # as fake quantization has it
    zeros = weight == 0
    assert 0.1 < weight[zeros].signbit().float().mean() < 0.9
    state = SharedState({"x.weight": weight, "y.weight": W}, bits)
    assert str(state.plan["x.weight"]) == "negative zeros become zeros: 4 values only"
    found = state["x.weight"]
    assert torch.equal(found, weight)
    assert not found[zeros].signbit().any()
    assert write_tensor(found).length < 0.9 * write_tensor(weight).length
    assert how({"x.weight": found})["x.weight"] == "exact"
    assert how({"x": weight})["x"] == "exact"
    notes = sharing_notes(state.plan, {}, {}, {"x.weight": found, "y.weight": W})
    assert notes == ["negative zeros became zeros: x.weight; otherwise as they are"]


def test_constants_that_are_stored_as_weights():
    n = torch.arange(64) * torch.arange(33)[:, None]
    window = torch.hann_window(64)
    bank = {
        "x.weight": ((2 * torch.pi * n / 64).cos() * window)[:, None],
        "y.weight": ((2 * torch.pi * n / 64).sin() * window)[:, None],
    }
    assert reason(bank) == reason(bank, "y.weight") == "by its values a table of constants"
    by_name = {"stft.conv_real.weight": torch.randn(9, 1, 16), "mel_basis.weight": W}
    for name in by_name:
        assert reason(by_name, name) == "by its name a table of constants"
    learned = nn.ModuleDict({"stft": nn.Conv1d(1, 9, 16)})
    assert how(learned)["stft.weight"] == "rate"
    assert how(learned.requires_grad_(False))["stft.weight"] == "exact"


@pytest.mark.parametrize("shape", [(1, 94), (94, 1), (94, 1, 1)])
def test_a_row_of_numbers_without_a_bias(shape):
    """As the energies of the elements are stored."""
    state = {"x.weight": torch.randn(shape), "y.weight": W}
    assert "a number for each" in reason(state)
    assert how({**state, "x.bias": torch.randn(shape[0])})["x.weight"] == "rate"


def test_parametrized_weights_are_shared_but_for_their_lengths():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(32, 64)),
        parametrizations.spectral_norm(nn.Linear(64, 32)),
        parametrizations.orthogonal(nn.Linear(32, 32)),
    )
    part = "parametrizations.weight"
    with torch.no_grad():
        model[2].parametrizations.weight.original.normal_()  # not as it begins
    expected = {f"0.{part}.original1", f"1.{part}.original", f"2.{part}.original"}
    for source in (model, model.state_dict()):
        found = how(source)
        assert {name for name, each in found.items() if each == "rate"} == expected
        rounded = {name for name, each in found.items() if each == "round"}
        assert rounded == {"0.bias", "1.bias", "2.bias"}
    WeightSharing(model, bits=2)
    assert len(model[1].parametrizations.weight.original.unique()) <= 4
    assert plan(model, SharingConfig(exclude="1"))[f"1.{part}.original"].how == "exact"


def test_fused_experts():
    torch.manual_seed(0)
    state = {"mlp.experts.gate_up_proj": torch.randn(4, 16, 24), "pos_embed": torch.randn(1, 9, 64)}
    assert list(how(state).values()) == ["rate", "exact"]
    shared = SharedState(state, include=["*experts*", "pos_embed"])
    for name, tensor in state.items():
        assert shared[name].shape == tensor.shape
        assert len(shared[name].unique()) < 80
        assert (shared[name] - tensor).norm() < 0.3 * tensor.norm()


def test_include_takes_what_the_rule_leaves_and_no_other():
    state = {"x.weight_scale": W, "y.weight": W + 1, "norm.weight": torch.rand(9)}
    found = how(state, SharingConfig("auto", include="x.weight_scale"))
    assert list(found.values()) == ["rate", "exact", "exact"]
    found = how(state, SharingConfig("auto", include=["y", "norm"]))
    assert list(found.values()) == ["exact", "rate", "round"]
    for config in (SharingConfig(include="cnn"), SharingConfig(exclude="cnn")):
        with pytest.raises(UserError, match=r"no parameter matches 'cnn'; there are: x\.weight_sc"):
            plan(state, config)
    with pytest.raises(UserError, match="no parameter matches 'freq'"):
        plan({**state, "freq": torch.rand(9)}, SharingConfig(include="freq"))


def test_tied_tensors_have_one_treatment(tmp_path):
    state = {"embed.weight": W, "head.weight": W, "head.bias": torch.randn(64)}
    found = plan(state, AUTO)
    assert (found["head.weight"].how, found["head.weight"].tied) == ("rate", "embed.weight")
    assert found["head.bias"].how == "round"  # of the tied weight
    assert str(found["head.weight"]) == "shared by rate (tied to embed.weight)"
    save_file({"a.weight": W, "a.bias": torch.randn(64)}, tmp_path / "m.safetensors")
    assert list(how(Shards(tmp_path / "m.safetensors")).values()) == ["round", "rate"]


def test_a_tied_bias_is_treated_under_its_first_name():
    """As the decoder's of BERT, which the head has, too."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.randn(64))
            self.decoder = nn.Linear(32, 64)
            self.decoder.bias = self.bias

    found = plan(Head(), AUTO)
    assert found["bias"].how == found["decoder.bias"].how == "round"
    assert found["decoder.bias"].tied == "bias"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 99}, "bits must be a whole number from 1 to 16, not 99"),
        ({"bits": {"*": 0}}, "bits must be a whole number from 1 to 16, not 0"),
        ({"bits": "5"}, "bits must be a number, .* or 'auto', not '5'"),
        ({"bias_bits": -1}, "bias_bits must be a whole number from 0 to 16, not -1"),
        ({"parts": 0}, "parts must be a whole number of at least 1, not 0"),
        ({"reassign": -1}, "reassign must be a whole number of at least 0"),
        ({"seed": 1.5}, "seed must be a whole number of at least 0"),
        ({"init": "foo"}, "init must be one of linear, density, random, not 'foo'"),
        ({"noise": "auto"}, "noise must be a positive number, not 'auto'"),
        ({"noise": 0.0}, "noise must be a positive number"),
        ({"include": [3]}, "give a pattern or a list"),
    ],
)
def test_options_out_of_range(options, message):
    for make in (
        lambda: SharingConfig(**options),
        lambda: SharedState({"x.weight": W}, **options),
        lambda: net.WeightSharing(nn.Linear(9, 9), **options),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_one_config_for_both():
    config = SharingConfig(2, exclude="1")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    shared = SharedState(model.state_dict(), config)
    expected = {name: tensor.clone() for name, tensor in shared.items()}
    WeightSharing(model, config)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="either a SharingConfig or its fields"):
        WeightSharing(model, config, seed=1)


def test_scales_beside_a_weight_without_an_arithmetic():
    state = {
        "l.weight": torch.randint(-127, 127, (256, 64), dtype=torch.int8),
        "l.weights_scaling_factor": torch.rand(256, 8) * 1e-3 + 5e-4,
        "k.weight": torch.randint(-9, 9, (32, 32), dtype=torch.int32),
        "k.scale_weight": torch.rand(32, 8),
        "k.weight_lut": torch.rand(32, 8),
        "f.qdata": torch.randint(-9, 9, (32, 32), dtype=torch.int32),
        "f.weight_amax": torch.rand(32, 8),
        "g.weight": torch.randn(32, 32),
    }
    shared = SharedState(state, bits="auto")
    assert all(torch.equal(shared[name], state[name]) for name in state if name != "g.weight")
    assert not torch.equal(shared["g.weight"], state["g.weight"])


def test_experts_of_two_dimensions():
    state = {"ffn.experts.mlp.w1": torch.randn(64, 8), "ffn.mlp.w1": torch.randn(64, 8)}
    found = plan(state, SharingConfig("auto"))
    assert {name: each.how == "exact" for name, each in found.items()} == {
        "ffn.experts.mlp.w1": False,
        "ffn.mlp.w1": True,
    }
