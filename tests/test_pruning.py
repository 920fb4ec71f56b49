import re

import pytest
import torch

import pruning
from net import checkpoint
from net.parameters import compressible
from net.pipeline import choosing, stages
from net.training import resume, weights
from net.training.architectures import build
from net.training.resume import PhaseProgress
from tests.conftest import FAST, use_few_digits
from tests.own_classes import Drops

OPTIONS = [*FAST[:-2]]  # without --finetune-epochs, which pruning.py does not have
RECORD = [*OPTIONS, "--preset", "lenet-300-100", "--prune-epochs", "2", "--teacher-copies", "2"]


def test_writes_the_models_of_the_pipeline(tmp_path, pipeline, capsys):
    assert pruning.main([*OPTIONS, "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for column in ("tensor", "shape", "non-zeros", "parameters", "density", "total"):
        assert column in printed
    for name in (checkpoint.INITIAL, checkpoint.RETRAINED):
        assert (tmp_path / name).read_bytes() == (pipeline.saves / name).read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.INITIAL, checkpoint.RETRAINED]


@pytest.mark.parametrize(("options", "rate"), [([], 0.5), (["--dropout", "0.2"], 0.2)])
def test_a_model_has_its_own_dropout_in_dense_training(few_digits, tmp_path, options, rate):
    Drops.rates.clear()
    own = ["--arch", "tests.own_classes:Drops", "--output", str(tmp_path), *options]
    assert pruning.main([*OPTIONS, *own]) == 0
    assert Drops.rates - {0.5} == {rate, 0.0} - {0.5}  # 0.5 when it is tried out, too


@pytest.mark.parametrize("batch", ["1", "239"])
def test_batch_normalisation_of_one_input_is_one_line(few_digits, tmp_path, capsys, batch):
    own = ["--arch", "tests.own_classes:Drops", "--output", str(tmp_path), "--batch-size", batch]
    code = pruning.main([*FAST[:4], "--epochs", "1", "--retrain-epochs", "0", *own])
    assert code == (1 if batch == "1" else 0)
    assert ("BatchNorm cannot train on one input" in capsys.readouterr().err) == (batch == "1")


def test_prunes_below_sensitivity_times_the_standard_deviation(pipeline):
    initial = checkpoint.load(pipeline.saves / checkpoint.INITIAL)
    retrained = checkpoint.load(pipeline.saves / checkpoint.RETRAINED)
    sensitivity = retrained.options["sensitivity"]
    for name, tensor in initial.state_dict.items():
        after = retrained.state_dict[name]
        if name.endswith("weight"):
            kept = tensor.abs() >= sensitivity * tensor.std(correction=0)
            assert torch.equal(after != 0, kept)
            assert 0 < kept.sum() < kept.numel()
            assert not torch.equal(after[kept], tensor[kept])  # retrained


class Killed(Exception):
    pass


def run_and_die(monkeypatch, arguments, die_in):
    """A run that is killed right after the progress of (phase, epoch) is on the disk."""
    save = PhaseProgress.save

    def save_and_die(self, epoch):
        save(self, epoch)
        if (self.phase, epoch) == die_in:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PhaseProgress, "save", save_and_die)
        with pytest.raises(Killed):
            pruning.main(arguments)


AUTO = [*OPTIONS, "--density", "auto", "--prune-epochs", "3", "--teacher", "dense"]


def test_the_error_budget_chooses_the_density(few_digits, tmp_path, capsys):
    kept = []
    for budget in ("0.01", "100"):
        output = tmp_path / budget
        assert pruning.main([*AUTO, "--error-budget", budget, "--output", str(output)]) == 0
        (density,) = re.findall(r"^density (\S+): what moves", capsys.readouterr().out, re.M)
        state = checkpoint.load(output / checkpoint.RETRAINED).state_dict
        weights = [state[name] for name in state if "weight" in name]
        count = sum(int(weight.count_nonzero()) for weight in weights)
        assert count <= 1.01 * float(density) * sum(weight.numel() for weight in weights)
        kept.append(count)
    assert kept[0] > 3 * kept[1]


def test_the_density_found_is_as_good_as_given(few_digits, tmp_path, capsys):
    found, given = (tmp_path / name for name in ("found", "given"))
    assert pruning.main([*AUTO, "--output", str(found)]) == 0
    (density,) = re.findall(r"^density (\S+): what moves", capsys.readouterr().out, re.M)
    assert pruning.main([*AUTO, "--density", density, "--output", str(given)]) == 0
    first, second = (checkpoint.load(each / checkpoint.RETRAINED) for each in (found, given))
    for name, tensor in first.state_dict.items():
        assert torch.equal(tensor, second.state_dict[name]), name


def test_a_resumed_run_stops_at_the_same_density(few_digits, tmp_path, monkeypatch):
    whole, killed = ([*AUTO, "--output", str(tmp_path / name)] for name in ("whole", "killed"))
    assert pruning.main(whole) == 0
    run_and_die(monkeypatch, killed, ("prune", 2))
    monkeypatch.setattr(choosing, "density", lambda *args: pytest.fail("searched again"))
    assert pruning.main([*killed, "--resume"]) == 0
    first, second = (tmp_path / name / checkpoint.RETRAINED for name in ("whole", "killed"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("die_in", [("train", 3), ("retrain", 2)])
def test_resume_after_a_kill_gives_the_same_bytes(tmp_path, pipeline, monkeypatch, die_in):
    arguments = [*OPTIONS, "--output", str(tmp_path)]
    run_and_die(monkeypatch, arguments, die_in)
    assert pruning.main([*arguments, "--resume"]) == 0
    for name in (checkpoint.INITIAL, checkpoint.RETRAINED):
        assert (tmp_path / name).read_bytes() == (pipeline.saves / name).read_bytes()


def test_resume_of_a_finished_run_does_nothing(pipeline, capsys):
    path = pipeline.saves / checkpoint.RETRAINED
    before = path.stat().st_mtime_ns
    assert pruning.main([*OPTIONS, "--output", str(pipeline.saves), "--resume"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before


def test_unknown_architecture(tmp_path, capsys):
    assert pruning.main([*OPTIONS, "--output", str(tmp_path), "--arch", "lenet-6"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: unknown architecture 'lenet-6'")
    assert list(tmp_path.iterdir()) == []


def test_unwritable_output_is_found_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "train", lambda *args: pytest.fail("trained first"))
    (tmp_path / "file").write_text("precious")
    assert pruning.main([*OPTIONS, "--output", str(tmp_path / "file")]) == 1
    assert "cannot write" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


def test_lenet_5(few_digits, tmp_path):
    code = pruning.main(
        ["--dataset", "digits", "--arch", "lenet-5", "--output", str(tmp_path), "--device", "cpu"]
        + ["--epochs", "1", "--retrain-epochs", "1", "--batch-size", "200"]
    )
    assert code == 0
    model = build("lenet-5")
    model.load_state_dict(checkpoint.load(tmp_path / checkpoint.RETRAINED).state_dict)
    for name in compressible(model):
        weight = model.get_parameter(name)
        assert 0 < weight.count_nonzero() < weight.numel()


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The folder of a short run of a record, which has all four phases."""
    folder = tmp_path_factory.mktemp("record")
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        assert pruning.main([*RECORD, "--density", "0.1", "--output", str(folder)]) == 0
    return folder


def test_gradual_pruning_to_a_density(record):
    names = sorted(path.name for path in record.iterdir())
    assert names == sorted([checkpoint.INITIAL, checkpoint.RETRAINED, checkpoint.TEACHER])
    assert checkpoint.load(record / checkpoint.TEACHER).arch == "lenet-5"
    retrained = checkpoint.load(record / checkpoint.RETRAINED)
    kept = [retrained.state_dict[name] for name in weights.kinds_of(retrained)]
    total = sum(weight.numel() for weight in kept)
    # No more than that, and a little less: what fed only dead units is dropped as well.
    assert 0.06 * total < sum(int(w.count_nonzero()) for w in kept) <= 0.1 * total + 1


def test_the_phases_are_known_in_their_order(few_digits, tmp_path, monkeypatch):
    seen, save = [], PhaseProgress.save

    def remember(self, epoch):
        seen.append(self.phase)
        save(self, epoch)

    monkeypatch.setattr(PhaseProgress, "save", remember)
    arguments = [*RECORD, "--epochs", "1", "--prune-epochs", "1", "--retrain-epochs", "1"]
    assert pruning.main([*arguments, "--output", str(tmp_path)]) == 0
    assert tuple(seen) == resume.PHASES


@pytest.mark.parametrize(
    ("die_in", "lost"),
    [
        (("train", 1), False),
        (("prune", 1), True),
        (("retrain", 1), False),
        pytest.param(("teacher", 2), False, marks=pytest.mark.exhaustive),
        pytest.param(("train", 3), False, marks=pytest.mark.exhaustive),
        pytest.param(("prune", 1), False, marks=pytest.mark.exhaustive),
    ],
)
def test_resume_in_every_phase_of_a_record(few_digits, tmp_path, record, monkeypatch, die_in, lost):
    """`lost`: the teacher, trained in an earlier phase, is gone when the run goes on."""
    arguments = [*RECORD, "--density", "0.1", "--output", str(tmp_path)]
    run_and_die(monkeypatch, arguments, die_in)
    if lost:
        (tmp_path / checkpoint.TEACHER).unlink()
    assert pruning.main([*arguments, "--resume"]) == 0
    for name in (checkpoint.INITIAL, checkpoint.RETRAINED, checkpoint.TEACHER):
        assert (tmp_path / name).read_bytes() == (record / name).read_bytes()


def test_density_per_layer(few_digits, tmp_path):
    density = "*=0.5,fc1=0.1"
    arguments = [*OPTIONS, "--density", density, "--prune-epochs", "2", "--output", str(tmp_path)]
    assert pruning.main(arguments) == 0
    state = checkpoint.load(tmp_path / checkpoint.RETRAINED).state_dict
    for name, kept in (("fc1", 0.1), ("fc2", 0.5), ("fc3", 0.5)):
        weight = state[f"{name}.weight"]
        assert 0.5 * kept < float(weight.count_nonzero()) / weight.numel() <= kept + 0.001


def test_the_dense_model_as_its_own_teacher(few_digits, tmp_path):
    arguments = [*RECORD, "--teacher", "lenet-300-100", "--output", str(tmp_path)]
    assert pruning.main(arguments) == 0
    assert not (tmp_path / checkpoint.TEACHER).exists()


@pytest.mark.parametrize("teacher", ["lenet-6", "absent.ptmodel"])
def test_a_teacher_that_is_not_there(tmp_path, capsys, teacher):
    arguments = [*RECORD, "--teacher", teacher, "--output", str(tmp_path)]
    assert pruning.main(arguments) == 1
    err = capsys.readouterr().err
    assert teacher in err
    assert err.count("\n") == 1


def test_an_unknown_layer_is_refused_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "train", lambda *args: pytest.fail("trained first"))
    for option in ("--sensitivity", "--density"):
        assert pruning.main([*OPTIONS, option, "*=1,fc9=0.5", "--output", str(tmp_path)]) == 1
        assert "no parameter matches 'fc9'" in capsys.readouterr().err
    for option in ("--include", "--exclude"):
        assert pruning.main([*OPTIONS, option, "fc1,fc9", "--output", str(tmp_path)]) == 1
        assert "no parameter matches 'fc9'" in capsys.readouterr().err


def test_layers_that_are_to_stay_whole(few_digits, tmp_path):
    arguments = [*OPTIONS, "--l1", "0", "--exclude", "fc2,*.bias", "--output", str(tmp_path)]
    assert pruning.main(arguments) == 0
    state = checkpoint.load(tmp_path / checkpoint.RETRAINED).state_dict
    whole = {name: bool((state[f"{name}.weight"] != 0).all()) for name in ("fc1", "fc2", "fc3")}
    assert whole == {"fc1": False, "fc2": True, "fc3": False}


def test_a_frozen_layer_is_not_pulled_to_zero(few_digits, tmp_path):
    arch = ["--arch", "tests.own_classes:Frozen", "--output", str(tmp_path)]
    assert pruning.main([*OPTIONS, *arch]) == 0
    model = checkpoint.load(tmp_path / "initial_model.ptmodel")
    assert (model.state_dict["first.weight"] == 0.01).all()
