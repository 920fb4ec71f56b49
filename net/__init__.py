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

_CLASSES = {"Pruner": "prune", "WeightSharing": "sharing", "compress": "compression"}
_MODULES = (
    *("bare", "checkpoint", "compression", "encoding", "errors", "huffman", "layouts"),
    *("parameters", "post_training", "prune", "quantization", "report", "shards", "sharing"),
    "sparse",
)

__all__ = [*_CLASSES, *_MODULES]
__version__ = "0.1.0"


def __getattr__(name: str) -> "Any":
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module = importlib.import_module(f".{_CLASSES.get(name, name)}", __name__)
    return getattr(module, name) if name in _CLASSES else module


def __dir__() -> list[str]:
    return [*globals(), *__all__]
