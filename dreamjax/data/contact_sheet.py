"""Contact sheets: many images on one page, each with its caption below."""

from collections.abc import Sequence
import math
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamjax.data.image_folder import to_uint8
from dreamjax.errors import UserError

_GAP = 6
_MIN_WIDTH = 96  # pixels that a caption needs
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def contact_sheet(images: Sequence[np.ndarray], captions: Sequence[str], columns: int | None = None) -> Image.Image:
  """Draws images on a grid, each with its caption below.

  Images narrower than 96 pixels are magnified by a whole number, so that their captions fit.

  Args:
    images: images of one size, [h, w, 3] in [0, 1].
    captions: one for each; wrapped to the image's width.
    columns: images in a row; by default as many as make the page roughly square, at most 8.

  Returns:
    The page.

  Raises:
    ValueError: if there are no images, or not as many captions as images.
  """
  if not images or len(images) != len(captions):
    raise UserError(f"a contact sheet needs images and as many captions, not {len(images)} and {len(captions)}")
  columns = columns or min(8, math.ceil(math.sqrt(len(images))))
  zoom = -(-_MIN_WIDTH // images[0].shape[1])
  height, width = (zoom * size for size in images[0].shape[:2])
  font = ImageFont.load_default(size=max(9, width // 13))
  letters = max(8, int(width / font.getlength("abcdefghij") * 10))
  texts = [textwrap.fill(caption, letters) for caption in captions]
  line = sum(font.getmetrics()) + 4
  label = line * max(text.count("\n") + 1 for text in texts) + _GAP
  rows = math.ceil(len(images) / columns)
  page = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (height + label + _GAP) + _GAP), _PAPER)
  pen = ImageDraw.Draw(page)
  for i, (image, text) in enumerate(zip(images, texts, strict=True)):
    x, y = _GAP + i % columns * (width + _GAP), _GAP + i // columns * (height + label + _GAP)
    page.paste(Image.fromarray(to_uint8(image).repeat(zoom, 0).repeat(zoom, 1)), (x, y))
    pen.multiline_text((x, y + height + 2), text, fill=_INK, font=font)
  return page
