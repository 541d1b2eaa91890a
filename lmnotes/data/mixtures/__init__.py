"""Several datasets in one stream of batches."""
from . import data # noqa: F401 registers its kind of data
