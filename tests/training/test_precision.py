import pytest
import torch
from torch import nn
from torch.nn import functional as F

from net.training import precision
from net.training.distillation import DistilledAfresh, distillation_loss
from net.training.loop import Schedule, adam, fit
from net.training.splits import Split

CPU = torch.device("cpu")


def product(amp):
    a = torch.ones(2, 2)
    with precision.autocast(CPU, amp):
        return (a @ a).dtype


@pytest.mark.parametrize("able", [{}, {"avx512_bf16": True}, {"amx_bf16": True}, {"avx2": True}])
def test_auto_is_on_where_the_processor_has_the_instructions(monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    has_bfloat16 = any("bf16" in name for name in able)
    assert precision.bfloat16_pays(CPU) == has_bfloat16
    assert product("auto") == (torch.bfloat16 if has_bfloat16 else torch.float32)
    assert product(True) == torch.bfloat16
    assert product(False) == torch.float32
    assert not precision.bfloat16_pays(torch.device("cuda"))


def test_a_torch_that_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not precision.bfloat16_pays(CPU)


def test_losses_and_what_a_teacher_says_are_in_full_precision():
    torch.manual_seed(0)
    split = Split(torch.randn(64, 6), torch.randint(3, (64,)))
    model = nn.Linear(6, 3)
    outputs, targets = [], []

    def loss(found, wanted):
        outputs.append(found.dtype)
        targets.append(wanted.dtype)
        return distillation_loss(found, wanted, 1.0)

    taught = DistilledAfresh(split, nn.Linear(6, 3), 0.0, amp=True)
    fit(model, adam(model.parameters(), 0.1), taught, Schedule(20, 16, amp=True), loss=loss)
    assert set(outputs) == set(targets) == {torch.float32}
    inputs, said = next(taught.batches(64))
    assert F.mse_loss(model(inputs).softmax(1), said.softmax(1)) < 1e-3
    # What the teacher says was computed in bfloat16, of 8 bits.
    exact = taught.teacher(inputs)
    assert not torch.equal(said, exact)
    torch.testing.assert_close(said, exact, atol=0.05, rtol=0.05)


def test_outputs_are_never_narrowed():
    for given, wanted in (("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")):
        outputs = torch.ones(2, dtype=getattr(torch, given))
        assert precision.widened(outputs).dtype == getattr(torch, wanted)
