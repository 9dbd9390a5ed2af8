"""Background geometry: for each context a rig that fills the wedge behind the subject.

The camera looks along -z from some two units in front of the subject, which stands at the origin. The rigs' traits, a
to f, are jitter: they move things, so that no two jungles are the same.
"""

import numpy as np

from dreamjax.toybox import scene
from dreamjax.toybox.rig import WHITE, WOOD, Builder, Paint, Rig, Traits, flat, turn
from dreamjax.toybox.scene import Pattern

_BARK, _LEAF, _PINE = flat(0.42, 0.29, 0.18, 0.02), flat(0.25, 0.55, 0.2, 0.05), flat(0.13, 0.36, 0.2, 0.03)


def _across(u: float, z: float) -> float:
  """x of the point at depth z whose horizontal position in the image is `u`: -1 at its left edge, 1 at its right."""
  return u * 0.31 * (2.2 - z)


def _conifer(b: Builder, u: float, z: float, height: float, paint: Paint = _PINE) -> None:
  x = _across(u, z)
  b.limb((x, 0, z), (x, 0.3 * height, z), 0.05 * height, _BARK)
  for low, wide in ((0.15, 0.3), (0.42, 0.22), (0.66, 0.15)):
    radii = (wide * height, 0.22 * height, wide * height)
    b.quadric((x, (low + 0.19) * height, z), radii, paint, profile=scene.CONE)


def _tree(b: Builder, u: float, z: float, height: float, crown: Paint) -> None:
  x = _across(u, z)
  b.limb((x, 0, z), (x, 0.6 * height, z), 0.05 * height, _BARK, taper=0.7)
  b.quadric((x, 0.7 * height, z), (0.34 * height, 0.29 * height, 0.34 * height), crown)
  b.quadric((x + 0.2 * height, 0.56 * height, z + 0.1), (0.22 * height, 0.17 * height, 0.22 * height), crown)


def _bush(b: Builder, u: float, z: float, size: float, paint: Paint = _LEAF) -> None:
  b.quadric((_across(u, z), 0.6 * size, z), (1.2 * size, size, size), paint)


def _hill(b: Builder, u: float, z: float, radii: tuple[float, float], paint: Paint) -> None:
  b.quadric((_across(u, z), -0.2, z), (*radii, 2.0), paint)


def _house(
  b: Builder, u: float, z: float, half: tuple[float, float, float], wall: Paint, roof: Paint, *, chimney: bool = False
) -> None:
  """A house with a gable roof (a box on its edge), a door and two windows."""
  x = _across(u, z)
  w, h, d = half
  b.box((x, h, z), (w, h, d), wall)
  with b.frame((x, 2 * h - 0.02, z)):
    slope = 0.62 * w
    b.box((0, 0, 0), (slope, slope, 0.97 * d), roof, rotation=turn(z=45))
  if chimney:
    b.box((x + 0.5 * w, 2 * h + 0.75 * w, z), (0.09 * w, 0.3 * w, 0.09 * w), flat(0.6, 0.32, 0.26, 0.02))
  b.box((x, 0.45 * h, z + d), (0.17 * w, 0.45 * h, 0.03), WOOD)
  for side in (-1, 1):
    at = np.array([x + side * 0.58 * w, 1.1 * h, z + d])
    b.box(at, (0.22 * w, 0.32 * h, 0.03), WHITE)
    b.box(at + np.array([0, 0, 0.02]), (0.17 * w, 0.25 * h, 0.03), flat(0.75, 0.88, 0.95, 0.8))


def _wall(b: Builder, colour: tuple[float, float, float], z: float = -2.0) -> None:
  """The wall of a room, papered in faint stripes, with its skirting board."""
  paper = Paint(colour, tuple(0.93 * c for c in colour), Pattern.CHECKER, (0.32, 0.0, 0.0, 0.0), gloss=0.0)
  b.box((0, 2.5, z - 0.1), (9, 2.5, 0.1), paper)
  b.box((0, 0.08, z + 0.02), (9, 0.08, 0.03), WHITE)


def _image(b: Builder, u: float, y: float, paint: Paint, z: float = -1.96) -> None:
  x = _across(u, z)
  b.box((x, y, z), (0.3, 0.23, 0.03), WOOD)
  b.box((x, y, z + 0.02), (0.25, 0.18, 0.03), paint)


def _jungle(b: Builder, t: Traits, v: str) -> None:
  trunk = Paint((0.42, 0.31, 0.18), (0.3, 0.36, 0.16), Pattern.BANDS, (5.0, 0.0, 0.5, 0.0), gloss=0.02)
  with b.essential():
    for u, z, r in ((-0.75 + 0.12 * t.a, -2.0, 0.12), (0.7 + 0.12 * t.b, -2.5, 0.15), (0.1 + 0.3 * t.c, -3.6, 0.15)):
      x = _across(u, z)
      b.limb((x, 0, z), (x + 0.12 * t.d, 4.5, z), r, trunk)
    for k, (u, y, z, lean) in enumerate((
      (-0.95, 0.35, -0.7, 30), (0.95, 0.36, -0.8, -30), (-0.5, 0.32, -1.7, 14), (0.52, 0.34, -1.8, -16),
      (-0.9, 0.95, -1.6, 62), (0.9, 1.0, -1.7, -62), (0.0, 0.4, -2.6, 5),
    )):  # fmt: skip
      x = _across(u + 0.05 * t.e, z)
      green = flat(0.1 + 0.06 * (k % 3), 0.44 + 0.09 * (k % 2), 0.14, 0.35)
      b.quadric((x, y, z), (0.15, 0.52, 0.04), green, rotation=turn(z=lean, x=12))
      b.quadric((x + 0.15, 0.8 * y, z + 0.12), (0.12, 0.42, 0.04), green, rotation=turn(z=-0.7 * lean, x=24))
  for u, z in ((-0.35 + 0.2 * t.f, -1.8), (0.4 + 0.2 * t.a, -2.1)):
    b.limb((_across(u, z), 4, z), (_across(u, z), 0.95, z), 0.022, _LEAF)
  _bush(b, -0.9, -3.4, 0.55)
  _bush(b, 0.85, -3.6, 0.6, flat(0.16, 0.45, 0.16, 0.05))


def _snow(b: Builder, t: Traits, v: str) -> None:
  snowy = Paint((0.16, 0.38, 0.26), (0.96, 0.97, 1.0), Pattern.CAP, (0.05, 0.5, 0.0, 0.0), gloss=0.05)
  white = flat(0.97, 0.98, 1.0, 0.1)
  with b.essential():
    _conifer(b, -0.72 + 0.15 * t.a, -2.4, 1.45, snowy)
    _conifer(b, 0.68 + 0.15 * t.b, -3.4, 1.75, snowy)
  _conifer(b, 0.05 + 0.25 * t.c, -5.0, 1.8, snowy)
  x = _across(0.82 + 0.1 * t.d, -1.2)
  for y, r in ((0.17, 0.19), (0.45, 0.14), (0.67, 0.1)):
    b.ball((x, y, -1.2), r, white)
  b.limb((x, 0.67, -1.12), (x, 0.66, -0.94), 0.025, flat(0.95, 0.5, 0.1), taper=0.1)
  _hill(b, -0.8, -4.5, (2.0, 0.5), white)


def _beach(b: Builder, t: Traits, v: str) -> None:
  palm = flat(0.2, 0.58, 0.24, 0.1)
  with b.essential():
    b.box((0, 0.0, -13.3), (30, 0.012, 10.5), flat(0.1, 0.5, 0.75, 0.3))
    b.box((0, 0.0, -2.72), (30, 0.014, 0.1), flat(0.95, 0.98, 1.0))
    x = _across(-0.8 + 0.1 * t.a, -1.6)
    b.limb((x, 0, -1.6), (x + 0.2, 1.15, -1.7), 0.06, flat(0.6, 0.44, 0.27, 0.02), taper=0.7)
    for angle in (-150, -95, -40, 15, 70, 125):
      r = turn(y=angle) @ turn(z=-24)
      b.quadric(np.array([x + 0.2, 1.15, -1.7]) + r @ np.array([0.27, 0, 0]), (0.3, 0.025, 0.09), palm, rotation=r)
  x = _across(0.78 + 0.1 * t.b, -1.4)
  stripes = Paint((0.92, 0.25, 0.22), (0.97, 0.95, 0.9), Pattern.STRIPES, (0.25, 0.0, 0.4, 0.0))
  b.limb((x, 0, -1.4), (x, 0.85, -1.4), 0.02, WHITE)
  b.quadric((x, 0.92, -1.4), (0.42, 0.12, 0.42), stripes, profile=scene.DOME)
  ball = Paint((0.98, 0.8, 0.1), (0.15, 0.45, 0.9), Pattern.STRIPES, (0.14, 0.1, 0.5, 0.0), gloss=0.5)
  b.ball((_across(0.72 + 0.15 * t.c, -0.6), 0.13, -0.6), 0.13, ball)


def _cobblestone(b: Builder, t: Traits, v: str) -> None:
  walls = ((0.92, 0.8, 0.6), (0.86, 0.58, 0.48), (0.7, 0.78, 0.66))
  roof = flat(0.55, 0.27, 0.2, 0.05)
  with b.essential():
    for k, u in enumerate((-0.9, 0.0, 0.9)):
      _house(b, u + 0.06 * t.a, -3.6 - 0.3 * (k % 2), (0.8, 0.48 + 0.05 * (k % 2), 0.5), flat(*walls[k], 0.02), roof)
  x = _across(-0.8 + 0.1 * t.b, -1.2)
  b.limb((x, 0, -1.2), (x, 1.0, -1.2), 0.025, flat(0.15, 0.17, 0.18, 0.4))
  b.ball((x, 1.06, -1.2), 0.08, flat(1.0, 0.92, 0.65, 0.3, 0.3))
  x = _across(0.8 + 0.1 * t.c, -1.4)
  b.quadric((x, 0.17, -1.4), (0.17, 0.17, 0.17), WOOD, profile=scene.BARREL)
  b.ball((x, 0.42, -1.4), 0.17, _LEAF)


def _fabric(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    for u, z, r in ((-0.7 + 0.2 * t.a, -1.5, 0.8), (0.7 + 0.2 * t.b, -1.9, 0.9), (0.0 + 0.3 * t.c, -2.6, 1.3)):
      b.quadric((_across(u, z), -0.25, z), (r, 0.5, 0.6), flat(0.95, 0.56, 0.7, 0.05), rotation=turn(y=20))


def _wooden_floor(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _wall(b, (0.9, 0.88, 0.78))
  meadow = Paint((0.35, 0.65, 0.3), (0.4, 0.7, 0.9), Pattern.CAP, (0.1, 1.0, 0.0, 0.0))
  _image(b, -0.5 + 0.2 * t.a, 1.1, meadow)
  x = _across(0.8 + 0.1 * t.b, -1.6)
  b.quadric((x, 0.15, -1.6), (0.16, 0.15, 0.16), flat(0.75, 0.38, 0.25), profile=scene.frustum(0.75, 1.1))
  for lean in (-30, 0, 28):
    b.quadric((x - 0.008 * lean, 0.58, -1.6), (0.07, 0.34, 0.03), _LEAF, rotation=turn(z=lean))


def _city(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    for k, (u, z, w, h) in enumerate((
      (-0.85, -5.5, 0.5, 0.95), (-0.42, -6.5, 0.45, 1.2), (0.05, -5.8, 0.42, 0.8), (0.45, -6.4, 0.5, 1.1),
      (0.88, -5.6, 0.5, 0.8), (-1.2, -6.0, 0.6, 0.7),
    )):  # fmt: skip
      tone = (0.42 + 0.14 * (k % 3), 0.46 + 0.06 * (k % 2), 0.55)
      windows = Paint(tone, (0.98, 0.95, 0.72), Pattern.WINDOWS, (0.2, 0.0, 0.75, 0.0), gloss=0.1)
      b.box((_across(u + 0.06 * t.a, z), h, z), (w, h, w), windows)
  x = _across(-0.42 + 0.06 * t.a, -6.5)
  b.limb((x, 2.4, -6.5), (x, 2.8, -6.5), 0.03, flat(0.55, 0.62, 0.7))
  x = _across(0.85 + 0.1 * t.b, -1.3)
  b.limb((x, 0, -1.3), (x, 1.05, -1.3), 0.025, flat(0.2, 0.22, 0.24, 0.4))
  b.box((x - 0.12, 1.05, -1.3), (0.14, 0.025, 0.04), flat(0.9, 0.9, 0.8, 0.2, 0.2))
  x = _across(-0.6 + 0.3 * t.c, -2.6)
  b.box((x, 0.19, -2.6), (0.4, 0.1, 0.17), flat(0.95, 0.75, 0.1, 0.5))
  b.box((x, 0.34, -2.6), (0.22, 0.08, 0.15), flat(0.25, 0.35, 0.42, 0.8))


def _mountain(b: Builder, t: Traits, v: str) -> None:
  rock = Paint((0.45, 0.45, 0.52), (0.97, 0.98, 1.0), Pattern.CAP, (0.05, 0.9, 0.0, 0.0), gloss=0.02)
  with b.essential():
    for u, z, r, h in ((-0.7, -10.5, 2.6, 0.95), (0.15, -12.0, 3.1, 1.35), (0.95, -10.8, 2.5, 0.85)):
      b.quadric((_across(u + 0.15 * t.a, z), h, z), (r, h, 2.2), rock, profile=scene.CONE)
  _conifer(b, -0.75 + 0.15 * t.b, -3.4, 1.0)
  _conifer(b, 0.8 + 0.15 * t.c, -3.8, 1.15)
  _hill(b, -0.7, -6.0, (2.2, 0.6), flat(0.36, 0.56, 0.26, 0.02))


def _blue_house(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _house(
      b,
      0.12 + 0.22 * t.a,
      -3.6,
      (1.0, 0.48, 0.6),
      flat(0.16, 0.4, 0.92, 0.05),
      flat(0.6, 0.24, 0.2, 0.05),
      chimney=True,
    )
  _tree(b, -0.85 + 0.08 * t.b, -2.8, 1.2, _LEAF)
  _bush(b, 0.9 + 0.08 * t.c, -2.4, 0.2)
  _bush(b, -0.55 + 0.1 * t.d, -2.4, 0.18)


def _purple_rug(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    b.box((0, 0.0, 0.05), (1.05, 0.01, 0.72), flat(0.9, 0.74, 0.3, 0.0))
    b.box((0, 0.0, 0.05), (0.98, 0.016, 0.65), flat(0.52, 0.14, 0.72, 0.0))
    _conifer(b, -0.75 + 0.15 * t.a, -2.0, 1.5)
    _conifer(b, 0.72 + 0.15 * t.b, -2.3, 1.6)
    _conifer(b, 0.05 + 0.25 * t.c, -3.6, 1.8)
  _conifer(b, -0.95, -4.0, 2.0)
  _conifer(b, 0.95, -4.2, 2.0)


def _wheat(b: Builder, t: Traits, v: str) -> None:
  straw = flat(0.92, 0.75, 0.3, 0.02)
  with b.essential():
    _hill(b, -0.7 + 0.2 * t.a, -9.0, (3.6, 1.0), flat(0.86, 0.7, 0.28, 0.0))
    _hill(b, 0.8 + 0.2 * t.b, -10.0, (3.8, 1.2), flat(0.8, 0.64, 0.24, 0.0))
    for k in range(11):
      z = -1.0 - 0.4 * (k % 3)
      x = _across(-1.0 + 0.2 * k + 0.05 * t.c, z)
      b.limb((x, 0, z), (x + 0.03, 0.52, z), 0.012, straw)
      b.quadric((x + 0.04, 0.6, z), (0.045, 0.13, 0.045), straw, rotation=turn(z=-12))
  bale = (_across(0.75 + 0.15 * t.d, -3.0), 0.24, -3.0)
  b.quadric(bale, (0.26, 0.3, 0.26), straw, rotation=turn(z=90), profile=scene.CYLINDER)


def _autumn(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _tree(b, -0.7 + 0.12 * t.a, -2.2, 1.45, flat(0.92, 0.42, 0.06, 0.02))
    _tree(b, 0.68 + 0.12 * t.b, -2.8, 1.6, flat(0.82, 0.2, 0.1, 0.02))
  _tree(b, 0.05 + 0.25 * t.c, -4.4, 1.7, flat(0.95, 0.7, 0.12, 0.02))
  _tree(b, -0.9, -5.2, 1.8, flat(0.85, 0.33, 0.1, 0.02))
  _tree(b, 0.92, -5.6, 1.8, flat(0.93, 0.6, 0.1, 0.02))


def _tower(b: Builder, t: Traits, v: str) -> None:
  iron = Paint((0.5, 0.4, 0.32), (0.36, 0.28, 0.22), Pattern.CHECKER, (0.1, 0.0, 0.0, 0.0), gloss=0.1)
  z = -6.0
  with b.essential():
    x = _across(0.55 + 0.2 * t.a, z)
    for dx in (-1, 1):
      for dz in (-1, 1):
        b.limb((x + dx * 0.52, 0, z + dz * 0.5), (x + dx * 0.24, 0.7, z + dz * 0.24), 0.13, iron, taper=0.7)
    b.box((x, 0.74, z), (0.36, 0.05, 0.36), iron)
    b.limb((x, 0.74, z), (x, 1.25, z), 0.27, iron, taper=0.55)
    b.box((x, 1.27, z), (0.2, 0.035, 0.2), iron)
    b.limb((x, 1.25, z), (x, 2.25, z), 0.13, iron, taper=0.25)
    b.limb((x, 2.2, z), (x, 2.45, z), 0.025, iron)
  for u, z in ((-0.8, -3.0), (0.85, -3.2), (-0.55, -4.6)):
    b.quadric((_across(u + 0.08 * t.b, z), 0.42, z), (0.18, 0.45, 0.18), flat(0.2, 0.45, 0.2, 0.02))


def _water(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _hill(b, -0.8 + 0.2 * t.a, -13.0, (4.0, 1.1), flat(0.35, 0.55, 0.45, 0.0))
    _hill(b, 0.9 + 0.2 * t.b, -14.0, (5.0, 1.4), flat(0.3, 0.5, 0.45, 0.0))
  x = _across(-0.6 + 0.25 * t.c, -5.0)
  b.quadric((x, 0.03, -5.0), (0.34, 0.09, 0.12), WOOD)
  b.quadric((x, 0.46, -5.0), (0.25, 0.36, 0.02), WHITE, profile=scene.CONE)


def _milk(b: Builder, t: Traits, v: str) -> None:
  drops = (
    (-0.85, -0.3, 0.075),
    (-0.8, 0.35, 0.05),
    (0.85, -0.2, 0.07),
    (0.8, 0.4, 0.05),
    (-0.7, -1.2, 0.1),
    (0.75, -1.4, 0.1),
  )
  milk = flat(0.99, 0.97, 0.93, 0.5)
  with b.essential():
    for k, (u, z, r) in enumerate(drops):
      x, y = _across(u + 0.05 * t.a, z), 0.1 + 0.08 * (k % 3)
      b.ball((x, y + 0.12, z), r, milk)
      b.limb((x, -0.05, z), (x, y + 0.08, z), 1.1 * r, milk, taper=0.3)


def _sunflowers(b: Builder, t: Traits, v: str) -> None:
  flower = Paint((0.99, 0.8, 0.08), (0.34, 0.2, 0.1), Pattern.RINGS, (0.48, 0.0, 0.0, 0.0), gloss=0.02)
  with b.essential():
    for k, (u, z, h) in enumerate((
      (-0.88, -0.4, 0.5), (0.88, -0.35, 0.45), (-0.85, -1.2, 0.75), (0.86, -1.3, 0.8), (-0.42, -1.7, 0.72),
      (0.4, -1.8, 0.8), (0.0, -2.4, 0.95), (-0.85, -2.5, 1.0), (0.85, -2.4, 1.0),
    )):  # fmt: skip
      x = _across(u + 0.06 * (t.a if k % 2 else t.b), z)
      b.limb((x, 0, z), (x, h, z), 0.022, flat(0.3, 0.55, 0.2))
      b.quadric((x, h, z + 0.04), (0.19, 0.03, 0.19), flower, rotation=turn(x=78), profile=scene.CYLINDER)
      b.quadric((x + 0.09, 0.45 * h, z), (0.11, 0.02, 0.06), _LEAF, rotation=turn(z=25))


def _mirror(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _wall(b, (0.6, 0.72, 0.86), -2.8)
    x = _across(-0.75 + 0.12 * t.a, -1.9)
    b.limb((x, 0, -1.9), (x, 1.0, -1.9), 0.025, flat(0.85, 0.8, 0.6, 0.6))
    b.quadric((x, 1.1, -1.9), (0.24, 0.15, 0.24), flat(1.0, 0.9, 0.6, 0.1, 0.4), profile=scene.frustum(1.0, 0.6))
  x = _across(0.8 + 0.1 * t.b, -2.0)
  b.quadric((x, 0.22, -2.0), (0.14, 0.22, 0.14), flat(0.9, 0.4, 0.35, 0.7), profile=scene.VASE)


def _dirt_road(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    for side, lean in ((-1, 0.9), (1, 0.8)):
      for k in range(4):
        z = -0.6 - 1.3 * k
        x = side * (lean + 0.35) - 0.12 * z + 0.12 * side * k
        b.limb((x, 0, z), (x, 0.42, z), 0.035, WOOD)
      near, far = side * (lean + 0.35) + 0.07, side * (lean + 0.71) + 0.54
      for y in (0.2, 0.35):
        b.limb((near, y, -0.6), (far, y, -4.5), 0.022, WOOD)
  _tree(b, -0.7 + 0.12 * t.a, -4.4, 1.5, _LEAF)
  _bush(b, 0.85 + 0.1 * t.b, -3.8, 0.35)
  _hill(b, 0.6, -10.0, (4.0, 1.2), flat(0.42, 0.6, 0.3, 0.0))


def _white_rug(b: Builder, t: Traits, v: str) -> None:
  with b.essential():
    _wall(b, (0.62, 0.76, 0.72))
    b.quadric((0, 0.0, 0.03), (0.98, 0.014, 0.72), flat(0.9, 0.89, 0.87, 0.0), profile=scene.CYLINDER)
    b.quadric((0, 0.0, 0.03), (0.9, 0.022, 0.64), flat(0.99, 0.98, 0.97, 0.0), profile=scene.CYLINDER)
  x = _across(0.4 + 0.25 * t.a, -1.6)
  for at, half in (((x, 0.2, -1.5), (0.6, 0.13, 0.28)), ((x, 0.42, -1.75), (0.6, 0.24, 0.09))):
    b.box(at, half, flat(0.88, 0.5, 0.28, 0.02))
  abstract = Paint((0.95, 0.8, 0.3), (0.8, 0.3, 0.3), Pattern.CHECKER, (0.12, 0.0, 0.0, 0.0))
  _image(b, -0.55 + 0.2 * t.b, 1.1, abstract)


def _desert(b: Builder, t: Traits, v: str) -> None:
  cactus = Paint((0.25, 0.5, 0.26), (0.18, 0.4, 0.2), Pattern.BANDS, (6.0, 0.0, 0.5, 0.0), gloss=0.05)
  with b.essential():
    _hill(b, -0.8 + 0.2 * t.a, -7.0, (2.4, 1.0), flat(0.9, 0.66, 0.38, 0.0))
    _hill(b, 0.8 + 0.2 * t.b, -8.5, (3.2, 1.1), flat(0.86, 0.6, 0.33, 0.0))
    for u, z, h in ((-0.75 + 0.1 * t.c, -1.6, 0.85), (0.78 + 0.1 * t.d, -2.4, 1.05)):
      x = _across(u, z)
      b.limb((x, 0, z), (x, h, z), 0.1, cactus)
      b.ball((x, h, z), 0.1, cactus)
      for side, y in ((-1, 0.34), (1, 0.48)):
        b.limb((x, y, z), (x + side * 0.23, y, z), 0.055, cactus)
        b.limb((x + side * 0.23, y - 0.02, z), (x + side * 0.23, y + 0.28, z), 0.055, cactus)
        b.ball((x + side * 0.23, y + 0.28, z), 0.055, cactus)
  b.quadric((_across(0.7 + 0.2 * t.e, -0.9), 0.06, -0.9), (0.19, 0.13, 0.15), flat(0.6, 0.45, 0.36, 0.02))


def _night(b: Builder, t: Traits, v: str) -> None:
  dark = flat(0.1, 0.2, 0.16, 0.0)
  with b.essential():
    b.ball((_across(-0.55 + 0.3 * t.a, -14.0), 2.55, -14.0), 0.5, flat(0.98, 0.97, 0.85, 0.0, 0.9))
    z, x = -5.0, _across(0.45 + 0.25 * t.d, -5.0)
    b.box((x, 0.35, z), (0.55, 0.35, 0.4), flat(0.3, 0.3, 0.4, 0.0))
    b.box((x, 0.7, z), (0.36, 0.36, 0.39), flat(0.25, 0.17, 0.2, 0.0), rotation=turn(z=45))
    for side in (-1, 1):
      b.box((x + side * 0.25, 0.4, z + 0.4), (0.11, 0.13, 0.03), flat(1.0, 0.82, 0.35, 0.0, 0.8))
  _conifer(b, -0.8 + 0.12 * t.b, -2.8, 1.4, dark)
  _conifer(b, 0.9 + 0.1 * t.c, -3.6, 1.6, dark)
  for k in range(5):
    z = -0.8 - 0.3 * (k % 2)
    b.ball((_across(-0.9 + 0.45 * k, z), 0.4 + 0.2 * (k % 3), z), 0.018, flat(0.95, 1.0, 0.5, 0.0, 1.0))


def _studio(b: Builder, t: Traits, v: str) -> None:
  pass


_BUILDERS = {
  "jungle": _jungle,
  "snow": _snow,
  "beach": _beach,
  "cobblestone street": _cobblestone,
  "pink fabric": _fabric,
  "wooden floor": _wooden_floor,
  "city": _city,
  "mountain": _mountain,
  "blue house": _blue_house,
  "purple rug in a forest": _purple_rug,
  "wheat field": _wheat,
  "autumn trees": _autumn,
  "tower": _tower,
  "water": _water,
  "milk": _milk,
  "sunflowers": _sunflowers,
  "mirror": _mirror,
  "dirt road": _dirt_road,
  "white rug": _white_rug,
  "desert": _desert,
  "night": _night,
  "studio": _studio,
}

RIGS = {name: Rig(build, ranges=("a", "b", "c", "d", "e", "f")) for name, build in _BUILDERS.items()}
