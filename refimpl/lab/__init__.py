"""What the experiments of the chapters stand on: data, training, measuring, real weights.

Computes, prints nothing but progress bars. Importing it is cheap: scikit-learn, scikit-image and
Pillow are imported by the functions that need them.
"""

from refimpl.lab import data, measure, search, train
from refimpl.lab.pretrained import classify, weights_of

__all__ = ["classify", "data", "measure", "search", "train", "weights_of"]
