"""Pictures that argue: attention maps, artifacts, tokens, sliders, and the house style of charts.

Nothing here knows a paper. Importing a module of this folder imports matplotlib only when it draws.
"""

from refimpl.viz.slider import Slider, slider

__all__ = ["Slider", "slider"]
