"Reports on runs and comparisons: charts, tables, HTML, Markdown, LaTeX and model cards"
from ..core import hide_broken_torchvision

hide_broken_torchvision()
