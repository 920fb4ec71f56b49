"""Training loops as people have them: closures, wrappers, copies, models that change meanwhile."""

import copy
import inspect
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from net import Pruner, WeightSharing
from net.errors import UserError
from net.modules import parameter_of

STEPS = 30


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(128, 8, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()


def loss_of(model):
    x, y = data()
    return F.cross_entropy(model(x), y)


def begun(kind, model):
    """(a Pruner or WeightSharing, what an optimizer is to train)."""
    if kind == "prune":
        return Pruner(model, density=0.2, steps=STEPS - 5), list(model.parameters())
    sharing = WeightSharing(model, bits=3)
    return sharing, list(sharing.parameters())


def state_after(kind, make, train):
    """The model's parameters after a loop, before and after `detach`, and what was attached."""
    model = network()
    attached, parameters = begun(kind, model)
    optimizer = make(parameters)
    attached.attach(optimizer)
    train(model, optimizer)
    check(kind, model, attached)
    attached.detach()
    check(kind, model, attached)
    assert attached.steps_done == STEPS
    return model


def check(kind, model, attached):
    if kind == "prune":
        assert attached.finished
        for name, mask in attached.masks.items():
            assert mask.float().mean() < 0.5
            assert not model.get_parameter(name)[~mask].any()
    else:
        assert len(model[0].weight.unique()) <= 8


def plainly(model, optimizer):
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def by_closures(model, optimizer):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    for i in range(STEPS):
        found = optimizer.step(closure) if i % 2 else optimizer.step(closure=closure)
        assert found > 0


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


class Around:
    """Passes everything on to an optimizer, and is none."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)


class Wrapper(Around, torch.optim.Optimizer):
    """As accelerate's: an Optimizer without hooks of its own."""

    def zero_grad(self, set_to_none=True):
        assert "set_to_none" in inspect.signature(self.optimizer.zero_grad).parameters
        super().zero_grad(set_to_none)


class Lookahead(Wrapper):
    """Zhang et al. 2019: moves the weights again after some steps."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.count, self.slow = 0, {}

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.slow.setdefault(p, p.detach().clone())
                if self.count % 5 == 0:
                    p.copy_(slow.lerp_(p, 0.5))
        return loss


class SAM(torch.optim.Optimizer):
    """Foret et al. 2021, as it is published for torch: two steps, or a closure."""

    def __init__(self, parameters, rho=0.05, **options):
        super().__init__(parameters, {"rho": rho, **options})
        self.base_optimizer = torch.optim.Adam(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def _trained(self):
        return [p for g in self.param_groups for p in g["params"] if p.grad is not None]

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        norm = torch.stack([p.grad.norm() for p in self._trained()]).norm()
        for p in self._trained():
            self.state[p]["old_p"] = p.data.clone()
            p.add_(p.grad * self.param_groups[0]["rho"] / norm)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for p in self._trained():
            p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure):
        self.first_step(zero_grad=True)
        torch.enable_grad()(closure)()
        self.second_step()


def sam(parameters):
    return SAM(parameters, lr=1e-2)


def in_two_steps(model, optimizer):
    for _ in range(STEPS):
        loss_of(model).backward()
        before = model[0].weight.detach().clone()
        optimizer.first_step(zero_grad=True)
        assert not torch.equal(model[0].weight, before)
        loss_of(model).backward()
        optimizer.second_step(zero_grad=True)


def in_one_step(model, optimizer):
    for _ in range(STEPS):
        loss_of(model).backward()
        optimizer.step(lambda: loss_of(model).backward())
        optimizer.zero_grad()


class Bare:
    """No torch.optim.Optimizer at all."""

    def __init__(self, parameters):
        self.param_groups = [{"params": parameters}]

    def zero_grad(self):
        for p in self.param_groups[0]["params"]:
            p.grad = None

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.sub_(0.1 * p.grad)


@pytest.mark.parametrize("kind", ["prune", "share"])
class TestLoops:
    def test_closures_do_what_a_plain_loop_does(self, kind):
        plain = state_after(kind, adam, plainly)
        assert_same(state_after(kind, adam, by_closures), plain)

    def test_a_wrapper_is_as_good_as_what_it_holds(self, kind):
        plain = state_after(kind, adam, plainly)
        for train in (plainly, by_closures):
            assert_same(state_after(kind, lambda p: Wrapper(adam(p)), train), plain)

    def test_what_a_wrapper_does_after_the_step_is_put_right(self, kind):
        ended = state_after(kind, lambda p: Lookahead(adam(p)), plainly)
        assert loss_of(ended) < loss_of(network()) - 0.2

    def test_the_two_steps_of_sam(self, kind):
        ended = state_after(kind, sam, in_two_steps)
        assert loss_of(ended) < loss_of(network()) - 0.2
        assert_same(state_after(kind, sam, in_one_step), ended)

    def test_an_object_without_hooks(self, kind):
        ended = state_after(kind, Bare, plainly)
        assert loss_of(ended) < loss_of(network()) - 0.1

    def test_a_scheduler_binds_a_wrapped_step_again(self, kind):
        def scheduled(parameters):
            wrapped = Lookahead(adam(parameters))
            wrapped.defaults = wrapped.optimizer.defaults
            return wrapped

        def train(model, optimizer):
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
            for _ in range(STEPS):
                optimizer.zero_grad()
                loss_of(model).backward()
                optimizer.step()
                scheduler.step()

        state_after(kind, scheduled, train)

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
    def test_copies_are_attached_to_each_other(self, kind, how):
        plain = state_after(kind, adam, plainly)
        model = network()
        attached, parameters = begun(kind, model)
        optimizer = adam(parameters)
        attached.attach(optimizer)
        whole = model, attached, optimizer
        if how == "deepcopy":
            copies = copy.deepcopy(whole)
        elif how == "pickle":
            copies = pickle.loads(pickle.dumps(whole))
        else:
            file = io.BytesIO()
            torch.save(whole, file)
            file.seek(0)
            copies = torch.load(file, weights_only=False)
        other, its_own, its_optimizer = copies
        before = copy.deepcopy(model.state_dict())
        plainly(other, its_optimizer)
        assert (attached.steps_done, its_own.steps_done) == (0, STEPS)
        assert_same(other, plain)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_an_optimizer_of_something_else_is_refused(self, kind):
        model = network()
        attached, parameters = begun(kind, model)
        for other in (network(), copy.deepcopy(model)):
            with pytest.raises(ValueError, match="no parameter of this model"):
                attached.attach(adam(other.parameters()))
        with pytest.raises(ValueError, match="LBFGS cannot be attached"):
            attached.attach(torch.optim.LBFGS(parameters))
        with pytest.raises(ValueError, match="Linear cannot be attached"):
            attached.attach(model[0])

    def test_a_search_by_closures_is_refused_at_its_first_step(self, kind):
        class Searching(torch.optim.SGD):
            def step(self, closure):
                for _ in range(5):
                    closure()
                    super().step()

        model = network()
        attached, parameters = begun(kind, model)
        optimizer = Searching(parameters, 1e-2)
        attached.attach(optimizer)
        with pytest.raises(ValueError, match="evaluates its closure more than 2 times"):
            optimizer.step(lambda: loss_of(model).backward())

    @pytest.mark.parametrize("how", ["assign", "double", "layer"])
    def test_the_next_step_says_that_parameters_were_replaced(self, kind, how):
        model = network()
        attached, parameters = begun(kind, model)
        optimizer = adam(parameters)
        attached.attach(optimizer)
        replace(model, how)
        with pytest.raises(UserError, match="was replaced in the model"):
            plainly(model, optimizer)

    def test_a_new_optimizer_goes_on_with_replaced_parameters(self, kind):
        model = network()
        attached, _ = begun(kind, model)
        replace(model, "assign")
        parameters = model.parameters() if kind == "prune" else attached.parameters()
        optimizer = adam(list(parameters))
        attached.attach(optimizer)
        plainly(model, optimizer)
        check(kind, model, attached)

    def test_a_layer_that_is_gone(self, kind):
        model = network()
        attached, parameters = begun(kind, model)
        attached.attach(adam(parameters))
        del model[2]
        with pytest.raises(UserError, match=r"no 2\.weight of the shape \(3, 32\) any more"):
            attached.detach()

    def test_a_layer_that_was_wrapped_has_its_parameters(self, kind):
        model = network()
        attached, parameters = begun(kind, model)
        optimizer = adam(parameters)
        attached.attach(optimizer)
        model[0] = nn.Sequential(model[0])
        plainly(model, optimizer)
        assert attached.steps_done == STEPS

    def test_a_model_that_changes_its_type(self, kind):
        model = network()
        attached, parameters = begun(kind, model)
        model.bfloat16()
        optimizer = torch.optim.SGD(parameters, 1e-2)
        attached.attach(optimizer)
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(data()[0].bfloat16()).square().mean().backward()
            optimizer.step()
        check(kind, model, attached)

    def test_a_step_without_a_gradient_does_not_count(self, kind):
        model = network()
        attached, parameters = begun(kind, model)
        optimizer = adam(parameters)
        attached.attach(optimizer)
        before = copy.deepcopy(model.state_dict())
        for _ in range(STEPS):
            optimizer.step()
            optimizer.step(lambda: None)
        assert attached.steps_done == 0
        with pytest.warns(UserWarning, match="0 of 25 steps|no gradient of the weights ever came"):
            attached.detach()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_a_step_that_calls_that_of_its_base_class_counts_once(self, kind):
        class Mine(torch.optim.SGD):
            def step(self, closure=None):
                return super().step(closure)

        torch.optim.SGD([nn.Parameter(torch.zeros(1))], 1e-2)  # whose step has hooks, too, from now
        state_after(kind, lambda p: Mine(p, 1e-2), plainly)

    def test_an_average_is_masked_or_shared_like_the_model(self, kind):
        model = network()
        attached, parameters = begun(kind, model)
        optimizer = adam(parameters)
        attached.attach(optimizer)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            average.update_parameters(model)
        attached.detach()
        attached.apply_to(average)
        check(kind, average.module, attached)
        assert not torch.equal(average.module[0].weight, model[0].weight)
        with pytest.raises(ValueError, match=r"no 0\.weight of the shape \(32, 8\)"):
            attached.apply_to(nn.Linear(2, 2))

    def test_sparse_gradients(self, kind):
        torch.manual_seed(0)
        model = nn.Embedding(50, 8, sparse=True)
        if kind == "prune":
            attached = Pruner(model, density=0.2, steps=STEPS - 5, include="@embedding")
            parameters = model.parameters()
        else:
            attached, parameters = begun(kind, model)
        optimizer = torch.optim.SGD(list(parameters), 0.1)
        attached.attach(optimizer)
        before = model.weight.detach().clone()
        for i in range(STEPS):
            optimizer.zero_grad()
            model(torch.arange(i, i + 9)).square().sum().backward()
            optimizer.step()
        attached.detach()
        assert not torch.equal(model.weight, before)
        if kind == "prune":
            assert int(model.weight.count_nonzero()) == 80
        else:
            assert len(model.weight.unique()) <= 8

    def test_a_warning_names_what_was_left_undone(self, kind):
        model = network()
        attached, parameters = begun(kind, model)
        optimizer = adam(parameters)
        attached.attach(optimizer)
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss_of(copy.deepcopy(model)).backward()
            optimizer.step()
        with pytest.warns(UserWarning, match="does not count|ever came"):
            attached.detach()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            attached.detach()  # nothing was attached

    def test_tensors_that_are_none(self, kind):
        for model, message in (
            (nn.Linear(4, 3, device="meta"), "'weight': on the meta device"),
            (nn.Sequential(nn.Flatten()), "nothing "),
        ):
            with pytest.raises(UserError, match=message):
                begun(kind, model)


def assert_same(one, two):
    state = two.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.allclose(tensor, state[name], atol=1e-6), name


def replace(model, how):
    if how == "assign":
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
    elif how == "layer":
        model[2] = nn.Linear(32, 3)
    else:
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            model.double().float()
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(False)


def test_the_parameter_of_a_name():
    model = network()
    assert parameter_of(model, "2.bias") is model[2].bias
    assert parameter_of(model, "2.nothing") is None
    assert parameter_of(model, "3.bias.more") is None
    assert parameter_of(nn.Linear(2, 2), "weight") is not None


def test_hooks_that_an_optimizer_takes_along_do_nothing_in_its_copy():
    class Whole(torch.optim.SGD):
        def __getstate__(self):
            return self.__dict__.copy()

    model = network()
    pruner = Pruner(model, density=0.2, steps=STEPS)
    optimizer = Whole(model.parameters(), 1e-2)
    pruner.attach(optimizer)
    other, its_own, its_optimizer = copy.deepcopy((model, pruner, optimizer))
    plainly(other, its_optimizer)
    assert (pruner.steps_done, its_own.steps_done) == (0, STEPS)


@pytest.mark.parametrize("first", [0, 1])
def test_gradients_are_kept_for_the_optimizer_that_steps_later(first):
    """One of the biases and one of the centroids, in any order, after the same backward."""
    moved = []
    for order in ([first, 1 - first], [1]):
        model = network()
        sharing = WeightSharing(model, bits=3)
        centroids = list(sharing.trained())
        others = [p for p in sharing.parameters() if not any(p is each for each in centroids)]
        optimizers = [torch.optim.SGD(others, 0.0), torch.optim.SGD(centroids, 0.1)]
        for optimizer in optimizers:
            sharing.attach(optimizer)
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model).backward()
            for i in order:
                optimizers[i].step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sharing.detach()
        moved.append(model[0].weight)
    assert torch.equal(*moved)
    assert not torch.equal(moved[0], WeightSharing(network(), bits=3)._parameters["0.weight"])


def test_a_step_that_a_wrapper_leaves_out_leaves_no_gradient_behind():
    """As accelerate's with a scaler, in a loop that calls model.zero_grad()."""

    class Skipping:
        def __init__(self, optimizer):
            self.optimizer, self.calls = optimizer, 0

        @property
        def param_groups(self):
            return self.optimizer.param_groups

        def step(self, closure=None):
            self.calls += 1
            if self.calls > 1:
                self.optimizer.step(closure)

    models = []
    for steps in (2, 1):
        model = network()
        sharing = WeightSharing(model, bits=3)
        optimizer = Skipping(torch.optim.SGD(list(sharing.parameters()), 0.1))
        optimizer.calls = 2 - steps
        sharing.attach(optimizer)
        for i in range(2 - steps, 2):
            for parameter in model.parameters():
                parameter.grad = None
            for parameter in sharing.parameters():
                if any(parameter is each for each in model.parameters()):
                    parameter.grad = None
            (loss_of(model) * (1 if i else float("inf"))).backward()
            optimizer.step()
        models.append(model)
    assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert bool(models[0][0].weight.isfinite().all())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_weights_that_are_loaded_between_steps_are_trained_on(assign, shared):
    model, other = network(), network()
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(-1.5)
    if shared:
        WeightSharing(other, bits=3)
    sharing = WeightSharing(model, bits=3)
    optimizer = torch.optim.SGD(list(sharing.parameters()), 1e-6)
    sharing.attach(optimizer)
    loss_of(model).backward()
    optimizer.step()
    weights = {name: w.clone() for name, w in other.state_dict().items() if "weight" in name}
    model.load_state_dict(copy.deepcopy(weights), strict=False, assign=assign)
    model.requires_grad_()
    loss_of(model).backward()
    optimizer.step()
    sharing.detach()
    for name, weight in weights.items():
        now = model.get_parameter(name)
        assert len(now.unique()) <= 8
        assert float((now - weight).detach().norm() / weight.norm()) < (0.01 if shared else 0.2)


def test_what_is_no_module_and_no_optimizer():
    for make in (Pruner, WeightSharing):
        with pytest.raises(ValueError, match="give a module, not OrderedDict"):
            make(network().state_dict(), **({"density": 0.1} if make is Pruner else {}))


@pytest.mark.parametrize("kind", ["prune", "share"])
def test_a_forgotten_attach(kind):
    model = network()
    attached, parameters = begun(kind, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attached.detach()  # nothing was trained
    optimizer = torch.optim.SGD(parameters, 0.1)
    loss_of(model).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="nothing was ever attached"):
        attached.detach()


@pytest.mark.parametrize("kind", ["prune", "share"])
def test_a_state_of_nothing(kind):
    attached, _ = begun(kind, network())
    for state in ({}, None, {"masks": {}, "tensors": {}}):
        with pytest.raises(ValueError, match="this is no state of a"):
            attached.load_state_dict(state)


@pytest.mark.parametrize("kind", ["prune", "share"])
def test_an_optimizer_whose_step_cannot_be_followed(kind):
    class Closed:
        __slots__ = ("param_groups",)

        def step(self):
            pass

    attached, parameters = begun(kind, network())
    optimizer = Closed()
    optimizer.param_groups = [{"params": parameters}]
    with pytest.raises(ValueError, match="Closed cannot be attached"):
        attached.attach(optimizer)
    attached.attach(torch.optim.SGD(parameters, 0.1))


def test_a_gradient_from_before_the_sharing_does_not_count():
    models = []
    for before in (True, False):
        model = network()
        if before:
            (1e3 * loss_of(model)).backward()
        sharing = WeightSharing(model, bits=3)
        optimizer = torch.optim.SGD(list(sharing.parameters()), 0.1)
        sharing.attach(optimizer)
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        models.append(model)
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_shared_values_that_have_diverged():
    model = network()
    sharing = WeightSharing(model, bits=3)
    optimizer = torch.optim.SGD(list(sharing.parameters()), 0.1)
    sharing.attach(optimizer)
    (loss_of(model) * float("nan")).backward()
    optimizer.step()
    with pytest.warns(UserWarning, match="training has diverged: 0.weight, 2.weight"):
        sharing.detach()


@pytest.mark.parametrize("options", [{"include": 5}, {"exclude": [3]}, {"bits": {3: 3}}])
def test_patterns_that_are_none(options):
    with pytest.raises(ValueError, match="give a pattern or a list of patterns, not"):
        WeightSharing(network(), **options)
    if "bits" in options:
        options = {"sensitivity": options["bits"]}
    else:
        options["density"] = 0.1
    with pytest.raises(ValueError, match="give a pattern or a list of patterns, not"):
        Pruner(network(), **options)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("cleared_by", ["optimizer", "model"])
def test_gradients_of_a_step_that_the_loop_leaves_out_are_cleared(cleared_by, wrapped):
    """As of a norm that is not finite, or of an adversarial example."""
    models = []
    for left_out in (True, False):
        model = network()
        sharing = WeightSharing(model, bits=3)
        optimizer = torch.optim.SGD(list(sharing.parameters()), 0.1)
        optimizer = Around(optimizer) if wrapped else optimizer
        sharing.attach(optimizer)
        for factor in (float("inf"), 1, 1) if left_out else (1, 1):
            (optimizer if cleared_by == "optimizer" else model).zero_grad()
            (factor * loss_of(model)).backward()
            if factor == 1:
                optimizer.step()
        sharing.detach()
        assert sharing.steps_done == 2
        assert "zero_grad" not in vars(optimizer)
        models.append(model)
    assert torch.equal(models[0][0].weight, models[1][0].weight)


def test_a_step_that_a_scaler_leaves_out_in_a_loop_that_clears_the_model():
    model = network()
    sharing = WeightSharing(model, bits=3)
    optimizer = torch.optim.SGD(list(sharing.parameters()), 0.1)
    sharing.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for i in range(6):
        model.zero_grad()
        scaler.scale(loss_of(model) * (float("inf") if i in (0, 3) else 1)).backward()
        sharing.gather_gradients()
        scaler.step(optimizer)
        scaler.update()
    assert sharing.steps_done == 4
    assert bool(model[0].weight.isfinite().all())


def test_optimizers_that_one_wrapper_steps_in_turn():
    class Chain:
        def __init__(self, *optimizers):
            self.optimizers = optimizers

        @property
        def param_groups(self):
            return [group for each in self.optimizers for group in each.param_groups]

        def step(self, closure=None):
            for each in self.optimizers:
                each.step()

        def zero_grad(self):
            for each in self.optimizers:
                each.zero_grad()

    models = []
    for chained in (True, False):
        model = network()
        sharing = WeightSharing(model, bits=3)
        parameters = list(sharing.parameters())
        if chained:
            parts = parameters[:2], parameters[2:]  # biases, and centroids
            optimizer = Chain(*(torch.optim.SGD(part, 0.1) for part in parts))
        else:
            optimizer = torch.optim.SGD(parameters, 0.1)
        sharing.attach(optimizer)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        assert sharing.steps_done == 3
        models.append(model)
    assert torch.equal(models[0][0].weight, models[1][0].weight)


@pytest.mark.parametrize(
    "made", [lambda m: WeightSharing(m, bits=2), lambda m: Pruner(m, density=0.5)]
)
def test_zeros_that_were_to_be_trained_are_told(made):
    """A new adapter's second matrix: what is pruned stays zero, and the first has no gradient."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    nn.init.zeros_(model[1].weight)
    with pytest.warns(UserWarning, match=r"all zeros, as those of a new adapter.*: 1\.weight; ex"):
        made(model)
    model[1].weight.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made(model)
