import pytest
import torch
from torch import nn

import net
from net.plan import plan
from net.treatments import TREATMENTS, Asked, SharingConfig

TEXTS = {
    "exact": "exact: a buffer",
    "rate": "shared by rate",
    "cluster": "shared, 8 values at most",
    "round": "rounded",
}


def test_every_treatment_says_what_it_is():
    texts = {each.how: str(each(bits=3, reason="a buffer")) for each in TREATMENTS}
    assert len(texts) == len(set(texts.values())) == len(TREATMENTS)
    assert texts.items() >= TEXTS.items()
    assert str(TREATMENTS[-1](tied="a")).endswith(" (tied to a)")


@pytest.mark.parametrize("role", ["weight", "bias", "norm"])
@pytest.mark.parametrize("bits", [0, 3, "auto"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_there_is_one_for_every_tensor(role, bits, exact, trained):
    if (role == "weight") != (bits != 0) or (role == "bias" and bits == "auto"):
        return
    config = SharingConfig(exact_vectors=exact)
    for tensor in (torch.randn(40, 9), torch.ones(40, 9)):
        asked = Asked(role, config, lambda tensor=tensor: tensor, "linear", bits, 0, trained)
        assert any(each.given(asked) for each in TREATMENTS)


def test_the_words_of_bits_by_pattern():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 20), nn.Linear(20, 9))
    config = SharingConfig({"*": "auto", "1": 3, "2": 1})
    found = plan(model, config)
    assert [found[f"{i}.weight"].how for i in range(3)] == ["rate", "cluster", "cluster"]
    assert [found[f"{i}.bias"].how for i in range(3)] == ["round", "exact", "exact"]
    state = dict(net.SharedState(model.state_dict(), config))
    net.WeightSharing(model, config, final=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [len(state[f"{i}.weight"].unique()) for i in (1, 2)] == [8, 2]
    for word in ("5", "Auto", ""):
        with pytest.raises(ValueError, match="bits must be a number"):
            SharingConfig({"*": word})


def test_earlier_names_of_modules():
    assert net.bare.SharedState is net.SharedState
    assert net.post_training.share_tensor is net.rounding.share_tensor
