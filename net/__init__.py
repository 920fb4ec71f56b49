"""Deep Compression for PyTorch: prune, share, Huffman-code (Han, Mao and Dally, ICLR 2016).

    import net

    pruner = net.Pruner(model, sensitivity=1.5)
    sharing = net.WeightSharing(model, bits=5)
    net.encoding.save(model.state_dict(), "encodings")
    net.compress(model, "model.dc", max_bytes=2_000_000)

What is named below is imported when it is first used, so that `import net` costs nothing.
"""

TYPE_CHECKING = False  # type checkers take it for true; typing takes as long as all the rest
if TYPE_CHECKING:
    from typing import Any

# {name: its module}
_CLASSES = {"Pruner": "prune", "WeightSharing": "sharing", "SharedState": "sharing"}
_CLASSES |= {"compress": "compression", "load_into": "pretrained", "from_pretrained": "pretrained"}
_MODULES = (
    *("checkpoint", "compression", "encoding", "errors", "huffman", "layouts", "parameters"),
    *("plan", "prune", "quantization", "report", "rounding", "shards", "sharing", "sparse"),
    "treatments",
)
_EARLIER = {"bare": "sharing", "post_training": "rounding"}  # what modules were called

__all__ = [*_CLASSES, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name: str) -> "Any":
    if name not in (*__all__, *_EARLIER):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    name = _EARLIER.get(name, name)
    module = importlib.import_module(f".{_CLASSES.get(name, name)}", __name__)
    return getattr(module, name) if name in _CLASSES else module


def __dir__() -> list[str]:
    return [*globals(), *__all__]
