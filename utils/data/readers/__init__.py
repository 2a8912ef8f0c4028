"""One reader per form of data set: raw rows in the layouts that people have, to rows and to records."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from utils.data.reader import Reader


@cache
def all_readers() -> dict[str, Reader]:
    """The ``READER`` of each file of this folder, by its name."""
    found = [import_module(f"{__name__}.{module.name}").READER for module in iter_modules(__path__)]
    return {reader.name: reader for reader in found}
