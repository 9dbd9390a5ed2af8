"""The words of the toybox: every label of an image is an index into one of these tuples.

The order is part of the data's format (labels are stored as integers): append, never reorder.
"""

import difflib

#: The object classes, as the nouns of the captions.
CLASSES = (
  "dog", "cat", "rabbit", "bird", "fish", "car", "truck", "boat", "plane", "robot", "teapot", "mushroom", "chair",
  "backpack", "face",
)  # fmt: skip

#: The eleven basic colour terms of English (Berlin & Kay, 1969). A face's colour is its hair's.
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey")

#: The markings of a subject. Faces are plain or freckled, everything else is anything but freckled.
MARKINGS = ("plain", "striped", "spotted", "patched", "pale-bellied", "starred", "freckled")

#: Where the subject is: those of the DreamBooth prompts that can be rendered, then four of our own.
CONTEXTS = (
  "jungle", "snow", "beach", "cobblestone street", "pink fabric", "wooden floor", "city", "mountain", "blue house",
  "purple rug in a forest", "wheat field", "autumn trees", "tower", "water", "milk", "sunflowers", "mirror",
  "dirt road", "white rug", "desert", "night", "studio",
)  # fmt: skip

#: What the subject wears.
ACCESSORIES = ("none", "red hat", "santa hat", "rainbow scarf", "pink glasses", "top hat", "crown", "cape")

#: Property words that change the subject as a whole (colours are `COLOURS`, stripes and spots are `MARKINGS`).
PROPERTIES = ("none", "shiny", "cube shaped")

#: What each class can be doing; the first is its resting state.
STATES = {
  "dog": ("standing", "sitting", "running", "jumping"),
  "cat": ("standing", "sitting", "running", "jumping"),
  "rabbit": ("standing", "sitting", "running", "jumping"),
  "bird": ("standing", "flying"),
  "fish": ("swimming", "jumping"),
  "car": ("parked",),
  "truck": ("parked",),
  "boat": ("floating",),
  "plane": ("parked", "flying"),
  "robot": ("standing", "sitting", "running", "jumping", "waving"),
  "teapot": ("standing", "pouring"),
  "mushroom": ("growing",),
  "chair": ("standing", "lying"),
  "backpack": ("standing", "lying"),
  "face": ("neutral", "smiling", "sad", "surprised"),
}

#: The styles of images; index 0 is the plain rendering.
STYLES = (
  "photo", "watercolor painting", "oil painting", "line drawing", "pencil sketch", "flat cartoon illustration",
  "kid crayon drawing", "pixel art", "sticker", "3d clay rendering", "glowing neon", "wooden sculpture",
  "melting golden 3d rendering", "mosaic", "stained glass window", "blueprint", "halftone pop art",
  "chalkboard drawing", "vintage sepia photograph",
)  # fmt: skip

#: Styles that no training image has: StyleDrop must learn them from one image.
HELD_OUT_STYLES = ("kid crayon drawing", "glowing neon", "melting golden 3d rendering", "stained glass window")


def index(words: tuple[str, ...], name: str, kind: str) -> int:
  """Returns the index of `name` in one of the tuples above; raises ValueError with the nearest words if absent."""
  if name in words:
    return words.index(name)
  near = difflib.get_close_matches(name, words, n=2)
  hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(words)}"
  raise ValueError(f"unknown {kind} {name!r}; {hint}")
