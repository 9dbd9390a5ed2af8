"""Teapot, mushroom, chair and backpack."""

import numpy as np

from dreamjax.toybox import scene, vocabulary
from dreamjax.toybox.rig import (
  ACCENT,
  BUTTON_EYE,
  COAT,
  GOLD,
  PRIMARY,
  ROSE,
  SECONDARY,
  SILVER,
  Builder,
  Paint,
  Rig,
  Slot,
  Traits,
  turn,
)  # fmt: skip
from dreamjax.toybox.scene import Pattern

_GLAZE = Paint(coat=True, gloss=0.7)
_GLAZED = Paint(gloss=0.7)


def _teapot(b: Builder, t: Traits, state: str) -> None:
  pouring = state == "pouring"
  wide, tall = 0.34 + 0.04 * t.width, 0.27 + 0.05 * t.height

  def girth(kind):  # negative, so absent, unless this kind of body is the chosen one
    return wide - 0.5 * (1 - kind)

  with b.frame((0, 0.36 if pouring else 0.05, 0), turn(x=32 if pouring else 0)):
    middle = 0.28 + 0.05 * t.height
    b.quadric((0, middle, 0), (girth(t.round), tall, girth(t.round)), _GLAZE, core=True, key="body")
    cone = (girth(t.conical), 0.95 * tall, girth(t.conical))
    b.quadric((0, middle, 0), cone, _GLAZE, profile=scene.frustum(1.05, 0.6))
    b.quadric((0, middle, 0), (girth(t.drum), 0.9 * tall, girth(t.drum)), _GLAZE, profile=scene.BARREL)
    top = middle + 0.9 * tall
    b.quadric((0, 0.0, 0), (0.21, 0.03, 0.21), SECONDARY, profile=scene.CYLINDER)
    b.quadric((0, top + 0.03, 0), (0.2 + 0.02 * t.lid, 0.06, 0.2 + 0.02 * t.lid), SECONDARY, profile=scene.DOME)
    b.ball((0, top + 0.12, 0), 0.055 + 0.01 * t.knob, Paint(Slot.ACCENT, Slot.ACCENT, gloss=0.7), key="knob")
    low, elbow = np.array([0, middle - 0.08, 0.2]), np.array([0, middle - 0.02, 0.42 + 0.03 * t.width])
    tip = np.array([0, middle + 0.22 + 0.04 * t.spout, 0.56 + 0.04 * t.spout])
    b.limb(low, elbow, 0.1, _GLAZED, taper=0.7)
    b.ball(elbow, 0.075, _GLAZED)
    b.limb(elbow, tip, 0.073, _GLAZED, taper=0.65, key="spout")
    reach = 0.55 + 0.05 * t.handle
    points = [
      (0, middle + 0.2, -0.2),
      (0, middle + 0.19, -reach + 0.1),
      (0, middle + 0.06, -reach),
      (0, middle - 0.1, -reach + 0.06),
      (0, middle - 0.17, -0.22),
    ]
    for start, end in zip(points[:-1], points[1:], strict=True):
      b.limb(start, end, 0.04, ACCENT)
      b.ball(end, 0.04, ACCENT)
    b.ball((0, middle + 0.06, -reach), 0.042, ACCENT, key="handle")
    b.anchor("hat", (0, top + 0.06, 0), (0.2, 0.2, 0.2))
    b.anchor("eyes", (0, middle + 0.08, wide + 0.03), (0.13, 0.13, 0.13))
    b.anchor("neck", (0, middle + 0.62 * tall, 0), (0.27, 0.06, 0.27))
    b.anchor("back", (0, middle + 0.12, -0.16), (0.34, 0.3, 0.26), turn(x=-70))


def _mushroom(b: Builder, t: Traits, state: str) -> None:
  stem = 0.5 + 0.1 * t.stem
  thick = 0.16 + 0.025 * t.thick
  cream = Paint((0.95, 0.9, 0.8), (0.95, 0.9, 0.8), gloss=0.1)
  b.quadric((0, 0.5 * stem, 0), (thick, 0.5 * stem + 0.02, thick), cream, profile=scene.frustum(1.25, 0.85))
  b.quadric((0, 0.05, 0), (1.45 * thick, 0.09, 1.45 * thick), cream)
  cap = np.array([0.37 + 0.06 * t.cap, 0.0, 0.37 + 0.06 * t.cap])
  base = stem - 0.04

  def hide(kind):  # makes radii negative, so that the cap is absent, unless this kind is the chosen one
    return np.array([1.0, 0.0, 1.0]) * (kind - 1)

  b.quadric(
    (0, base + 0.19, 0), cap + np.array([0, 0.21, 0]) + hide(t.domed), COAT, profile=scene.DOME, core=True, key="cap"
  )
  b.quadric((0, base + 0.25, 0), cap + np.array([0, 0.27, 0]) + hide(t.pointed), COAT, profile=(0.3, -0.5, 0.2, 1.0))
  b.quadric((0, base + 0.12, 0), cap + np.array([0.05, 0.13, 0.05]) + hide(t.flatcap), COAT, profile=scene.DOME)
  gills = Paint((0.9, 0.82, 0.7), (0.8, 0.7, 0.58), gloss=0.05)
  b.quadric((0, base - 0.02, 0), (0.3 + 0.05 * t.cap, 0.035, 0.3 + 0.05 * t.cap), gills)
  b.quadric(
    (0, stem * 0.72, 0),
    np.array([0.22, 0.03, 0.22]) * t.ringed,
    cream,
    profile=scene.frustum(1.0, 0.7),
  )
  eye = 0.5 * stem
  for name, sign in (("left", 1.0), ("right", -1.0)):
    b.quadric((sign * 0.07, eye, 0.96 * thick), (0.03 + 0.005 * t.eyes, 0.045, 0.025), BUTTON_EYE, key=f"{name} eye")
    b.quadric((sign * 0.11, eye - 0.06, 0.94 * thick), (0.03, 0.02, 0.02), ROSE)
  b.limb((-0.03, eye - 0.06, 1.05 * thick), (0.03, eye - 0.06, 1.05 * thick), 0.012, BUTTON_EYE, key="mouth")
  b.quadric((0.3, 0.1, 0.1), np.array([0.06, 0.11, 0.06]) * t.pair, cream, profile=scene.CYLINDER)
  b.quadric((0.3, 0.25, 0.1), np.array([0.15, 0.09, 0.15]) * t.pair, COAT, profile=scene.DOME)
  b.anchor("hat", (0, stem + t.choose(domed=0.32, pointed=0.36, flatcap=0.17), 0), (0.22, 0.22, 0.22))
  b.anchor("eyes", (0, eye, thick + 0.03), (0.075, 0.07, 0.075))
  b.anchor("neck", (0, 0.82 * stem, 0), (0.17, 0.05, 0.17))
  b.anchor("back", (0, 0.7 * stem, -0.1), (0.22, 0.22, 0.2), turn(x=-80))


def _chair(b: Builder, t: Traits, state: str) -> None:
  lying = state == "lying"
  seat, half, deep = 0.42 + 0.05 * t.leg, 0.27 + 0.03 * t.width, 0.26 + 0.02 * t.depth
  high = 0.3 + 0.05 * t.back
  with b.frame((0.45, 0.33, 0) if lying else (0, 0, 0), turn(z=90) if lying else None):
    b.box((0, seat, 0), (half, 0.04, deep), COAT, core=True, key="seat")
    b.quadric((0, seat + 0.05, 0), (0.9 * half, 0.05, 0.9 * deep), ACCENT)
    for name, x in (("left", 1), ("right", -1)):
      for z, which in ((1, "front"), (-1, "hind")):
        splay = 0.03 + 0.03 * t.splay
        foot = (x * (0.23 + splay), 0.0, z * (0.2 + splay))
        thick = 0.035 + 0.006 * t.thick
        b.limb((x * 0.23, seat, z * 0.2), foot, thick, PRIMARY, taper=0.7, key=f"{name} {which} foot")
      b.limb(
        (x * 0.92 * half, seat, -deep),
        (x * 0.92 * half, seat + 2 * high, -deep - 0.06),
        0.032,
        PRIMARY,
        key=f"{name} post",
      )
    lean = turn(x=-4)
    for k in range(3):
      b.box((0, seat + 0.16 + 0.18 * k, -deep - 0.03), np.array([0.25, 0.05, 0.018]) * t.slats, COAT, rotation=lean)
    b.box((0, seat + 0.36, -deep - 0.03), np.array([0.25, 0.25, 0.022]) * t.solid, COAT, rotation=lean)
    b.quadric(
      (0, seat + 0.38, -deep - 0.04),
      np.array([0.25, 0.03, 0.28]) * t.oval,
      COAT,
      rotation=turn(x=86),
      profile=scene.CYLINDER,
    )
    b.limb((-0.92 * half, seat + 2 * high, -deep - 0.06), (0.92 * half, seat + 2 * high, -deep - 0.06), 0.036, PRIMARY)
    for x in (1, -1):
      b.box((x * 0.29, seat + 0.22, -0.02), np.array([0.03, 0.022, 0.24]) * t.arms, PRIMARY)
      b.limb((x * 0.29, seat, 0.18), (x * 0.29, seat + 0.22, 0.18), 0.025 * t.arms, SECONDARY)
    b.anchor("hat", (0, seat + 2 * high + 0.02, -deep - 0.06), (0.2, 0.2, 0.2))
    b.anchor("eyes", (0, seat + 0.42, -deep + 0.03), (0.12, 0.12, 0.12))
    b.anchor("neck", (0, seat + 0.4, -deep - 0.04), (0.29, 0.07, 0.08))
    b.anchor("back", (0, seat + 0.4, -deep - 0.12), (0.27, 0.24, 0.3), turn(x=-84))


def _backpack(b: Builder, t: Traits, state: str) -> None:
  half, tall, deep = 0.28 + 0.035 * t.width, 0.3 + 0.05 * t.height, 0.17 + 0.02 * t.depth
  lying = state == "lying"
  cloth = Paint(coat=True, gloss=0.08)
  strap = Paint(Slot.ACCENT, Slot.ACCENT, gloss=0.08)
  with b.frame((0.35, 0.37, 0) if lying else (0, 0.02, 0), turn(z=90) if lying else turn(x=-5)):
    b.box((0, tall, 0), (half, tall, deep), cloth, core=True, key="body")
    b.quadric((0, 2 * tall, 0), (0.98 * half, 0.15, deep), cloth, key="top")
    for x in (1, -1):
      b.quadric((x * half, tall * 0.95, 0), (0.07, 0.95 * tall, 0.9 * deep), cloth)
    pocket = Paint(Slot.SECONDARY, Slot.SECONDARY, gloss=0.08)
    b.box((0, 0.55 * tall, deep + 0.03), (0.7 * half, 0.42 * tall, 0.07), pocket, key="pocket")
    b.quadric((0, 0.97 * tall, deep + 0.03), (0.7 * half, 0.05, 0.072), pocket)
    b.box((0, 0.86 * tall, deep + 0.106), (0.6 * half, 0.01, 0.006), SILVER)
    b.quadric((0.12, 0.8 * tall, deep + 0.11), (0.018, 0.035, 0.012), GOLD)
    b.box((0, 1.72 * tall, deep + 0.015), np.array([0.27, 0.15, 0.02]) * t.flap, Paint(gloss=0.08))
    for x in (1, -1):
      b.box((x * 0.12, 1.45 * tall, deep + 0.03), np.array([0.025, 0.1, 0.016]) * t.flap, pocket)
      b.box((x * 0.12, 1.28 * tall, deep + 0.045), np.array([0.034, 0.026, 0.014]) * t.flap, GOLD)
    b.quadric((0, 1.98 * tall, deep * 0.86), np.array([0.25, 0.012, 0.03]) * t.zip, SILVER)
    badge = Paint(Slot.ACCENT, (0.96, 0.94, 0.88), Pattern.RINGS, (0.62, 0.0, 0.0, 0.0), gloss=0.2)
    b.quadric(
      (0, 1.42 * tall, deep + 0.01),
      np.array([0.1, 0.014, 0.1]) * t.zip,
      badge,
      rotation=turn(x=90),
      profile=scene.CYLINDER,
    )
    top = np.array([0, 2 * tall + 0.13, 0])
    b.limb(top + np.array([-0.08, 0, -0.02]), top + np.array([-0.05, 0.1, -0.02]), 0.022, strap)
    b.limb(top + np.array([0.08, 0, -0.02]), top + np.array([0.05, 0.1, -0.02]), 0.022, strap)
    b.limb(top + np.array([-0.06, 0.1, -0.02]), top + np.array([0.06, 0.1, -0.02]), 0.024, strap, key="handle")
    for name, x in (("left", 1), ("right", -1)):
      points = [
        (x * 0.15, 1.95 * tall, -deep),
        (x * 0.2, 1.5 * tall, -deep - 0.12),
        (x * 0.2, 0.6 * tall, -deep - 0.11),
        (x * 0.17, 0.12 * tall, -deep),
      ]
      for start, end in zip(points[:-1], points[1:], strict=True):
        b.limb(start, end, 0.035, strap)
      b.box(
        (x * (half + 0.075), 0.4 * tall, 0),
        np.array([0.02, 0.1, 0.09]) * t.sides,
        pocket,
        key=f"{name} side",
      )
    b.anchor("hat", (0, 2 * tall + 0.12, 0), (0.2, 0.2, 0.2))
    b.anchor("eyes", (0, 1.4 * tall, deep + 0.04), (0.11, 0.11, 0.11))
    b.anchor("neck", (0, 1.5 * tall, 0), (0.34, 0.06, 0.22))
    b.anchor("back", (0, 1.5 * tall, -deep), (0.28, 0.26, 0.34), turn(x=-78))


RIGS = {
  "teapot": Rig(
    _teapot, ("width", "height", "lid", "knob", "spout", "handle"), (("round", "conical", "drum"),),
    vocabulary.STATES["teapot"], upright=True,
  ),
  "mushroom": Rig(
    _mushroom, ("stem", "thick", "cap", "eyes"),
    (("domed", "pointed", "flatcap"), ("ringed", "bare"), ("pair", "alone")),
    vocabulary.STATES["mushroom"], upright=True,
  ),
  "chair": Rig(
    _chair, ("leg", "width", "depth", "back", "splay", "thick"), (("slats", "solid", "oval"), ("arms", "armless")),
    vocabulary.STATES["chair"], upright=True,
  ),
  "backpack": Rig(
    _backpack, ("width", "height", "depth"), (("flap", "zip"), ("sides", "plain_sides")), vocabulary.STATES["backpack"],
    upright=True,
  ),
}  # fmt: skip
