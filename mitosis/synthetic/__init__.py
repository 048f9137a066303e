"""Draws H&E-like tissue and slides with known truth, for tests, demonstrations and learning.

A new kind of cell is one drawing function and one line in the dictionary of its file (`figures`, `lookalikes`,
`nuclei`); `CELLS` holds them all.
"""

from mitosis.synthetic.drawing import CELLS, Drawing, draw_tissue
from mitosis.synthetic.phantom import write_phantom, write_truth
from mitosis.synthetic.stain import Stain, random_stain

__all__ = ["CELLS", "Drawing", "Stain", "draw_tissue", "random_stain", "write_phantom", "write_truth"]
