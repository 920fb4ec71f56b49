"""The stages of Deep Compression: functions from a checkpoint to the next one.

    train -> prune -> share -> encode -> decode

The scripts are front ends of these functions, and `deep_compressing.py` calls the same ones.
`args` is the namespace of a script's options.  Every stage seeds torch's generator itself, so that
it gives the same bytes in a process of its own as within the whole pipeline.
"""

from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn import functional as F

from .. import checkpoint, encoding
from ..checkpoint import Checkpoint
from ..codec.tensors import identity
from ..errors import UserError
from ..files import check_writable
from ..prune import GradualPruning, apply_masks, set_masks, shrink, threshold_mask
from ..report import tables
from ..sharing import SharedWeight
from ..training import architectures, datasets, distributed
from ..training.distillation import Distorted, distillation_loss, distilled_train
from ..training.log import Log
from ..training.loop import Recipe, evaluate, fit
from ..training.resume import Progress
from ..training.units import drop_idle, fold_constant_inputs, gather_live_units
from ..training.weights import start_from, without_prefixes
from . import cli
from .allocation import choose_bits
from .patterns import resolve

INITIAL = "initial_model.ptmodel"
TEACHER = "teacher_model.ptmodel"
RETRAINED = "model_after_retraining.ptmodel"
SHARED = "model_after_weight_sharing.ptmodel"
DECODED = "model_after_decoding.ptmodel"
PROGRESS = "progress.ptmodel"

# The learning rate of single weights over that of the centroids, while weights may be reassigned.
LATENT_RATE = 0.5

# What a checkpoint records of the options that made it: no paths, so that equal runs give equal
# bytes wherever they are.
COMMON_OPTIONS = ("seed", "batch_size", "distortion", "teacher", "teacher_copies", "amp")
TRAINING_OPTIONS = (*COMMON_OPTIONS, "weights", "epochs", "lr", "dropout", "l1")
PRUNING_OPTIONS = (
    *TRAINING_OPTIONS,
    *("sensitivity", "density", "prune_epochs", "retrain_epochs", "retrain_lr"),
)
SHARING_OPTIONS = (
    *COMMON_OPTIONS,
    *("bits", "error_budget", "bias_bits", "init", "finetune_epochs", "finetune_lr", "reassign"),
)


def recorded(args, names) -> dict:
    options = {name: getattr(args, name) for name in names}
    if options.get("weights"):
        options["weights"] = Path(options["weights"]).name
    return options


def batch_size(args, dataset) -> int:
    """--batch-size; auto is 250, or what gives 40 steps an epoch on a small data set."""
    if args.batch_size != "auto":
        return args.batch_size
    return max(1, min(250, len(dataset.train) // 40))


# Models and data


def load_data(args, source: Checkpoint | None = None) -> datasets.Dataset:
    """The data set that the user names, its images as the model takes them.

    For "auto" it is the one that `source` was trained on.  Without `source` the model is the one
    that --arch names; the data set then gives --arch and --teacher their classes and channels
    where the user has not.
    """
    name = args.dataset
    if name == "auto" and source is not None and source.dataset:
        name = source.dataset
    arch = (
        source.arch
        if source
        else architectures.describe(args.arch, args.num_classes, args.in_channels)
    )
    with distributed.writer_first():
        dataset = datasets.load(
            *(name, args.data_dir, cli.device(args), architectures.input_of(arch)),
            *(args.val_fraction, args.skip_broken),
        )
    if source is None:
        args.arch = architectures.describe(arch, data=dataset)
    teacher = getattr(args, "teacher", "none")
    if teacher != "none" and not is_file_name(teacher):
        args.teacher = architectures.describe(teacher, data=dataset)
    return dataset


def load_model(source: Checkpoint, device) -> torch.nn.Module:
    """The module that `source` is the state dict of, on `device`."""
    model = architectures.build(source.arch)
    try:
        model.load_state_dict(source.state_dict)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(
            f"the model does not fit the architecture {source.arch}: {reason}"
        ) from None
    return placed(model, device)


def placed(model: torch.nn.Module, device) -> torch.nn.Module:
    """`model` on `device`, 2-D convolutions in channels-last order: on a CPU LeNet-5 trains 1.5
    times as fast, and GPUs prefer it too."""
    model = model.to(device)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the state dict, on the CPU and in the usual memory order."""
    return checkpoint.copied(model.state_dict())


def layer_kinds(source: Checkpoint) -> dict[str, str]:
    """{name: "linear" or "conv"} of the layers whose weight is pruned and shared.

    From the architecture where it is known; for a bare state dict every floating-point tensor
    NAME.weight of two or more dimensions, which takes in embeddings.  Tied weights count once.
    """
    if source.arch is not None:
        layers = architectures.compressible_layers(architectures.skeleton(source.arch))
        return {name: architectures.layer_kind(layer) for name, layer in layers.items()}
    kinds, seen = {}, set()
    for name, tensor in source.state_dict.items():
        weight = name.endswith(".weight") and tensor.is_floating_point() and tensor.dim() >= 2
        if weight and identity(tensor) not in seen:
            seen.add(identity(tensor))
            kinds[name.removesuffix(".weight")] = "linear" if tensor.dim() == 2 else "conv"
    return kinds


def compressible_names(source: Checkpoint) -> list[str]:
    """The names of those layers' weights in the state dict."""
    return [f"{name}.weight" for name in layer_kinds(source)]


def test(model, stage: str, dataset, args, log) -> float:
    """The top-1 error of `model` on the test set in percent, logged as that of `stage`."""
    _, error = evaluate(model, dataset.test, args.test_batch_size)
    text = f"{stage}: test error {error:.2f} % ({dataset.name})"
    log.result(text, event="test", stage=stage, test_error_percent=error)
    return error


def parameter_names(arch: str) -> set[str]:
    """The names in the state dict that are parameters, not buffers; of tied ones the first."""
    return {name for name, _ in architectures.skeleton(arch).named_parameters()}


@contextmanager
def open_log(args):
    """The log of a script that trains; closed at the end of the block."""
    path = args.log if distributed.is_writer() else None
    log = Log(path, args.log_interval, append=getattr(args, "resume", False))
    try:
        yield log
    finally:
        log.close()


# Training and pruning


def run_pruning(args, log, dataset) -> Checkpoint:
    """Train, prune and retrain; write the initial and the retrained model, return the latter."""
    output = Path(args.output)
    check_options(args)
    check_writable(output)
    options = {"arch": args.arch, "dataset": dataset.name, **recorded(args, PRUNING_OPTIONS)}
    progress = Progress(output / PROGRESS, options, args.resume)
    if args.resume and progress.record is None and made_with(output / RETRAINED, options):
        log.result(f"{output / RETRAINED}: finished already", event="finished")
        return checkpoint.load(output / RETRAINED)
    if progress.passed("train"):
        initial = checkpoint.load(output / INITIAL)
    else:
        initial = train(args.arch, "train", args, dataset, log, progress)
        checkpoint.save(output / INITIAL, initial)
    split, loss_of = teaching(args, args.arch, output, dataset, log, progress)
    retrained = prune(initial, split, loss_of, args, dataset, log, progress)
    checkpoint.save(output / RETRAINED, retrained)
    progress.finish()
    return retrained


def check_options(args) -> None:
    """Find before hours of training what would stop the run after them.  Raises UserError."""
    kinds = layer_kinds(Checkpoint({}, args.arch))
    resolve(args.sensitivity, kinds)
    if isinstance(args.density, dict):
        resolve(args.density, kinds)
    if is_file_name(args.teacher):
        checkpoint.load(args.teacher)
    elif args.teacher != "none":
        layer_kinds(Checkpoint({}, args.teacher))


def is_file_name(teacher: str) -> bool:
    return bool(Path(teacher).suffix) and ":" not in teacher  # package.module:factory


def made_with(path: Path, options: dict) -> bool:
    """Whether the checkpoint at `path` exists and was made with `options`."""
    if not path.exists():
        return False
    found = checkpoint.load(path)
    return {"arch": found.arch, "dataset": found.dataset, **found.options} == options


def train(arch: str, phase: str, args, dataset, log, progress=None) -> Checkpoint:
    """A dense model of the architecture `arch`, trained from scratch on the labels."""
    torch.manual_seed(args.seed)
    model = architectures.build(arch)
    if args.weights and phase == "train":
        start_from(args.weights, model, arch)
    model = placed(model, cli.device(args))
    architectures.check_fits(model, arch, dataset)
    fit(
        model,
        model.parameters(),
        Distorted(dataset.train, args.distortion),
        dataset.validation,
        Recipe(args.epochs, batch_size(args, dataset), args.lr, args.dropout, args.amp),
        phase=phase,
        log=log,
        after_step=lambda step: shrink(model, args.l1 * step.lr),
        progress=progress,
    )
    metrics = {"test_error_percent": test(model, phase, dataset, args, log)}
    options = recorded(args, TRAINING_OPTIONS)
    return Checkpoint(state_of(model), arch, "initial", dataset.name, options, metrics)


def teaching(args, arch: str, folder: Path, dataset, log, progress=None):
    """(the split to train on, the loss) for every stage after dense training.

    With --teacher the split holds the teacher's logits instead of labels.
    """
    if args.teacher == "none":
        return Distorted(dataset.train, args.distortion), F.cross_entropy
    teacher = load_teacher(args, arch, folder, dataset, log, progress)
    split = distilled_train(
        dataset,
        teacher,
        *(args.teacher_copies, args.distortion, args.seed + 3, args.test_batch_size),
    )
    return split, distillation_loss


def load_teacher(args, arch: str, folder: Path, dataset, log, progress=None) -> torch.nn.Module:
    """The model that --teacher names: a file, the dense model itself, or one of another
    architecture, which is trained first unless `folder` has it from an earlier run."""
    if args.teacher == arch:
        path = folder / INITIAL
    elif is_file_name(args.teacher):
        path = Path(args.teacher)
    else:
        path = folder / TEACHER
        # weight_share.py has no options to train one by: it takes what pruning.py has left.
        if "epochs" in args:
            options = {
                **{"arch": args.teacher, "dataset": dataset.name},
                **recorded(args, TRAINING_OPTIONS),
            }
            if not made_with(path, options):
                if progress and progress.passed("teacher"):  # its file has been lost since
                    progress = None
                checkpoint.save(path, train(args.teacher, "teacher", args, dataset, log, progress))
    return load_model(checkpoint.load(path), cli.device(args))


def prune(initial: Checkpoint, split, loss_of, args, dataset, log, progress=None) -> Checkpoint:
    """Prune at once by threshold (Han et al. 2015) or gradually to a density, then retrain."""
    torch.manual_seed(args.seed + 1)
    model = load_model(initial, cli.device(args))
    kinds = layer_kinds(initial)

    def train_on(phase, epochs, after_step):
        fit(
            model,
            model.parameters(),
            split,
            dataset.validation,
            Recipe(epochs, batch_size(args, dataset), args.retrain_lr, amp=args.amp),
            phase=phase,
            log=log,
            loss_of=loss_of,
            after_step=after_step,
            progress=progress,
        )

    if args.density is None:
        sensitivity = resolve(args.sensitivity, kinds)
        set_masks(model, lambda name, weight: threshold_mask(weight, sensitivity[name]))
    else:
        set_masks(model, lambda name, weight: torch.ones_like(weight, dtype=torch.bool))
        by_layer = isinstance(args.density, dict)
        density = resolve(args.density, kinds) if by_layer else args.density
        train_on("prune", args.prune_epochs, GradualPruning(model, density))
        fold_constant_inputs(model, dataset.train)
        drop_idle(model, split, loss_of)
        gather_live_units(model, next(dataset.train.batches(500))[0])
    train_on("retrain", args.retrain_epochs, lambda step: apply_masks(model))
    metrics = {"test_error_percent": test(model, "retrained", dataset, args, log)}
    options = recorded(args, PRUNING_OPTIONS)
    return Checkpoint(state_of(model), initial.arch, "retrained", dataset.name, options, metrics)


# Weight sharing


def run_sharing(source: Checkpoint, args, log, path, dataset=None) -> Checkpoint:
    """Share the weights of `source`, and write the result to `path`."""
    check_writable(Path(path).parent)
    if source.arch is None and args.arch is not None:
        dataset = load_data(args)
        source.arch = args.arch
        own = architectures.skeleton(args.arch).state_dict()
        source.state_dict = without_prefixes(source.state_dict, own)
    elif dataset is None and source.arch is not None:
        dataset = load_data(args, source)
    if dataset is None and args.finetune_epochs:
        raise UserError(
            "a bare state dict can be clustered, not fine-tuned: its architecture is not known; "
            "use --epochs 0, or name it by --arch"
        )
    shared = share(source, args, log, dataset, Path(path).parent)
    checkpoint.save(path, shared)
    return shared


def share(source: Checkpoint, args, log, dataset=None, folder=None) -> Checkpoint:
    """Share the survivors of every compressible weight, then fine-tune the centroids.

    `dataset` may be None for a model that is only clustered, neither evaluated nor fine-tuned.
    `folder` has the teacher, if there is one.
    """
    kinds = layer_kinds(source)
    model = None
    if dataset is not None:
        model = load_model(source, cli.device(args))
        architectures.check_fits(model, source.arch, dataset)
    if args.bits == "auto":
        if model is None:
            raise UserError("--bits auto needs the architecture and a data set; name the bits")
        bits = choose_bits(
            *(model, list(kinds), dataset.validation),
            *(args.error_budget, args.init, args.seed),
        )
        chosen = ",".join(f"{name}={b}" for name, b in bits.items())
        log.result(f"chosen on the held-out images: --bits {chosen}", event="bits", bits=bits)
    else:
        bits = resolve(args.bits, kinds)
    state, shared, clusterings = cluster(
        source.state_dict, bits, resolve(args.bias_bits, kinds), args
    )
    print(tables.sharing_table(clusterings))
    options = recorded(args, SHARING_OPTIONS)
    clustered = Checkpoint(state, source.arch, "weight_shared", source.dataset, options)
    if model is None:
        return clustered
    test(model, "before weight sharing", dataset, args, log)
    model.load_state_dict(state)
    error = test(model, "after clustering", dataset, args, log)
    if args.finetune_epochs:
        finetune(model, shared, source.arch, folder, args, dataset, log)
        error = test(model, "after fine-tuning", dataset, args, log)
    clustered.state_dict, clustered.dataset = state_of(model), dataset.name
    clustered.metrics = {"test_error_percent": error}
    return clustered


def cluster(source_state: dict, bits: dict, bias_bits: dict, args) -> tuple[dict, dict, dict]:
    """(a copy of the state dict with shared values, {name: SharedWeight}, {name: Clustering}).

    `bits` and `bias_bits` are {layer: bits}.  Without fine-tuning no SharedWeight is kept: it
    takes several times the memory of its weight.
    """
    state = checkpoint.copied(source_state)
    shared, clusterings = {}, {}
    for layer in bits:
        for name, b in ((f"{layer}.weight", bits[layer]), (f"{layer}.bias", bias_bits[layer])):
            if name in state and b:
                # weight * mask, as others prune, leaves -0.0, which would have to be stored.
                state[name].masked_fill_(state[name] == 0, 0.0)
                try:
                    weight = SharedWeight(state[name], b, args.init, args.seed, args.reassign > 0)
                except ValueError as error:  # not finite, not real
                    raise UserError(f"cannot share {name}: {error}") from None
                weight.write(state[name])
                clusterings[name] = weight.clustering
                if args.finetune_epochs:
                    shared[name] = weight
    return state, shared, clusterings


def finetune(model, shared: dict[str, SharedWeight], arch, folder, args, dataset, log) -> None:
    """Train the centroids by equation 3, and what is not shared.

    Assignments stay, but for the fraction --reassign of the steps in which each weight still
    follows its own gradient and moves to the centroid that is nearest then.
    """
    split, loss_of = teaching(args, arch, folder, dataset, log)
    torch.manual_seed(args.seed + 2)
    parameters = dict(model.named_parameters(remove_duplicate=False))  # all names of tied ones
    trained_otherwise = {id(parameters[name]) for name in shared}
    own = [p for p in model.parameters() if id(p) not in trained_otherwise]
    for weight in shared.values():
        weight.to(cli.device(args))

    def after_backward():
        for name, weight in shared.items():
            weight.gather_gradient(parameters[name])

    def after_step(step):
        for name, weight in shared.items():
            if step.done <= args.reassign:
                weight.reassign()
            weight.write(parameters[name])

    weights = shared.values()
    latent = [weight.latent for weight in weights if weight.latent is not None]
    fit(
        model,
        [
            {"params": own + [weight.centroids for weight in weights]},
            {"params": latent, "lr_factor": LATENT_RATE},
        ],
        split,
        dataset.validation,
        Recipe(args.finetune_epochs, batch_size(args, dataset), args.finetune_lr, amp=args.amp),
        phase="finetune",
        log=log,
        loss_of=loss_of,
        after_backward=after_backward,
        after_step=after_step,
    )


# Coding


def encode(source: Checkpoint, directory) -> None:
    """Write `source` to the folder `directory`, losslessly, and print what each tensor takes."""
    meta = {key: getattr(source, key) for key in ("arch", "dataset") if getattr(source, key)}
    encoding.save(source.state_dict, directory, meta)
    tensors = encoding.describe(directory)
    print(tables.encoding_table(tensors, encoding.directory_bytes(directory)))
    for tensor in tensors:
        for name in tensor.tied:
            print(f"note: {name} is tied to {tensor.name}, and stored with it")
    for name in compressible_names(source):
        values = source.state_dict[name].flatten()
        values = values[:: max(1, len(values) >> 20)]  # a million tell
        values = values[values != 0]
        # As many values as 8 bits give may well be shared.
        if len(values) > 256 and len(values.unique()) > len(values) / 2:
            print(f"note: {name} is not weight-shared; its values are stored as they are")


def decode(directory) -> Checkpoint:
    """The model in the folder `directory`, bit for bit."""
    state, meta = encoding.load(directory)
    return Checkpoint(state, meta.get("arch"), "decoded", meta.get("dataset"))
