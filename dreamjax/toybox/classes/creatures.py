"""Dog, cat, rabbit, bird and fish."""

from collections.abc import Callable
import dataclasses

import numpy as np

from dreamjax.toybox import scene, vocabulary
from dreamjax.toybox.rig import (
  ACCENT,
  BEAK,
  BLACK,
  EYE,
  PRIMARY,
  ROSE,
  SECONDARY,
  SIDES,
  Builder,
  Paint,
  Rig,
  Slot,
  Traits,
  flat,
  turn,
)  # fmt: skip

_EAR_INSIDE = flat(0.95, 0.72, 0.72)
_HOOF = Paint(Slot.SECONDARY, Slot.SECONDARY)


@dataclasses.dataclass(frozen=True)
class _Pose:
  """The pose of a four-legged body: feet are offsets from below the shoulder or hip, as (dy, dz)."""

  pitch: float = 0.0
  lift: float = 0.0
  front: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))
  hind: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))


_POSES = {
  "standing": _Pose(),
  "sitting": _Pose(pitch=44.0, lift=-0.07, front=((0.0, 0.02), (0.0, 0.02)), hind=((0.0, 0.3), (0.0, 0.3))),
  "running": _Pose(6.0, 0.04, ((0.2, 0.3), (0.05, 0.16)), ((0.16, -0.3), (0.0, -0.14))),
  "jumping": _Pose(24.0, 0.34, ((0.26, 0.28), (0.2, 0.24)), ((0.0, -0.26), (0.03, -0.2))),
}


def _quadruped(
  b: Builder, state: str, leg: float, width: float, depth: float, length: float, paw: float,
  head: Callable[[], None], tail: Callable[[], None], neck: tuple[float, float],
) -> None:  # fmt: skip
  """Body, legs and paws, with a head and a tail in their places.

  `width`, `depth` and `length` are the body's half extents; `neck` is the head's offset from its front, (up, forward).
  """
  pose = _POSES[state]
  rotation = turn(x=-pose.pitch)
  rump = np.array([0.0, leg + 0.7 * depth + pose.lift, -0.55 * length])
  pivot = np.array([0.0, 0.0, -0.55 * length])

  def at(x, y, z):
    return rump + rotation @ (np.array([x, y, z]) - pivot)

  b.quadric(at(0, 0, 0), (width, depth, length), rotation=rotation, core=True)
  b.quadric(at(0, 0.02, 0.5 * length), (1.04 * width, 1.08 * depth, 0.52 * length), rotation=rotation)
  for side, (name, sign) in enumerate(SIDES):
    for hip, feet, which in ((0.62, pose.front, "front"), (-0.62, pose.hind, "hind")):
      joint = at(sign * 0.68 * width, -0.35 * depth, hip * length)
      dy, dz = feet[side]
      foot = np.array([joint[0], paw * 0.8 + dy + (pose.lift if pose.lift > 0.1 else 0.0), joint[2] + dz])
      b.limb(joint, foot, 0.36 * width + 0.012, PRIMARY, taper=0.72)
      b.quadric(foot + np.array([0, 0, 0.3 * paw]), (paw, 0.8 * paw, 1.3 * paw), _HOOF, key=f"{name} {which} paw")
  with b.frame(at(0, neck[0], length + neck[1]), head=True):
    head()
  collar = at(0, 0.62 * neck[0], 0.92 * length + 0.4 * neck[1])
  b.anchor("neck", collar, (0.72 * width + 0.03, 0.07, 0.72 * width + 0.03), turn(x=22))
  b.anchor("back", at(0, 0.25 * depth, -0.05 * length), (width, depth, 0.95 * length), rotation)
  with b.frame(at(0, 0.35 * depth, -0.95 * length), rotation):
    tail()


def _eyes(b: Builder, x: float, y: float, z: float, radius: float, squint: float = 1.0) -> None:
  """A pair of eyes, and the anchor of glasses in front of them."""
  for name, sign in SIDES:
    b.quadric(
      (sign * x, y, z),
      (radius, squint * radius, 0.7 * radius),
      EYE,
      rotation=turn(y=sign * 18, x=-6),
      key=f"{name} eye",
    )
  b.anchor("eyes", (0, y, z + 0.55 * radius), (x, x, x))


def _dog(b: Builder, t: Traits, state: str) -> None:
  r = 0.2 + 0.025 * t.head

  def head():
    b.quadric((0, 0, 0), (0.92 * r, 0.92 * r, r), core=True)
    snout = 0.13 + 0.05 * t.snout
    b.quadric((0, -0.32 * r, 0.75 * r + 0.45 * snout), (0.5 * r, 0.4 * r, 0.06 + 0.75 * snout), SECONDARY)
    b.quadric((0, -0.12 * r, 0.82 * r + 1.1 * snout), (0.052, 0.042, 0.04), BLACK, key="nose")
    _eyes(b, 0.42 * r, 0.26 * r, 0.78 * r, 0.062 + 0.006 * t.eyes)
    for name, sign in SIDES:
      drop = t.choose(floppy=-0.3, pricked=0.95, half=0.55)
      size = np.array([0.075, 0.14 + 0.05 * t.ear, 0.05]) + np.array([0.03, 0.0, 0.0]) * t.choose(
        floppy=1, pricked=0, half=0.5
      )
      out = t.choose(floppy=1.02, pricked=0.6, half=0.85)
      place = (sign * 0.2 * out, 0.2 * drop, -0.02)
      b.quadric(place, size, SECONDARY, rotation=turn(z=-sign * 12), key=f"{name} ear")
    b.anchor("hat", (0, 0.8 * r, -0.05 * r), (0.72 * r, 0.72 * r, 0.72 * r), turn(x=-6))

  def tail():
    wag = np.array([0.08 * t.wag, 0.2 + 0.05 * t.tail, -0.16 - 0.05 * t.tail])
    b.limb((0, 0, 0), wag, 0.05, PRIMARY, taper=0.7)
    b.ball(wag, 0.05, SECONDARY, key="tail")

  _quadruped(
    b, state, 0.3 + 0.08 * t.leg, 0.17 + 0.03 * t.girth, 0.175 + 0.025 * t.girth, 0.33 + 0.06 * t.length,
    0.07, head, tail, (0.27, 0.06),
  )  # fmt: skip


def _cat(b: Builder, t: Traits, state: str) -> None:
  r = 0.2 + 0.025 * t.head

  def head():
    b.quadric((0, 0, 0), (1.02 * r, 0.86 * r, 0.86 * r), core=True)
    for _, sign in SIDES:
      b.quadric(
        (sign * 0.2 * r, -0.34 * r, 0.72 * r), (0.27 * r, 0.2 * r, 0.24 * r), Paint(Slot.SECONDARY, Slot.SECONDARY)
      )
    b.quadric((0, -0.16 * r, 0.9 * r), (0.032, 0.024, 0.024), ROSE, key="nose")
    _eyes(b, 0.44 * r, 0.14 * r, 0.68 * r, 0.066 + 0.008 * t.eyes)
    for name, sign in SIDES:
      size = np.array([0.09, 0.11 + 0.03 * t.ear, 0.05])
      lean = turn(z=-sign * 18)
      b.quadric((sign * 0.62 * r, 0.86 * r, 0), size, profile=scene.CONE, rotation=lean, key=f"{name} ear")
      b.quadric((sign * 0.62 * r, 0.84 * r, 0.028), 0.7 * size, _EAR_INSIDE, profile=scene.CONE, rotation=lean)
    b.anchor("hat", (0, 0.76 * r, -0.02), (0.72 * r, 0.72 * r, 0.72 * r), turn(x=-6))

  def tail():
    sway, tip = 0.1 * t.wag, 0.1 * t.tail
    middle = np.array([sway, 0.12, -0.22])
    end = np.array([1.6 * sway, 0.42 + tip, -0.26 + 0.06 * t.curl])
    b.limb((0, 0, 0), middle, 0.04, PRIMARY)
    b.ball(middle, 0.04, PRIMARY)
    b.limb(middle, end, 0.04, PRIMARY, taper=0.85)
    b.ball(end, 0.04, SECONDARY, key="tail")

  _quadruped(
    b, state, 0.28 + 0.05 * t.leg, 0.145 + 0.025 * t.girth, 0.15 + 0.025 * t.girth, 0.31 + 0.05 * t.length,
    0.055, head, tail, (0.24, 0.05),
  )  # fmt: skip


def _rabbit(b: Builder, t: Traits, state: str) -> None:
  r = 0.19 + 0.02 * t.head

  def head():
    b.quadric((0, 0, 0), (0.94 * r, 0.94 * r, r), core=True)
    for _, sign in SIDES:
      b.quadric((sign * 0.3 * r, -0.3 * r, 0.68 * r), (0.38 * r, 0.34 * r, 0.34 * r), SECONDARY)
    b.quadric((0, -0.1 * r, 1.0 * r), (0.034, 0.026, 0.024), ROSE, key="nose")
    b.box((0, -0.58 * r, 0.94 * r), (0.026, 0.032, 0.012), flat(0.98, 0.98, 0.96))
    _eyes(b, 0.5 * r, 0.2 * r, 0.72 * r, 0.058 + 0.008 * t.eyes)
    for name, sign in SIDES:
      size = np.array([0.062, 0.24 + 0.07 * t.ear, 0.036])
      lop = t.lop
      place = np.array([sign * (0.42 * r + 0.13 * lop), 1.05 * r + 0.14 + 0.06 * t.ear - 0.36 * lop, -0.05])
      lean = turn(z=-sign * 14, x=-8)
      b.quadric(place, size, rotation=lean, key=f"{name} ear")
      b.quadric(place + np.array([0, 0, 0.02]), size * np.array([0.6, 0.8, 0.6]), _EAR_INSIDE, rotation=lean)
    b.anchor("hat", (0, 0.8 * r, 0.02), (0.6 * r, 0.6 * r, 0.6 * r), turn(x=-4))

  def tail():
    b.ball((0, 0, -0.04), 0.09 + 0.015 * t.tail, flat(0.97, 0.96, 0.94), key="tail")

  width = 0.18 + 0.025 * t.girth
  _quadruped(b, state, 0.16 + 0.03 * t.leg, width, width, 0.25 + 0.035 * t.length, 0.07, head, tail, (0.29, 0.0))


def _bird(b: Builder, t: Traits, state: str) -> None:
  flying = state == "flying"
  leg = 0.22 + 0.06 * t.leg
  radius = 0.25 + 0.03 * t.girth
  lift = 0.42 if flying else 0.0
  centre = np.array([0, leg + 0.85 * 0.25 + lift, 0.0])
  tilt = turn(x=-12 if flying else -32)
  b.quadric(centre, (0.9 * radius, radius, 1.15 * radius + 0.04 * t.length), rotation=tilt, core=True)
  b.quadric(
    centre + np.array([0, -0.05, 0.09]), (0.78 * radius, 0.82 * radius, 0.85 * radius), SECONDARY, rotation=tilt
  )
  r = 0.165 + 0.02 * t.head
  with b.frame(centre + np.array([0, 0.3, 0.19]), head=True):
    b.ball((0, 0, 0), r, core=True)
    beak = 0.12 + 0.06 * t.beak
    b.limb((0, -0.08 * r, 0.8 * r), (0, -0.22 * r, 0.85 * r + beak), 0.06, BEAK, taper=0.15, key="beak")
    _eyes(b, 0.55 * r, 0.2 * r, 0.66 * r, 0.052 + 0.006 * t.eyes)
    for k, lean in enumerate((0.0, -0.06)):
      size = t.choose(crested=1.0, smooth=0.0)
      b.quadric(
        (0, 1.0 * r + 0.03, lean - 0.02),
        np.array([0.03, 0.09 - 0.02 * k, 0.04]) * size,
        ACCENT,
        rotation=turn(x=-20 - 25 * k),
      )
    b.anchor("hat", (0, 0.78 * r, -0.02), (0.75 * r, 0.75 * r, 0.75 * r), turn(x=-6))
  span = 0.3 + 0.05 * t.wing
  for name, sign in SIDES:
    if flying:
      place, lean = centre + np.array([sign * (0.17 + 0.75 * span), 0.17, -0.02]), turn(z=sign * 24)
      b.quadric(place, (0.05 + span, 0.035, 0.17), PRIMARY, rotation=lean, key=f"{name} wing")
      b.quadric(place - np.array([sign * 0.02, 0.012, 0.08]), (0.02 + 0.8 * span, 0.03, 0.15), SECONDARY, rotation=lean)
    else:
      place = centre + np.array([sign * (0.86 * radius), 0.02, -0.05])
      b.quadric(
        place, (0.05, 0.12 + 0.02 * t.wing, span), PRIMARY, rotation=turn(x=18, y=-sign * 6), key=f"{name} wing"
      )
      b.quadric(place - np.array([sign * 0.004, 0.02, 0.1]), (0.045, 0.09, 0.75 * span), SECONDARY, rotation=turn(x=18))
    foot = np.array([sign * 0.09, 0.02, 0.06]) if not flying else centre + np.array([sign * 0.08, -0.3, -0.16])
    b.limb(centre + np.array([sign * 0.09, -0.16, 0.0]), foot, 0.022, BEAK)
    b.quadric(foot + np.array([0, 0, 0.03]), (0.05, 0.02, 0.075), BEAK, key=f"{name} foot")
  tail = 0.16 + 0.05 * t.tail
  for lean in (-1, 1):
    b.quadric(
      centre + np.array([lean * 0.05, 0.02, -0.2 - tail]),
      (0.06, 0.03, 0.09 + tail),
      ACCENT,
      rotation=turn(x=20, y=lean * 10),
    )
  b.anchor("neck", centre + np.array([0, 0.2, 0.14]), (0.175, 0.06, 0.175), turn(x=20))
  b.anchor("back", centre + np.array([0, 0.06, -0.1]), (0.25, 0.25, 0.3), tilt)


def _fish(b: Builder, t: Traits, state: str) -> None:
  jumping = state == "jumping"
  half, tall = 0.42 + 0.06 * t.length, 0.27 + 0.06 * t.girth
  with b.frame((0, 0.78 if jumping else 0.5, 0), turn(x=-34 if jumping else 0)):
    b.quadric((0, 0, 0), (0.16 + 0.03 * t.fat, tall, half), core=True)
    with b.frame((0, 0, 0.3), head=True):
      b.quadric((0, 0.0, 0.02), (0.15 + 0.02 * t.fat, 0.8 * tall, 0.17 + 0.03 * t.length), SECONDARY)
      b.quadric((0, -0.06, 0.14 + 0.06 * t.length), (0.07, 0.045, 0.05), ROSE, key="mouth")
      for name, sign in SIDES:
        b.quadric(
          (sign * (0.115 + 0.018 * t.fat), 0.06, 0.06),
          (0.07, 0.07, 0.05),
          EYE,
          rotation=turn(y=sign * 62),
          key=f"{name} eye",
        )
      b.anchor("eyes", (0, 0.06, 0.16), (0.12, 0.09, 0.12))
      b.anchor("hat", (0, 0.75 * tall, -0.1), (0.14, 0.14, 0.14), turn(x=-4))
    fan = 0.15 + 0.05 * t.tail
    for sign, lean in ((1, 38), (-1, -38)):
      place = (0, sign * 0.12, -0.42 - 0.06 * t.length - 0.7 * fan)
      b.quadric(
        place, (0.03, 0.09, 0.06 + fan), ACCENT, rotation=turn(x=lean), key="upper tail" if sign > 0 else "lower tail"
      )
    b.quadric((0, 0.95 * tall, -0.06), (0.028, 0.08 + 0.05 * t.fin, 0.2), ACCENT, rotation=turn(x=14), key="dorsal fin")
    b.quadric((0, -0.9 * tall, -0.1), (0.026, 0.06 + 0.03 * t.fin, 0.1), ACCENT, rotation=turn(x=-22))
    for name, sign in SIDES:
      b.quadric(
        (sign * (0.17 + 0.02 * t.fat), -0.05, 0.02),
        (0.024, 0.055, 0.13),
        ACCENT,
        rotation=turn(x=24, y=-sign * 28),
        key=f"{name} fin",
      )
    b.anchor("neck", (0, 0, 0.2), (0.16, 0.07, 0.25), turn(x=90))
    b.anchor("back", (0, 0.35 * tall, -0.06), (0.17, 0.2, 0.3))


_QUADRUPED = ("leg", "length", "girth", "head", "eyes", "ear", "tail", "wag")

RIGS = {
  "dog": Rig(_dog, (*_QUADRUPED, "snout"), (("floppy", "pricked", "half"),), vocabulary.STATES["dog"]),
  "cat": Rig(_cat, (*_QUADRUPED, "curl"), (), vocabulary.STATES["cat"]),
  "rabbit": Rig(_rabbit, _QUADRUPED, (("upright", "lop"),), vocabulary.STATES["rabbit"]),
  "bird": Rig(
    _bird, ("leg", "length", "girth", "head", "eyes", "ear", "tail", "wing", "beak"), (("crested", "smooth"),),
    vocabulary.STATES["bird"],
  ),
  "fish": Rig(_fish, ("length", "girth", "fat", "tail", "fin"), (), vocabulary.STATES["fish"]),
}  # fmt: skip
