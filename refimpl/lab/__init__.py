"""What the experiments of the chapters stand on: data, training, measuring. Computes, prints nothing but progress bars.

Importing it is cheap: scikit-learn and scikit-image are imported by the functions that need them.
"""

from refimpl.lab import data, measure, train

__all__ = ["data", "measure", "train"]
