"""Pictures of attributions: green speaks for the attributed output, red against it.

Functions return a figure, a text or a page, and show nothing by themselves. matplotlib, SciPy, rich and jinja2 do the
work. They are imported when they are used: `pip install "igfast[explain]"`.
"""

from igfast.viz.charts import bars as bars
from igfast.viz.charts import series as series
from igfast.viz.figures import save as save
from igfast.viz.gallery import gallery as gallery
from igfast.viz.images import PANELS as PANELS
from igfast.viz.images import image as image
from igfast.viz.images import path_strip as path_strip
from igfast.viz.matrix import token_matrix as token_matrix
from igfast.viz.page import report as report
from igfast.viz.plot import plot as plot
from igfast.viz.texts import Tokens as Tokens
from igfast.viz.texts import text_figure as text_figure
from igfast.viz.texts import text_html as text_html
from igfast.viz.texts import text_page as text_page
from igfast.viz.texts import text_terminal as text_terminal
from igfast.viz.texts import tokens_of as tokens_of
