"""The suite for one store."""

from .ending import Ending
from .naming import Naming
from .reading import Reading
from .starting import Starting
from .watching import Watching


class StoreConformance(Starting, Reading, Ending, Naming, Watching):
    """All that a store promises, as tests: derive a class from it, in a test module, and fill in `open_store`.

    If two of your stores on one backing are to act as one, derive from `SharedStoreConformance` instead.
    """
