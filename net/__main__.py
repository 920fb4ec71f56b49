"""`python -m net` in a clone, what `deep-compression` is where the package is installed."""

import sys

if __name__ == "__main__":  # before anything is imported that takes time
    from .pipeline import process

    process.start()

from .pipeline.commands import main

__all__ = ["main"]


if __name__ == "__main__":
    sys.exit(main())
