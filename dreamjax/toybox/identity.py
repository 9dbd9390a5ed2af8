"""Identities of toys: proportions, colours and marking, a fixed function of a class and a number."""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from dreamjax.toybox import classes, vocabulary
from dreamjax.toybox.dice import Dice
from dreamjax.toybox.rig import Coat, linear
from dreamjax.toybox.scene import Pattern

_IDENTITY_SEED = 2023

#: Display colours of the colour words.
COLOURS = np.array([
  (0.87, 0.12, 0.12), (0.98, 0.55, 0.08), (0.98, 0.85, 0.15), (0.2, 0.66, 0.24), (0.14, 0.36, 0.88), (0.55, 0.2, 0.78),
  (0.98, 0.52, 0.72), (0.48, 0.29, 0.15), (0.12, 0.12, 0.13), (0.95, 0.95, 0.94), (0.55, 0.56, 0.58),
])  # fmt: skip

# For each colour four that contrast with it, for markings.
_CONTRASTS = {
  "red": ("white", "yellow", "black", "blue"), "orange": ("white", "black", "blue", "green"),
  "yellow": ("black", "red", "blue", "purple"), "green": ("white", "yellow", "black", "orange"),
  "blue": ("white", "yellow", "orange", "pink"), "purple": ("white", "yellow", "orange", "pink"),
  "pink": ("white", "purple", "red", "blue"), "brown": ("white", "yellow", "orange", "black"),
  "black": ("white", "yellow", "orange", "red"), "white": ("black", "brown", "blue", "red"),
  "grey": ("white", "black", "yellow", "pink"),
}  # fmt: skip
_CONTRAST = np.array([[vocabulary.COLOURS.index(c) for c in _CONTRASTS[name]] for name in vocabulary.COLOURS])

_SKINS = np.array([
  (0.99, 0.86, 0.76), (0.96, 0.79, 0.66), (0.91, 0.71, 0.55), (0.8, 0.58, 0.42), (0.66, 0.45, 0.31),
  (0.5, 0.33, 0.22), (0.38, 0.25, 0.17),
])  # fmt: skip
_EYES = np.array([
  (0.3, 0.5, 0.85), (0.25, 0.6, 0.35), (0.5, 0.32, 0.16), (0.25, 0.17, 0.1), (0.55, 0.6, 0.62), (0.85, 0.6, 0.1),
])  # fmt: skip

_FACE = vocabulary.CLASSES.index("face")
_HAIR_WEIGHTS = dict(zip(vocabulary.COLOURS, (2, 2, 3, 0.5, 0.5, 0.5, 0.5, 4, 4, 1, 2), strict=True))
_MARKING_PATTERNS = np.array([
  Pattern.PLAIN, Pattern.STRIPES, Pattern.SPOTS, Pattern.PATCH, Pattern.BELLY, Pattern.STAR, Pattern.FRECKLES,
])  # fmt: skip
_MARKING_WEIGHTS = np.array([[4, 3, 3, 2, 2, 2, 0], [3, 0, 0, 0, 0, 0, 1.0]])
_FRECKLED = vocabulary.MARKINGS.index("freckled")


@struct.dataclass
class Identity:
  """What distinguishes a toy from all others of its class.

  Attributes:
    traits: proportions and choices of its class's rig.
    colour: index of its colour word.
    marking: index of its marking.
    contrast: the colour of the marking, as an index into those that contrast with the toy's colour.
    shade: how its shades differ from those of the colour words, linear factors for primary, secondary and accent.
    accent: index of the accent's colour word.
    eye: eye colour, linear.
    skin: skin colour, linear; faces only.
    marking_params: (scale, phase, strength) of the marking.
  """

  traits: Float[Array, " t"]
  colour: Int[Array, ""]
  marking: Int[Array, ""]
  contrast: Int[Array, ""]
  shade: Float[Array, "3 3"]
  accent: Int[Array, ""]
  eye: Float[Array, " 3"]
  skin: Float[Array, " 3"]
  marking_params: Float[Array, " 3"]


def identity(cls: Int[Array, ""], subject: Int[Array, ""]) -> Identity:
  """Computes the identity with number `subject` of class `cls`; a pure function, the same on every machine."""
  tables = classes.tables()
  is_range, group = jnp.asarray(tables.is_range)[cls], jnp.asarray(tables.group)[cls]
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(_IDENTITY_SEED), cls), subject)
  dice = Dice(key, 2 * is_range.shape[0] + 24)
  spread, score = dice.spread(*is_range.shape), dice.unit(*group.shape)
  # In each group of traits the one with the highest score is chosen.
  rivals = jnp.where((group[:, None] == group[None, :]) & (group >= 0)[:, None], score[None, :], -1.0)
  chosen = (group >= 0) & (score >= jnp.max(rivals, axis=-1))
  is_face = (cls == _FACE).astype(jnp.int32)

  colour = dice.weighted(jnp.asarray(np.array([np.ones(11), list(_HAIR_WEIGHTS.values())], np.float32))[is_face])
  marking = dice.weighted(jnp.asarray(_MARKING_WEIGHTS, jnp.float32)[is_face])
  contrast = dice.index(4)
  tone = dice.spread(3, 4)
  shade = (1.0 + 0.22 * tone[:, :1]) * (1.0 + 0.07 * tone[:, 1:])
  accent = (colour + 1 + dice.index(10)) % 11
  params = dice.unit(3) * jnp.array([0.12, 1.0, 1.0]) + jnp.array([0.11, 0.0, 0.0])
  params = jnp.where(marking == _FRECKLED, params * jnp.array([0.1, 1.0, 1.0]) + jnp.array([0.03, 0.0, 0.0]), params)
  skins = jnp.asarray(linear(_SKINS), jnp.float32)
  position = dice.unit() * (len(_SKINS) - 1.001)
  step = jnp.floor(position)
  low = step.astype(jnp.int32)
  return Identity(
    traits=jnp.where(is_range, spread, jnp.where(chosen, 1.0, 0.0)),
    colour=colour,
    marking=marking,
    contrast=contrast,
    shade=shade,
    accent=accent,
    eye=jnp.asarray(linear(_EYES), jnp.float32)[dice.index(len(_EYES))],
    skin=skins[low] + (skins[low + 1] - skins[low]) * (position - step),
    marking_params=params,
  )


def coat(
  who: Identity, cls: Int[Array, ""], colour: Int[Array, ""], marking: Int[Array, ""], shine: Float[Array, ""]
) -> Coat:
  """Computes the colours and pattern of a toy, in its own colour and marking or in those that its labels give it."""
  words = jnp.asarray(linear(COLOURS), jnp.float32)
  contrasts = jnp.asarray(_CONTRAST)
  second = contrasts[who.colour, who.contrast]
  second = jnp.where(second == colour, contrasts[colour, who.contrast], second)
  own = colour == who.colour
  primary = jnp.clip(words[colour] * jnp.where(own, who.shade[0], 1.0), 0.0, 1.0)
  secondary = jnp.clip(words[second] * who.shade[1], 0.0, 1.0)
  freckle = who.skin * jnp.array([0.62, 0.45, 0.38])
  secondary = jnp.where(cls == _FACE, freckle, secondary)
  accent = jnp.clip(words[who.accent] * who.shade[2], 0.0, 1.0)
  return Coat(
    palette=jnp.stack([primary, secondary, accent, who.eye, who.skin]),
    pattern=jnp.asarray(_MARKING_PATTERNS)[marking],
    params=who.marking_params,
    shine=shine,
  )
