"""Where toys are: for each context light, sky, ground, and a rig of background geometry.

The camera looks along -z from some four units before the subject, which stands at the origin; backgrounds fill the wedge behind
it. Their traits, a to f, are jitter: they move things about, so that no two jungles are the same.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dreamjax.toybox import scene, vocabulary
from dreamjax.toybox.rig import WHITE, WOOD, Builder, Paint, Rig, Tables, Traits, flat, linear, make_tables, turn
from dreamjax.toybox.scene import Environment, Ground, Pattern

Colour = tuple[float, float, float]
_BARK, _LEAF, _PINE = flat(0.42, 0.29, 0.18, 0.02), flat(0.25, 0.55, 0.2, 0.05), flat(0.13, 0.36, 0.2, 0.03)


@dataclasses.dataclass(frozen=True)
class Setting:
  """Light, sky and ground of a context; colours are display RGB.

  Attributes:
    ground: a `Ground` and its three colours.
    scale: size of the ground's texture.
    zenith: the sky's colour overhead.
    horizon: and at the horizon, in which distant things fade.
    sun: the sun's colour times its strength.
    ambient: the other light.
    clouds: 0 to 1.
    stars: 0 to 1.
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
  sun: Colour = (1.05, 1.0, 0.9)
  ambient: Colour = (0.5, 0.55, 0.62)
  clouds: float = 0.5
  stars: float = 0.0
  haze: float = 0.02
  mirror: float = 0.0
  indoors: bool = False
  sink: float = 0.0


def _conifer(b: Builder, x: float, z: float, height: float, paint: Paint = _PINE) -> None:
  b.limb((x, 0, z), (x, 0.3 * height, z), 0.09, _BARK)
  for low, wide in ((0.15, 0.3), (0.42, 0.22), (0.66, 0.15)):
    b.quadric((x, (low + 0.19) * height, z), (wide * height, 0.22 * height, wide * height), paint, profile=scene.CONE)


def _tree(b: Builder, x: float, z: float, height: float, crown: Paint, wide: float = 0.36) -> None:
  b.limb((x, 0, z), (x, 0.6 * height, z), 0.1, _BARK, taper=0.7)
  b.quadric((x, 0.72 * height, z), (wide * height, 0.3 * height, wide * height), crown)
  b.quadric((x + 0.2 * height, 0.58 * height, z + 0.1), (0.24 * height, 0.18 * height, 0.24 * height), crown)


def _bush(b: Builder, x: float, z: float, size: float, paint: Paint = _LEAF) -> None:
  b.quadric((x, 0.6 * size, z), (1.2 * size, size, size), paint)


def _house(b: Builder, x: float, z: float, half: tuple[float, float, float], wall: Paint, roof: Paint) -> None:
  w, h, d = half
  b.box((x, h, z), (w, h, d), wall)
  b.box((x, 2 * h, z), (0.76 * w, 0.76 * w, 1.04 * d), roof, rotation=turn(z=45))
  b.box((x, 0.45 * h, z + d), (0.17 * w, 0.45 * h, 0.03), WOOD)
  for side in (-1, 1):
    b.box((x + side * 0.58 * w, 1.15 * h, z + d), (0.2 * w, 0.25 * h, 0.03), WHITE)
    b.box((x + side * 0.58 * w, 1.15 * h, z + d + 0.02), (0.16 * w, 0.2 * h, 0.03), flat(0.75, 0.88, 0.95, 0.8))


def _wall(b: Builder, colour: Colour, z: float = -2.6) -> None:
  b.box((0, 2.5, z), (9, 2.5, 0.1), Paint(colour, tuple(0.94 * c for c in colour), Pattern.STRIPES, (0.5, 0.2, 0.3, 0.0), gloss=0.0))
  b.box((0, 0.12, z + 0.12), (9, 0.12, 0.04), WHITE)


def _picture(b: Builder, x: float, y: float, z: float, paint: Paint) -> None:
  b.box((x, y, z), (0.42, 0.32, 0.04), WOOD)
  b.box((x, y, z + 0.02), (0.36, 0.26, 0.04), paint)


def _jungle(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    for x, z, r in ((-1.9 + 0.3 * t.a, -2.2, 0.2), (1.7 + 0.3 * t.b, -2.6, 0.24), (0.3 + 0.6 * t.c, -3.6, 0.18)):
      b.limb((x, 0, z), (x + 0.2 * t.d, 4.5, z), r, Paint((0.4, 0.3, 0.18), (0.3, 0.36, 0.16), Pattern.BANDS, (4.0, 0.0, 0.5, 0.0), gloss=0.02))
    for k, (x, y, z, lean) in enumerate((
      (-1.5, 0.35, -1.0, 35), (1.55, 0.4, -1.1, -35), (-0.9, 0.3, -1.9, 15), (1.0, 0.3, -2.0, -20), (-2.2, 0.8, -1.8, 50),
      (2.2, 0.9, -1.9, -50), (0.0, 0.5, -3.0, 5),
    )):  # fmt: skip
      green = flat(0.12 + 0.05 * (k % 3), 0.42 + 0.08 * (k % 2), 0.14, 0.35)
      b.quadric((x + 0.2 * t.e, y, z), (0.16, 0.7, 0.05), green, rotation=turn(z=lean, x=12))
      b.quadric((x + 0.2 * t.e + 0.18, 0.8 * y, z + 0.15), (0.14, 0.55, 0.05), green, rotation=turn(z=-0.7 * lean, x=24))
  b.limb((-0.9 + 0.4 * t.f, 4, -1.8), (-1.0 + 0.4 * t.f, 1.2, -1.8), 0.03, _LEAF)
  b.limb((1.1 + 0.4 * t.a, 4, -2.0), (1.2 + 0.4 * t.a, 1.5, -2.0), 0.03, _LEAF)
  _bush(b, -2.7, -3.4, 0.8)
  _bush(b, 2.7, -3.6, 0.9, flat(0.16, 0.45, 0.16, 0.05))


def _snow(b: Builder, t: Traits, v: str) -> None:
  snowy = Paint((0.16, 0.38, 0.26), (0.96, 0.97, 1.0), Pattern.CAP, (0.05, 0.5, 0.0, 0.0), gloss=0.05)
  with b.essential():
    _conifer(b, -1.7 + 0.4 * t.a, -2.6, 2.1, snowy)
    _conifer(b, 1.9 + 0.4 * t.b, -3.4, 2.5, snowy)
  _conifer(b, 0.5 + 0.6 * t.c, -5.0, 2.6, snowy)
  x = 1.35 + 0.25 * t.d
  for y, r in ((0.22, 0.24), (0.58, 0.17), (0.85, 0.12)):
    b.ball((x, y, -1.7), r, flat(0.97, 0.98, 1.0, 0.1))
  b.limb((x, 0.85, -1.6), (x, 0.83, -1.38), 0.03, flat(0.95, 0.5, 0.1), taper=0.1)
  b.quadric((-2.6, -0.05, -3.0), (1.6, 0.35, 1.0), flat(0.94, 0.96, 1.0, 0.05))


def _beach(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    b.box((0, 0.0, -7.6), (20, 0.012, 5.0), Paint((0.1, 0.5, 0.72), (0.1, 0.5, 0.72), gloss=0.6))
    b.box((0, 0.0, -2.72), (20, 0.014, 0.12), flat(0.95, 0.98, 1.0))
    x = -1.75 + 0.3 * t.a
    b.limb((x, 0, -1.9), (x + 0.3, 1.9, -2.0), 0.09, flat(0.6, 0.44, 0.27, 0.02), taper=0.7)
    for angle in (-150, -95, -40, 15, 70, 125):
      r = turn(y=angle) @ turn(z=-24)
      b.quadric(np.array([x + 0.3, 1.9, -2.0]) + r @ np.array([0.42, 0, 0]), (0.46, 0.035, 0.13), flat(0.2, 0.58, 0.24, 0.1), rotation=r)
  x = 1.6 + 0.25 * t.b
  b.limb((x, 0, -1.6), (x, 1.15, -1.6), 0.025, WHITE)
  b.quadric((x, 1.2, -1.6), (0.62, 0.17, 0.62), Paint((0.92, 0.25, 0.22), (0.97, 0.95, 0.9), Pattern.STRIPES, (0.3, 0.0, 0.4, 0.0)), profile=scene.DOME)
  b.ball((1.05 + 0.2 * t.c, 0.16, -0.9), 0.16, Paint((0.98, 0.8, 0.1), (0.15, 0.45, 0.9), Pattern.STRIPES, (0.16, 0.1, 0.5, 0.0), gloss=0.5))


def _cobblestone(b: Builder, t: Traits, v: str) -> None:
  walls = ((0.9, 0.78, 0.6), (0.85, 0.6, 0.5), (0.72, 0.78, 0.66))
  with b.essential():
    for k, x in enumerate((-2.3, 0.0, 2.3)):
      _house(b, x + 0.2 * t.a, -3.6 + 0.3 * (k % 2), (1.02, 0.85 + 0.15 * (k % 2), 0.5), flat(*walls[k], 0.02), flat(0.62, 0.3, 0.22, 0.05))
  x = -1.25 + 0.3 * t.b
  b.limb((x, 0, -1.6), (x, 1.5, -1.6), 0.035, flat(0.15, 0.17, 0.18, 0.4))
  b.ball((x, 1.58, -1.6), 0.11, flat(1.0, 0.92, 0.65, 0.3, 0.3))
  b.quadric((1.5 + 0.2 * t.c, 0.22, -2.2), (0.24, 0.24, 0.24), WOOD, profile=scene.BARREL)
  _bush(b, 1.9 + 0.2 * t.c, -2.3, 0.22)


def _fabric(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    for x, z, r in ((-1.8 + 0.4 * t.a, -2.0, 0.9), (1.6 + 0.4 * t.b, -2.4, 1.1), (0.0 + 0.5 * t.c, -3.4, 1.3)):
      b.quadric((x, -0.25, z), (r, 0.5, 0.6), flat(0.95, 0.56, 0.7, 0.05), rotation=turn(y=20))


def _wooden_floor(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _wall(b, (0.86, 0.84, 0.74))
  x = -0.9 + 0.5 * t.a
  _picture(b, x, 1.55, -2.46, Paint((0.3, 0.6, 0.8), (0.35, 0.65, 0.3), Pattern.CAP, (0.1, 1.0, 0.0, 0.0)))
  x = 1.7 + 0.25 * t.b
  b.quadric((x, 0.22, -2.0), (0.24, 0.22, 0.24), flat(0.75, 0.38, 0.25), profile=scene.frustum(0.75, 1.1))
  for lean in (-30, 0, 28):
    b.quadric((x - 0.012 * lean, 0.85, -2.0), (0.1, 0.5, 0.04), _LEAF, rotation=turn(z=lean))


def _city(b: Builder, t: Traits, v: str) -> None:
  night = (0.55, 0.62, 0.7)
  with b.essential():
    for k, (x, z, w, h) in enumerate((
      (-2.6, -5.5, 0.7, 2.0), (-1.0, -6.5, 0.65, 2.7), (0.5, -5.8, 0.6, 1.6), (2.0, -6.2, 0.75, 2.4), (3.6, -5.6, 0.7, 1.7),
      (-4.2, -6.0, 0.8, 1.5),
    )):  # fmt: skip
      tone = (0.5 + 0.12 * (k % 3), 0.52 + 0.06 * (k % 2), 0.58)
      windows = Paint(tone, (0.95, 0.93, 0.75), Pattern.WINDOWS, (0.26, 0.0, 0.75, 0.0), gloss=0.1)
      b.box((x + 0.3 * t.a, h, z), (w, h, w), windows)
      del tone
  b.limb((-1.0 + 0.3 * t.a, 5.3, -6.5), (-1.0 + 0.3 * t.a, 6.2, -6.5), 0.04, flat(*night))
  x = 1.5 + 0.3 * t.b
  b.limb((x, 0, -1.75), (x, 1.7, -1.75), 0.035, flat(0.2, 0.22, 0.24, 0.4))
  b.box((x - 0.18, 1.7, -1.75), (0.2, 0.03, 0.05), flat(0.9, 0.9, 0.8, 0.2, 0.2))
  b.box((-1.6 + 0.6 * t.c, 0.28, -3.0), (0.5, 0.13, 0.22), flat(0.95, 0.75, 0.1, 0.5))
  b.box((-1.6 + 0.6 * t.c, 0.48, -3.0), (0.28, 0.1, 0.2), flat(0.25, 0.35, 0.42, 0.8))


def _mountain(b: Builder, t: Traits, v: str) -> None:
  rock = Paint((0.45, 0.45, 0.52), (0.97, 0.98, 1.0), Pattern.CAP, (0.12, 0.9, 0.0, 0.0), gloss=0.02)
  with b.essential():
    for x, z, r, h in ((-3.2, -10.5, 3.2, 1.9), (0.4, -12.0, 3.8, 2.6), (4.2, -10.8, 3.0, 1.7)):
      b.quadric((x + 0.8 * t.a, h, z), (r, h, 2.6), rock, profile=scene.CONE)
  _conifer(b, -2.0 + 0.4 * t.b, -4.2, 1.4)
  _conifer(b, 2.2 + 0.4 * t.c, -4.6, 1.6)
  b.quadric((-3.0, -0.2, -6.0), (3.0, 0.6, 1.5), flat(0.36, 0.56, 0.26, 0.02))


def _blue_house(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    x = 0.25 + 0.5 * t.a
    _house(b, x, -4.0, (1.5, 0.85, 0.7), flat(0.22, 0.45, 0.86, 0.05), flat(0.62, 0.25, 0.2, 0.05))
    b.box((x + 0.75, 2.5, -4.0), (0.13, 0.4, 0.13), flat(0.6, 0.32, 0.26, 0.02))
  _tree(b, -2.3 + 0.2 * t.b, -3.6, 1.9, _LEAF)
  _bush(b, 2.1 + 0.2 * t.c, -2.9, 0.32)
  _bush(b, -1.4 + 0.2 * t.d, -2.9, 0.28)


def _purple_rug(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    edge = Paint((0.5, 0.16, 0.66), (0.9, 0.75, 0.35), Pattern.RINGS, (0.0, 0.0, 0.0, 0.0), gloss=0.0)
    b.box((0, 0.0, 0.1), (1.75, 0.012, 1.15), flat(0.86, 0.7, 0.3, 0.0))
    b.box((0, 0.0, 0.1), (1.65, 0.018, 1.05), edge)
    _conifer(b, -2.0 + 0.4 * t.a, -2.6, 2.4)
    _conifer(b, 1.8 + 0.4 * t.b, -2.8, 2.6)
    _conifer(b, 0.1 + 0.6 * t.c, -4.2, 3.0)
  _conifer(b, -3.4, -4.4, 3.0)
  _conifer(b, 3.3, -4.6, 3.0)


def _wheat(b: Builder, t: Traits, v: str) -> None:
  straw = flat(0.9, 0.74, 0.32, 0.02)
  with b.essential():
    b.quadric((-4.0 + t.a, -0.3, -9.0), (5.0, 1.1, 2.5), flat(0.84, 0.68, 0.28, 0.0))
    b.quadric((4.5 + t.b, -0.4, -10.0), (5.0, 1.4, 2.5), flat(0.78, 0.63, 0.24, 0.0))
    for k in range(9):
      x = -2.2 + 0.55 * k + 0.1 * t.c
      z = -1.5 - 0.45 * (k % 3)
      b.limb((x, 0, z), (x + 0.05, 0.62, z), 0.014, straw)
      b.quadric((x + 0.06, 0.72, z), (0.05, 0.15, 0.05), straw, rotation=turn(z=-12))
  b.quadric((1.9 + 0.3 * t.d, 0.33, -3.4), (0.5, 0.38, 0.5), straw, rotation=turn(z=90), profile=scene.CYLINDER)


def _autumn(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _tree(b, -1.7 + 0.3 * t.a, -2.6, 2.3, flat(0.9, 0.42, 0.08, 0.02))
    _tree(b, 1.7 + 0.3 * t.b, -3.2, 2.5, flat(0.82, 0.2, 0.1, 0.02))
  _tree(b, 0.1 + 0.5 * t.c, -5.0, 2.7, flat(0.95, 0.7, 0.12, 0.02))
  _tree(b, -3.4, -5.0, 2.6, flat(0.85, 0.33, 0.1, 0.02))
  _tree(b, 3.4, -5.4, 2.6, flat(0.93, 0.6, 0.1, 0.02))


def _tower(b: Builder, t: Traits, v: str) -> None:
  iron = Paint((0.5, 0.4, 0.32), (0.38, 0.3, 0.24), Pattern.CHECKER, (0.16, 0.0, 0.0, 0.0), gloss=0.1)
  with b.essential():
    x, z = 0.35 + 0.9 * t.a, -7.0
    for dx in (-1, 1):
      for dz in (-1, 1):
        b.limb((x + dx * 0.95, 0, z + dz * 0.95), (x + dx * 0.42, 1.35, z + dz * 0.42), 0.2, iron, taper=0.7)
    b.box((x, 1.4, z), (0.62, 0.08, 0.62), iron)
    b.limb((x, 1.4, z), (x, 2.6, z), 0.46, iron, taper=0.5)
    b.box((x, 2.65, z), (0.32, 0.06, 0.32), iron)
    b.limb((x, 2.6, z), (x, 5.2, z), 0.22, iron, taper=0.2)
    b.limb((x, 5.1, z), (x, 5.8, z), 0.03, iron)
  for x, z in ((-2.0, -3.6), (2.4, -3.8), (-2.8, -5.0)):
    b.quadric((x + 0.3 * t.b, 0.7, z), (0.28, 0.7, 0.28), flat(0.2, 0.45, 0.2, 0.02))


def _water(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    b.quadric((-5.0 + t.a, -0.2, -13.0), (5.0, 1.1, 2.0), flat(0.35, 0.55, 0.45, 0.0))
    b.quadric((5.5 + t.b, -0.2, -14.0), (6.0, 1.5, 2.0), flat(0.3, 0.5, 0.45, 0.0))
  x = -2.2 + 0.6 * t.c
  b.quadric((x, 0.03, -6.0), (0.45, 0.12, 0.16), WOOD)
  b.quadric((x, 0.62, -6.0), (0.34, 0.5, 0.03), WHITE, profile=scene.CONE)


def _milk(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    for k, (x, z, r) in enumerate(((-1.0, -0.5, 0.1), (-0.75, 0.35, 0.07), (0.95, -0.4, 0.09), (0.8, 0.45, 0.06), (-1.4, -1.4, 0.13), (1.5, -1.5, 0.12))):
      y = 0.12 + 0.1 * (k % 3)
      b.ball((x + 0.1 * t.a, y + 0.15, z), r, flat(0.99, 0.97, 0.93, 0.5))
      b.limb((x + 0.1 * t.a, -0.05, z), (x + 0.1 * t.a, y + 0.1, z), 1.1 * r, flat(0.99, 0.97, 0.93, 0.5), taper=0.3)


def _sunflowers(b: Builder, t: Traits, v: str) -> None:
  flower = Paint((0.99, 0.8, 0.08), (0.34, 0.2, 0.1), Pattern.RINGS, (0.48, 0.0, 0.0, 0.0), gloss=0.02)
  with b.essential():
    for k, (x, z, h) in enumerate((
      (-1.25, -0.7, 0.62), (1.25, -0.6, 0.55), (-1.9, -1.5, 0.95), (1.95, -1.6, 1.0), (-0.75, -1.9, 0.85), (0.8, -2.0, 0.95),
      (0.0, -2.7, 1.15), (-2.7, -2.8, 1.2), (2.8, -2.7, 1.2),
    )):  # fmt: skip
      x = x + 0.15 * (t.a if k % 2 else t.b)
      b.limb((x, 0, z), (x, h, z), 0.03, flat(0.3, 0.55, 0.2))
      b.quadric((x, h, z + 0.05), (0.24, 0.035, 0.24), flower, rotation=turn(x=78), profile=scene.CYLINDER)
      b.quadric((x + 0.12, 0.45 * h, z), (0.14, 0.03, 0.07), _LEAF, rotation=turn(z=25))


def _mirror(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _wall(b, (0.55, 0.66, 0.78), -3.4)
    b.limb((-2.0 + 0.4 * t.a, 0, -2.4), (-2.0 + 0.4 * t.a, 1.7, -2.4), 0.04, flat(0.85, 0.8, 0.6, 0.6))
    b.quadric((-2.0 + 0.4 * t.a, 1.8, -2.4), (0.34, 0.22, 0.34), flat(1.0, 0.9, 0.6, 0.1, 0.4), profile=scene.frustum(1.0, 0.6))


def _dirt_road(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    for k in range(4):
      for x in (-1.6, 1.5):
        z = -1.0 - 1.6 * k
        b.limb((x - 0.12 * z, 0, z), (x - 0.12 * z, 0.55, z), 0.05, WOOD)
    for x in (-1.6, 1.5):
      b.limb((x + 0.12, 0.42, -1.0), (x + 0.7, 0.42, -5.8), 0.03, WOOD)
  _tree(b, -2.6 + 0.3 * t.a, -4.4, 2.0, _LEAF)
  _bush(b, 2.7 + 0.3 * t.b, -3.8, 0.45)
  b.quadric((4.0, -0.3, -10.0), (5.0, 1.3, 2.0), flat(0.42, 0.6, 0.3, 0.0))


def _white_rug(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _wall(b, (0.62, 0.72, 0.7))
    b.quadric((0, 0.0, 0.05), (1.6, 0.02, 1.15), flat(0.97, 0.96, 0.94, 0.0), profile=scene.CYLINDER)
    b.quadric((0, 0.0, 0.05), (1.45, 0.03, 1.02), flat(0.99, 0.98, 0.97, 0.0), profile=scene.CYLINDER)
  x = 1.0 + 0.5 * t.a
  for at, half in (((x, 0.3, -1.95), (0.95, 0.2, 0.4)), ((x, 0.65, -2.25), (0.95, 0.35, 0.14))):
    b.box(at, half, flat(0.85, 0.5, 0.3, 0.02))
  _picture(b, -1.1 + 0.4 * t.b, 1.6, -2.46, Paint((0.95, 0.8, 0.3), (0.8, 0.3, 0.3), Pattern.RINGS, (0.5, 0.0, 0.0, 0.0)))


def _desert(b: Builder, t: Traits, v: str) -> None:
  cactus = Paint((0.25, 0.5, 0.26), (0.18, 0.4, 0.2), Pattern.BANDS, (6.0, 0.0, 0.5, 0.0), gloss=0.05)
  with b.essential():
    for x, z, r in ((-3.5 + t.a, -7.0, 3.4), (3.8 + t.b, -8.5, 4.0)):
      b.quadric((x, -0.5, z), (r, 1.15, 2.2), flat(0.9, 0.66, 0.38, 0.0))
    for x, z, h in ((-1.7 + 0.3 * t.c, -2.0, 1.25), (1.9 + 0.3 * t.d, -2.9, 1.5)):
      b.limb((x, 0, z), (x, h, z), 0.15, cactus)
      b.ball((x, h, z), 0.15, cactus)
      for side, y in ((-1, 0.5), (1, 0.7)):
        b.limb((x, y, z), (x + side * 0.34, y, z), 0.085, cactus)
        b.limb((x + side * 0.34, y - 0.02, z), (x + side * 0.34, y + 0.4, z), 0.085, cactus)
        b.ball((x + side * 0.34, y + 0.4, z), 0.085, cactus)
  b.quadric((0.9 + 0.3 * t.e, 0.08, -1.3), (0.26, 0.18, 0.2), flat(0.6, 0.45, 0.36, 0.02))


def _night(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    b.ball((-3.4 + 1.5 * t.a, 4.3, -14.0), 0.75, flat(0.98, 0.97, 0.85, 0.0, 0.9))
  dark = flat(0.1, 0.2, 0.16, 0.0)
  _conifer(b, -2.0 + 0.3 * t.b, -3.4, 2.0, dark)
  _conifer(b, 2.3 + 0.3 * t.c, -4.4, 2.4, dark)
  x = 0.6 + 0.6 * t.d
  b.box((x, 0.5, -6.0), (0.8, 0.5, 0.5), flat(0.3, 0.3, 0.4, 0.0))
  b.box((x, 1.0, -6.0), (0.6, 0.6, 0.52), flat(0.25, 0.17, 0.2, 0.0), rotation=turn(z=45))
  for side in (-1, 1):
    b.box((x + side * 0.35, 0.55, -5.5), (0.15, 0.17, 0.03), flat(1.0, 0.82, 0.35, 0.0, 0.8))
  for k in range(5):
    b.ball((-1.6 + 0.8 * k, 0.5 + 0.28 * (k % 3), -1.2 - 0.3 * (k % 2)), 0.022, flat(0.95, 1.0, 0.5, 0.0, 1.0))


def _studio(b: Builder, t: Traits, v: str) -> None:
  pass


_JITTER = ("a", "b", "c", "d", "e", "f")
_GREEN = ((0.36, 0.62, 0.24), (0.28, 0.52, 0.2), (0.5, 0.72, 0.3))

CONTEXTS: dict[str, tuple[Setting, Rig]] = {
  name: (setting, Rig(build, _JITTER))
  for name, setting, build in (
    ("jungle", Setting(Ground.GRASS, ((0.16, 0.4, 0.14), (0.12, 0.3, 0.1), (0.3, 0.5, 0.16)), zenith=(0.3, 0.6, 0.35), horizon=(0.62, 0.8, 0.52),
                       sun=(0.95, 1.0, 0.75), ambient=(0.42, 0.55, 0.4), clouds=0.0, haze=0.07), _jungle),
    ("snow", Setting(Ground.SNOW, ((0.96, 0.97, 1.0), (0.84, 0.89, 0.97), (1, 1, 1)), zenith=(0.5, 0.66, 0.85), horizon=(0.88, 0.92, 0.97),
                     sun=(0.9, 0.88, 0.85), ambient=(0.6, 0.65, 0.74), clouds=0.7, haze=0.04), _snow),
    ("beach", Setting(Ground.SAND, ((0.94, 0.85, 0.63), (0.86, 0.75, 0.52), (0.98, 0.93, 0.78)), zenith=(0.15, 0.5, 0.92), horizon=(0.7, 0.89, 0.98),
                      sun=(1.12, 1.05, 0.9), haze=0.006), _beach),
    ("cobblestone street", Setting(Ground.COBBLES, ((0.56, 0.53, 0.5), (0.44, 0.42, 0.41), (0.26, 0.24, 0.22)), haze=0.015), _cobblestone),
    ("pink fabric", Setting(Ground.FABRIC, ((0.98, 0.62, 0.75), (0.86, 0.42, 0.58), (1, 1, 1)), zenith=(0.98, 0.8, 0.86), horizon=(0.96, 0.64, 0.76),
                            ambient=(0.6, 0.52, 0.55), indoors=True, clouds=0.0), _fabric),
    ("wooden floor", Setting(Ground.PLANKS, ((0.72, 0.48, 0.27), (0.58, 0.37, 0.2), (0.4, 0.24, 0.12)), zenith=(0.9, 0.88, 0.8), horizon=(0.86, 0.84, 0.74),
                             ambient=(0.55, 0.54, 0.52), mirror=0.12, indoors=True, clouds=0.0, haze=0.0), _wooden_floor),
    ("city", Setting(Ground.STREET, ((0.3, 0.31, 0.33), (0.62, 0.6, 0.58), (0.95, 0.93, 0.85)), zenith=(0.4, 0.58, 0.82), horizon=(0.8, 0.82, 0.86),
                     haze=0.05), _city),
    ("mountain", Setting(Ground.GRASS, _GREEN, zenith=(0.2, 0.48, 0.88), haze=0.022, clouds=0.6), _mountain),
    ("blue house", Setting(Ground.GRASS, _GREEN), _blue_house),
    ("purple rug in a forest", Setting(Ground.LEAVES, ((0.24, 0.32, 0.14), (0.32, 0.4, 0.16), (0.4, 0.3, 0.16)), zenith=(0.45, 0.65, 0.55),
                                       horizon=(0.66, 0.78, 0.66), ambient=(0.46, 0.52, 0.48), clouds=0.0, haze=0.06), _purple_rug),
    ("wheat field", Setting(Ground.WHEAT, ((0.93, 0.76, 0.33), (0.78, 0.58, 0.2), (0.6, 0.42, 0.14)), sun=(1.15, 1.02, 0.82), haze=0.012), _wheat),
    ("autumn trees", Setting(Ground.LEAVES, ((0.5, 0.36, 0.18), (0.92, 0.5, 0.1), (0.84, 0.22, 0.1)), zenith=(0.5, 0.66, 0.86), horizon=(0.95, 0.87, 0.75),
                             sun=(1.15, 0.98, 0.8), haze=0.03), _autumn),
    ("tower", Setting(Ground.TILES, ((0.82, 0.78, 0.7), (0.76, 0.72, 0.64), (0.6, 0.56, 0.5)), zenith=(0.45, 0.6, 0.85), horizon=(0.96, 0.88, 0.84),
                      sun=(1.1, 0.98, 0.86), haze=0.025), _tower),
    ("water", Setting(Ground.WATER, ((0.08, 0.42, 0.62), (0.16, 0.55, 0.74), (0.85, 0.95, 1.0)), mirror=0.5, haze=0.012, sink=0.1), _water),
    ("milk", Setting(Ground.MILK, ((0.99, 0.97, 0.93), (0.94, 0.91, 0.87), (1, 1, 1)), zenith=(0.98, 0.9, 0.78), horizon=(0.99, 0.95, 0.88),
                     ambient=(0.64, 0.61, 0.58), mirror=0.3, clouds=0.0, haze=0.05, sink=0.1), _milk),
    ("sunflowers", Setting(Ground.GRASS, _GREEN, clouds=0.4), _sunflowers),
    ("mirror", Setting(Ground.PLAIN, ((0.62, 0.7, 0.76), (0.62, 0.7, 0.76), (1, 1, 1)), zenith=(0.62, 0.72, 0.84), horizon=(0.5, 0.6, 0.72), mirror=0.9,
                       indoors=True, clouds=0.0, haze=0.0), _mirror),
    ("dirt road", Setting(Ground.ROAD, ((0.68, 0.5, 0.32), (0.4, 0.6, 0.24), (0.3, 0.5, 0.2))), _dirt_road),
    ("white rug", Setting(Ground.PLANKS, ((0.45, 0.29, 0.18), (0.36, 0.23, 0.14), (0.22, 0.14, 0.08)), zenith=(0.7, 0.78, 0.76), horizon=(0.62, 0.72, 0.7),
                          ambient=(0.56, 0.55, 0.53), indoors=True, clouds=0.0, haze=0.0), _white_rug),
    ("desert", Setting(Ground.SAND, ((0.93, 0.68, 0.38), (0.82, 0.54, 0.28), (0.98, 0.8, 0.5)), zenith=(0.2, 0.55, 0.9), horizon=(0.98, 0.88, 0.7),
                       sun=(1.2, 1.05, 0.82), clouds=0.0, haze=0.012), _desert),
    ("night", Setting(Ground.GRASS, ((0.12, 0.22, 0.2), (0.09, 0.17, 0.17), (0.16, 0.28, 0.24)), zenith=(0.03, 0.04, 0.16), horizon=(0.14, 0.17, 0.36),
                      sun=(0.52, 0.58, 0.8), ambient=(0.22, 0.25, 0.38), clouds=0.0, stars=1.0, haze=0.02), _night),
    ("studio", Setting(Ground.PLAIN, ((0.8, 0.8, 0.82), (0.8, 0.8, 0.82), (0.8, 0.8, 0.82)), zenith=(0.9, 0.9, 0.92), horizon=(0.8, 0.8, 0.82),
                       ambient=(0.6, 0.6, 0.62), indoors=True, clouds=0.0, haze=0.1), _studio),
  )
}  # fmt: skip


@functools.cache
def tables() -> Tables:
  """The backgrounds' tables, in the order of `vocabulary.CONTEXTS`."""
  return make_tables([CONTEXTS[name][1] for name in vocabulary.CONTEXTS])


@functools.cache
def _settings() -> dict[str, np.ndarray]:
  """Each field of the settings as one array over contexts; colours linear."""
  settings = [CONTEXTS[name][0] for name in vocabulary.CONTEXTS]
  colours = {"colours", "zenith", "horizon", "sun", "ambient"}
  return {
    f.name: np.array([linear(v) if f.name in colours else v for s in settings for v in [getattr(s, f.name)]], np.int32 if f.name == "ground" else np.float32)
    for f in dataclasses.fields(Setting)
  }  # fmt: skip


def sink(context: Int[Array, ""]) -> Float[Array, ""]:
  """How far below the ground a subject's feet are in a context."""
  return jnp.asarray(_settings()["sink"])[context]


def environment(context: Int[Array, ""], sun: Float[Array, " 3"], seed: Int[Array, ""]) -> Environment:
  """Light, sky and ground of a context, with the sun in direction `sun`; `seed` shifts the noise."""
  row = {name: jnp.asarray(value)[context] for name, value in _settings().items()}
  return Environment(
    sun=sun,
    sun_colour=row["sun"] * 1.15,
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
