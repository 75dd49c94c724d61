"""Pictures of samples, and self-contained HTML pages about models.

Images are tensors in [-1, 1]; 2-D points are plotted. A ``Report`` is one file with all pictures
inside: it loads nothing, runs no script and follows the reader's light or dark theme. Matplotlib
is imported only when a figure is drawn, and its global state is not used.
"""

from cdrl_fast.report.page import Report
from cdrl_fast.report.pictures import (
    completion_grid,
    curve_figure,
    curve_row,
    density_figure,
    film_strip,
    image_grid,
    save_image_grid,
    scatter_figure,
)
from cdrl_fast.report.training import training_report, versions

__all__ = [
    "Report",
    "completion_grid",
    "curve_figure",
    "curve_row",
    "density_figure",
    "film_strip",
    "image_grid",
    "save_image_grid",
    "scatter_figure",
    "training_report",
    "versions",
]
