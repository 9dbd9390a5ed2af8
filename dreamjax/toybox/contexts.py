"""The contexts that toys are in: light, sky and ground of each. Their geometry is in `backgrounds`."""

import dataclasses
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from dreamjax.toybox import backgrounds, vocabulary
from dreamjax.toybox.rig import Tables, linear, make_tables
from dreamjax.toybox.scene import Environment, Ground

Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Setting:
  """Light, sky and ground of a context; colours are display RGB.

  Attributes:
    ground: a `Ground` and its three colours.
    scale: size of the ground's texture.
    zenith: the sky's colour overhead.
    horizon: the sky's colour at the horizon, which is also that of the haze.
    sun: the sun's colour.
    ambient: light from all directions.
    clouds: their density, 0 to 1.
    stars: their brightness, 0 to 1.
    haze: share of haze per unit of distance.
    mirror: share of light that the ground reflects.
    indoors: whether the sky is a wall.
    sink: how far below the ground the subject's feet are (in water).
  """

  ground: Ground
  colours: tuple[Colour, Colour, Colour]
  scale: float = 1.0
  zenith: Colour = (0.25, 0.52, 0.9)
  horizon: Colour = (0.75, 0.87, 0.97)
  sun: Colour = (1.0, 1.0, 0.9)
  ambient: Colour = (0.5, 0.55, 0.62)
  clouds: float = 0.5
  stars: float = 0.0
  haze: float = 0.02
  mirror: float = 0.0
  indoors: bool = False
  sink: float = 0.0


_GREEN = ((0.36, 0.62, 0.24), (0.28, 0.52, 0.2), (0.5, 0.72, 0.3))

SETTINGS: dict[str, Setting] = {
  "jungle": Setting(
    Ground.GRASS,
    ((0.16, 0.4, 0.14), (0.12, 0.3, 0.1), (0.3, 0.5, 0.16)),
    zenith=(0.3, 0.6, 0.35),
    horizon=(0.62, 0.8, 0.52),
    sun=(0.95, 1.0, 0.75),
    ambient=(0.42, 0.55, 0.4),
    clouds=0.0,
    haze=0.07,
  ),
  "snow": Setting(
    Ground.SNOW,
    ((0.96, 0.97, 1.0), (0.84, 0.89, 0.97), (1, 1, 1)),
    zenith=(0.5, 0.66, 0.85),
    horizon=(0.88, 0.92, 0.97),
    sun=(0.9, 0.88, 0.85),
    ambient=(0.6, 0.65, 0.74),
    clouds=0.7,
    haze=0.04,
  ),
  "beach": Setting(
    Ground.SAND,
    ((0.94, 0.85, 0.63), (0.86, 0.75, 0.52), (0.98, 0.93, 0.78)),
    zenith=(0.15, 0.5, 0.92),
    horizon=(0.7, 0.89, 0.98),
    sun=(1.0, 1.0, 0.9),
    haze=0.006,
  ),
  "cobblestone street": Setting(
    Ground.COBBLES, ((0.56, 0.53, 0.5), (0.44, 0.42, 0.41), (0.26, 0.24, 0.22)), haze=0.015
  ),
  "pink fabric": Setting(
    Ground.FABRIC,
    ((0.98, 0.62, 0.75), (0.86, 0.42, 0.58), (1, 1, 1)),
    zenith=(0.98, 0.8, 0.86),
    horizon=(0.96, 0.64, 0.76),
    ambient=(0.6, 0.52, 0.55),
    indoors=True,
    clouds=0.0,
  ),
  "wooden floor": Setting(
    Ground.PLANKS,
    ((0.72, 0.48, 0.27), (0.58, 0.37, 0.2), (0.4, 0.24, 0.12)),
    zenith=(0.9, 0.88, 0.8),
    horizon=(0.86, 0.84, 0.74),
    ambient=(0.55, 0.54, 0.52),
    mirror=0.12,
    indoors=True,
    clouds=0.0,
    haze=0.0,
  ),
  "city": Setting(
    Ground.STREET,
    ((0.3, 0.31, 0.33), (0.62, 0.6, 0.58), (0.95, 0.93, 0.85)),
    zenith=(0.4, 0.58, 0.82),
    horizon=(0.8, 0.82, 0.86),
    haze=0.05,
  ),
  "mountain": Setting(Ground.GRASS, _GREEN, zenith=(0.2, 0.48, 0.88), haze=0.022, clouds=0.6),
  "blue house": Setting(Ground.GRASS, _GREEN),
  "purple rug in a forest": Setting(
    Ground.LEAVES,
    ((0.24, 0.32, 0.14), (0.32, 0.4, 0.16), (0.4, 0.3, 0.16)),
    zenith=(0.45, 0.65, 0.55),
    horizon=(0.66, 0.78, 0.66),
    ambient=(0.46, 0.52, 0.48),
    clouds=0.0,
    haze=0.06,
  ),
  "wheat field": Setting(
    Ground.WHEAT, ((0.93, 0.76, 0.33), (0.78, 0.58, 0.2), (0.6, 0.42, 0.14)), sun=(1.0, 1.0, 0.82), haze=0.012
  ),
  "autumn trees": Setting(
    Ground.LEAVES,
    ((0.5, 0.36, 0.18), (0.92, 0.5, 0.1), (0.84, 0.22, 0.1)),
    zenith=(0.5, 0.66, 0.86),
    horizon=(0.95, 0.87, 0.75),
    sun=(1.0, 0.98, 0.8),
    haze=0.03,
  ),
  "tower": Setting(
    Ground.TILES,
    ((0.82, 0.78, 0.7), (0.76, 0.72, 0.64), (0.6, 0.56, 0.5)),
    zenith=(0.45, 0.6, 0.85),
    horizon=(0.96, 0.88, 0.84),
    sun=(1.0, 0.98, 0.86),
    haze=0.025,
  ),
  "water": Setting(
    Ground.WATER, ((0.08, 0.42, 0.62), (0.16, 0.55, 0.74), (0.85, 0.95, 1.0)), mirror=0.5, haze=0.012, sink=0.1
  ),
  "milk": Setting(
    Ground.MILK,
    ((0.99, 0.97, 0.93), (0.94, 0.91, 0.87), (1, 1, 1)),
    zenith=(0.98, 0.9, 0.78),
    horizon=(0.99, 0.95, 0.88),
    ambient=(0.64, 0.61, 0.58),
    mirror=0.3,
    clouds=0.0,
    haze=0.05,
    sink=0.1,
  ),
  "sunflowers": Setting(Ground.GRASS, _GREEN, clouds=0.4),
  "mirror": Setting(
    Ground.PLAIN,
    ((0.62, 0.7, 0.76), (0.62, 0.7, 0.76), (1, 1, 1)),
    zenith=(0.62, 0.72, 0.84),
    horizon=(0.5, 0.6, 0.72),
    mirror=0.9,
    indoors=True,
    clouds=0.0,
    haze=0.0,
  ),
  "dirt road": Setting(Ground.ROAD, ((0.68, 0.5, 0.32), (0.4, 0.6, 0.24), (0.3, 0.5, 0.2))),
  "white rug": Setting(
    Ground.PLANKS,
    ((0.45, 0.29, 0.18), (0.36, 0.23, 0.14), (0.22, 0.14, 0.08)),
    zenith=(0.7, 0.78, 0.76),
    horizon=(0.62, 0.72, 0.7),
    ambient=(0.56, 0.55, 0.53),
    indoors=True,
    clouds=0.0,
    haze=0.0,
  ),
  "desert": Setting(
    Ground.SAND,
    ((0.93, 0.68, 0.38), (0.82, 0.54, 0.28), (0.98, 0.8, 0.5)),
    zenith=(0.2, 0.55, 0.9),
    horizon=(0.98, 0.88, 0.7),
    sun=(1.0, 1.0, 0.82),
    clouds=0.0,
    haze=0.012,
  ),
  "night": Setting(
    Ground.GRASS,
    ((0.12, 0.22, 0.2), (0.09, 0.17, 0.17), (0.16, 0.28, 0.24)),
    zenith=(0.03, 0.04, 0.16),
    horizon=(0.14, 0.17, 0.36),
    sun=(0.66, 0.72, 0.92),
    ambient=(0.3, 0.33, 0.46),
    clouds=0.0,
    stars=1.0,
    haze=0.02,
  ),
  "studio": Setting(
    Ground.PLAIN,
    ((0.8, 0.8, 0.82), (0.8, 0.8, 0.82), (0.8, 0.8, 0.82)),
    zenith=(0.9, 0.9, 0.92),
    horizon=(0.8, 0.8, 0.82),
    ambient=(0.6, 0.6, 0.62),
    indoors=True,
    clouds=0.0,
    haze=0.1,
  ),
}


@functools.cache
def tables() -> Tables:
  """Returns the blend-shape tables of the backgrounds, in the order of `vocabulary.CONTEXTS`."""
  return make_tables([backgrounds.RIGS[name] for name in vocabulary.CONTEXTS])


@functools.cache
def _settings() -> dict[str, np.ndarray]:
  """Each field of the settings as one array over contexts; colours linear."""
  settings = [SETTINGS[name] for name in vocabulary.CONTEXTS]
  colours = {"colours", "zenith", "horizon", "sun", "ambient"}
  table = {}
  for field in dataclasses.fields(Setting):
    values = np.array([getattr(setting, field.name) for setting in settings])
    dtype = np.int32 if field.name == "ground" else np.float32
    table[field.name] = (linear(values) if field.name in colours else values).astype(dtype)
  return table


def sink(context: Int[Array, ""]) -> Float[Array, ""]:
  """Returns how far below the ground a subject's feet are in a context."""
  return jnp.asarray(_settings()["sink"])[context]


def environment(context: Int[Array, ""], sun: Float[Array, " 3"], seed: Int[Array, ""]) -> Environment:
  """Returns light, sky and ground of a context, with the sun in direction `sun`; `seed` shifts the noise."""
  row = {name: jnp.asarray(value)[context] for name, value in _settings().items()}
  return Environment(
    sun=sun,
    sun_colour=1.15 * row["sun"],
    ambient=row["ambient"],
    zenith=row["zenith"],
    horizon=row["horizon"],
    clouds=row["clouds"],
    stars=row["stars"],
    haze=row["haze"],
    ground=row["ground"],
    ground_colours=row["colours"],
    ground_scale=row["scale"],
    mirror=row["mirror"],
    seed=seed,
    indoors=row["indoors"],
  )
