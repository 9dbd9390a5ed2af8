"""Accessories that toys can wear: each is a rig made to fit one of the anchors that every class has.

Units are the anchor's: a hat of radius 1 is as wide as the head that it sits on.
"""

import functools
import math

import jax.numpy as jnp
from jaxtyping import Array, Int

from dreamjax.toybox import classes, scene, vocabulary
from dreamjax.toybox.rig import (
  BLACK,
  GOLD,
  Builder,
  Coat,
  Instance,
  Paint,
  Rig,
  Tables,
  Traits,
  flat,
  instantiate,
  make_tables,
  turn,
)
from dreamjax.toybox.scene import Owner, Pattern, Primitives

_RED, _FUR, _PINK = flat(0.85, 0.1, 0.1, 0.2), flat(0.97, 0.97, 0.97, 0.05), flat(0.98, 0.35, 0.62, 0.6)


def _nothing(b: Builder, t: Traits, variant: str) -> None:
  pass


def _red_hat(b: Builder, t: Traits, variant: str) -> None:
  b.quadric((0, 0.06, 0.12), (1.45, 0.06, 1.5), _RED, profile=scene.CYLINDER)
  b.quadric((0, 0.5, 0), (1.0, 0.48, 1.0), _RED, profile=scene.DOME)
  b.quadric((0, 0.2, 0), (1.02, 0.12, 1.02), flat(0.98, 0.95, 0.9), profile=scene.CYLINDER)


def _santa_hat(b: Builder, t: Traits, variant: str) -> None:
  b.quadric((0, 0.1, 0), (1.2, 0.28, 1.2), _FUR)
  b.limb((0, 0.15, 0), (0.1, 1.1, -0.1), 1.02, _RED, taper=0.52)
  b.limb((0.1, 1.08, -0.1), (0.6, 1.6, -0.25), 0.54, _RED, taper=0.35)
  b.ball((0.1, 1.1, -0.1), 0.53, _RED)
  b.ball((0.72, 1.62, -0.28), 0.34, _FUR)


def _scarf(b: Builder, t: Traits, variant: str) -> None:
  rainbow = Paint((1, 1, 1), (1, 1, 1), Pattern.RAINBOW, (0.45, 0.1, 0.0, 0.0), gloss=0.03)
  b.quadric((0, 0, 0), (1.16, 1.3, 1.16), rainbow, profile=scene.BARREL)
  b.box((0.5, -1.7, 1.1), (0.34, 2.0, 0.12), rainbow, rotation=turn(x=-8, z=6))


def _glasses(b: Builder, t: Traits, variant: str) -> None:
  ring = scene.frustum(1.0, 0.68, capped=False)
  for sign in (1, -1):
    b.quadric((sign, 0, 0.12), (0.92, 0.14, 0.92), _PINK, rotation=turn(x=90), profile=ring)
    b.limb((sign * 1.85, 0.1, 0.1), (sign * 2.2, 0.1, -1.8), 0.1, _PINK)
  b.limb((-0.22, 0.16, 0.16), (0.22, 0.16, 0.16), 0.13, _PINK)


def _top_hat(b: Builder, t: Traits, variant: str) -> None:
  b.quadric((0, 0.06, 0), (1.5, 0.07, 1.5), BLACK, profile=scene.CYLINDER)
  b.quadric((0, 0.85, 0), (0.95, 0.8, 0.95), BLACK, profile=scene.frustum(0.96, 1.08))
  b.quadric((0, 0.28, 0), (1.0, 0.16, 1.0), flat(0.75, 0.1, 0.15), profile=scene.CYLINDER)


def _crown(b: Builder, t: Traits, variant: str) -> None:
  b.quadric((0, 0.36, 0), (1.0, 0.34, 1.0), GOLD, profile=scene.frustum(0.92, 1.06, capped=False))
  jewels = (flat(0.85, 0.1, 0.2, 0.9, 0.1), flat(0.15, 0.35, 0.9, 0.9, 0.1))
  for k in range(6):
    angle = math.tau * (k + 0.25) / 6
    x, z = math.sin(angle), math.cos(angle)
    b.limb((x * 0.98, 0.4, z * 0.98), (1.08 * x, 1.18, 1.08 * z), 0.3, GOLD, taper=0.05)
    b.ball((1.08 * x, 1.2, 1.08 * z), 0.12, GOLD)
    b.ball((1.0 * x, 0.36, 1.0 * z), 0.13, jewels[k % 2])


def _cape(b: Builder, t: Traits, variant: str) -> None:
  cloth, trim = flat(0.82, 0.07, 0.12, 0.15), flat(0.97, 0.8, 0.22, 0.4)
  if variant == "upright":  # hangs down behind, wider than its wearer
    b.quadric((0, 0.02, -0.35), (1.35, 1.5, 0.4), cloth, rotation=turn(x=90), profile=scene.frustum(1.35, 0.55))
    b.quadric((0, 0.02, 1.15), (0.85, 0.14, 0.45), trim, rotation=turn(x=90), profile=scene.BARREL)
  else:  # thrown over the back, down both sides
    b.quadric((0, 0.18, -0.25), (1.25, 1.02, 1.0), cloth, profile=scene.DOME)
    b.quadric((0, -0.8, -0.25), (1.27, 0.07, 1.02), trim, profile=scene.CYLINDER)
    b.quadric((0, 0.1, 0.8), (1.0, 0.12, 0.95), trim, rotation=turn(x=80), profile=scene.BARREL)


# Each accessory's builder, and the anchor that it is made for.
_SHAPES = {
  "none": (_nothing, "hat"), "red hat": (_red_hat, "hat"), "santa hat": (_santa_hat, "hat"),
  "rainbow scarf": (_scarf, "neck"), "pink glasses": (_glasses, "eyes"), "top hat": (_top_hat, "hat"),
  "crown": (_crown, "hat"), "cape": (_cape, "back"),
}  # fmt: skip

RIGS = {name: Rig(build, variants=("long", "upright")) for name, (build, _) in _SHAPES.items()}
_ANCHOR = tuple(classes.ANCHORS.index(_SHAPES[name][1]) for name in vocabulary.ACCESSORIES)


@functools.cache
def tables() -> Tables:
  """Returns the blend-shape tables of the accessories, in the order of `vocabulary.ACCESSORIES`."""
  return make_tables([RIGS[name] for name in vocabulary.ACCESSORIES])


def _fit(parts: Primitives, centre: Array, axes: Array, size: Array) -> Primitives:
  """Parts in an anchor's units, transformed to the anchor's place in the scene."""
  stretch = jnp.linalg.norm(parts.axes * size[None, None], axis=-1)  # [n, 3], along each part's own axes
  return parts.replace(
    centre=centre[None] + (parts.centre * size[None]) @ axes, axes=parts.axes @ axes, radii=parts.radii * stretch
  )  # fmt: skip


def wear(accessory: Int[Array, ""], cls: Int[Array, ""], wearer: Instance, coat: Coat) -> tuple[Primitives, Primitives]:
  """Returns the quadrics and boxes of an accessory on the toy of class `cls` that wears it."""
  upright = jnp.asarray(classes.tables().upright)[cls].astype(jnp.int32)
  thing = instantiate(tables(), accessory, upright, jnp.zeros(0), coat, Owner.ACCESSORY)
  anchor = jnp.asarray(_ANCHOR)[accessory]
  frame = (wearer.anchor_centre[anchor], wearer.anchor_axes[anchor], wearer.anchor_size[anchor])
  return _fit(thing.quadrics, *frame), _fit(thing.boxes, *frame)
