"""What the experiments of the chapters stand on: data, training, measuring, claims, and the display of source code.

Importing it is cheap: matplotlib, scikit-learn, scikit-image and IPython are imported by the functions that need them.
"""

from refimpl.lab import claims, data, golden, measure, train
from refimpl.lab.freshness import stamp
from refimpl.lab.show import say, setup, show_source, table

__all__ = ["claims", "data", "golden", "measure", "say", "setup", "show_source", "stamp", "table", "train"]
