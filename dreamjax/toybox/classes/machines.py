"""Car, truck, boat, plane and robot."""

import numpy as np

from dreamjax.toybox import scene, vocabulary
from dreamjax.toybox.rig import (
  ACCENT,
  BLACK,
  GLASS,
  PRIMARY,
  RUBBER,
  SECONDARY,
  SIDES,
  SILVER,
  WHITE,
  WOOD,
  Builder,
  Paint,
  Rig,
  Slot,
  Traits,
  flat,
  turn,
)  # fmt: skip
from dreamjax.toybox.scene import Pattern

_BODY = Paint(coat=True, gloss=0.55)
_LAMP = flat(1.0, 0.93, 0.6, 0.8, 0.35)
_TAIL_LAMP = flat(0.85, 0.1, 0.08, 0.7, 0.2)
_PORTHOLE = Paint((0.35, 0.52, 0.66), (0.35, 0.52, 0.66), gloss=0.9)


def _wheel(b: Builder, at, radius, name: str | None = None) -> None:
  """A tyre with its hub cap, its axle along x."""
  sideways = turn(z=90)
  b.quadric(at, (radius, 0.055, radius), RUBBER, rotation=sideways, profile=scene.BARREL, key=name)
  outwards = 0.03 * np.sign(at[0])
  b.quadric(np.asarray(at) + np.array([outwards, 0, 0]), np.array([0.58, 0, 0.58]) * radius + np.array([0, 0.034, 0]),
            Paint(Slot.ACCENT, Slot.ACCENT, gloss=0.6), rotation=sideways, profile=scene.CYLINDER)  # fmt: skip


def _car(b: Builder, t: Traits, state: str) -> None:
  half, width = 0.52 + 0.07 * t.length, 0.27 + 0.025 * t.width
  wheel = 0.125 + 0.02 * t.wheel
  floor = wheel * 0.8
  tall = 0.12 + 0.02 * t.height
  b.box((0, floor + tall, 0), (width, tall, half), _BODY, core=True)
  for z, sign in ((half, 1), (-half, -1)):  # rounded bonnet and boot
    b.quadric(
      (0, floor + tall, z),
      (tall * 0.98, width, 0.1 + 0.03 * t.nose),
      _BODY,
      rotation=turn(z=90),
      profile=scene.CYLINDER,
    )
    b.limb((-0.98 * width, floor + 0.05, z + sign * 0.1), (0.98 * width, floor + 0.05, z + sign * 0.1), 0.035, SILVER)
  top = floor + 2 * tall
  middle = -0.06 + 0.05 * t.cabin
  b.box((0, top + 0.11, middle), np.array([0.24, 0.11, 0.25]) * t.boxy, GLASS)
  b.box((0, top + 0.235, middle), np.array([0.25, 0.028, 0.26]) * t.boxy, Paint(gloss=0.55))
  for z in (-0.24, 0.0, 0.24):
    b.box((0, top + 0.11, middle + z), np.array([0.246, 0.11, 0.018]) * t.boxy, Paint(gloss=0.55))
  b.quadric((0, top - 0.02, middle), np.array([0.25, 0.26, 0.36]) * t.bubble, GLASS)
  b.quadric((0, top + 0.2 + 0.02 * t.roof, middle), np.array([0.17, 0.055, 0.25]) * t.bubble, Paint(gloss=0.55))
  b.box((0, top + 0.09, middle + 0.18), np.array([0.22, 0.09, 0.014]) * t.open, GLASS, rotation=turn(x=-28))
  for x in (-0.11, 0.11):
    b.box((x, top + 0.05, middle - 0.08), np.array([0.08, 0.1, 0.03]) * t.open, Paint(Slot.ACCENT, Slot.ACCENT))
  for name, sign in SIDES:
    for z, which in ((0.62, "front"), (-0.62, "rear")):
      _wheel(b, (sign * (width + 0.01), wheel, z * half), wheel, f"{name} {which} wheel")
    b.quadric(
      (sign * 0.66 * width, floor + 1.2 * tall, half + 0.09 + 0.03 * t.nose),
      (0.062, 0.062, 0.045),
      _LAMP,
      key=f"{name} lamp",
    )
    b.quadric((sign * 0.7 * width, floor + 1.2 * tall, -half - 0.08 - 0.03 * t.nose), (0.06, 0.04, 0.04), _TAIL_LAMP)
  b.box((0, floor + 0.95 * tall, half + 0.1 + 0.03 * t.nose), (0.1, 0.03, 0.02), BLACK)
  b.anchor("hat", (0, top + 0.24, middle), (0.17, 0.17, 0.17))
  b.anchor("eyes", (0, top + 0.1, middle + 0.27), (0.11, 0.1, 0.11))
  b.anchor("neck", (0, top - 0.02, middle), (0.28, 0.06, 0.33))
  b.anchor("back", (0, top + 0.08, middle - 0.06), (0.25, 0.2, 0.36))


def _truck(b: Builder, t: Traits, state: str) -> None:
  wheel = 0.13 + 0.018 * t.wheel
  floor = wheel * 1.2
  width = 0.26 + 0.02 * t.width
  back = -0.22 - 0.07 * t.length  # centre of the load
  b.box((0, floor, -0.1 - 0.05 * t.length), (0.85 * width, 0.035, 0.6 + 0.06 * t.length), BLACK)
  tall = 0.22 + 0.03 * t.cab
  b.box((0, floor + tall, 0.34), (width, tall, 0.17), _BODY, core=True)
  b.box((0, floor + 1.4 * tall, 0.345), (1.01 * width, 0.33 * tall, 0.15), GLASS)
  b.box((0, floor + 1.4 * tall, 0.4), (0.84 * width, 0.35 * tall, 0.125), GLASS)
  b.box((0, floor + 0.4 * tall, 0.54), (0.92 * width, 0.42 * tall, 0.06), _BODY)
  b.box((0, floor + 0.42 * tall, 0.602), (0.45 * width, 0.2 * tall, 0.01), SILVER)
  load = Paint(Slot.SECONDARY, Slot.SECONDARY, gloss=0.4)
  b.box((0, floor + 0.33, back), np.array([0.29, 0.29, 0.4]) * t.van, Paint(gloss=0.4))
  b.box((0, floor + 0.33, back), np.array([0.294, 0.05, 0.404]) * t.van, ACCENT)
  b.quadric(
    (0, floor + 0.27, back), np.array([0.24, 0.4, 0.24]) * t.tank, load, rotation=turn(x=90), profile=scene.BARREL
  )
  for z in (-0.2, 0.16):
    b.quadric(
      (0, floor + 0.27, back + z),
      np.array([0.247, 0.03, 0.247]) * t.tank,
      ACCENT,
      rotation=turn(x=90),
      profile=scene.CYLINDER,
    )
  for sign in (1, -1):
    b.box((sign * 0.26, floor + 0.2, back), np.array([0.02, 0.16, 0.4]) * t.tipper, load)
    b.box((0, floor + 0.2, back + sign * 0.39), np.array([0.26, 0.16, 0.02]) * t.tipper, load)
  b.quadric((0, floor + 0.24, back), np.array([0.23, 0.2, 0.34]) * t.tipper, flat(0.55, 0.38, 0.22, 0.05))
  for name, sign in SIDES:
    x = sign * width
    _wheel(b, (x, wheel, 0.38), wheel, f"{name} front wheel")
    _wheel(b, (x, wheel, back + 0.12), wheel)
    _wheel(b, (x, wheel, back - 0.22), wheel, f"{name} rear wheel")
    b.quadric((sign * 0.68 * width, floor + 0.35 * tall, 0.6), (0.055, 0.055, 0.03), _LAMP, key=f"{name} lamp")
  b.limb(
    (-0.6 * width, floor + 2 * tall, 0.25), (-0.6 * width, floor + 2 * tall + 0.16, 0.25), 0.028, SILVER, key="exhaust"
  )
  top = floor + 2 * tall
  b.anchor("hat", (0, top, 0.34), (0.17, 0.17, 0.17))
  b.anchor("eyes", (0, floor + 1.4 * tall, 0.54), (0.11, 0.1, 0.11))
  b.anchor("neck", (0, floor + 0.95 * tall, 0.36), (0.31, 0.06, 0.25))
  b.anchor("back", (0, floor + 0.5, -0.22), (0.28, 0.22, 0.42))


def _boat(b: Builder, t: Traits, state: str) -> None:
  half, width = 0.55 + 0.07 * t.length, 0.25 + 0.035 * t.width
  deck = 0.27 + 0.03 * t.hull
  b.quadric(
    (0, 0.5 * deck - 0.02, 0),
    (width, 0.5 * deck + 0.02, half),
    _BODY,
    rotation=turn(z=180),
    profile=scene.DOME,
    core=True,
  )
  b.quadric((0, deck, 0), (1.04 * width, 0.03, 1.03 * half), PRIMARY, profile=scene.CYLINDER)
  b.quadric((0, deck + 0.02, 0), (0.9 * width, 0.03, 0.9 * half), WOOD, profile=scene.CYLINDER)
  mast = np.array([0, deck + 0.92 + 0.08 * t.mast, 0.04])
  b.limb((0, 0.27, 0.04), mast, 0.024 * t.sail, WOOD, key="mast")
  canvas = Paint((0.96, 0.94, 0.88), Slot.PRIMARY, Pattern.CAP, (-0.35, 0.0, 0.0, 0.0), gloss=0.05)
  middle = (0, deck + 0.5 + 0.03 * t.mast, -0.04)
  b.quadric(middle, np.array([0.02, 0.38, 0.44]) * t.sail, canvas, profile=scene.CONE, key="sail")
  b.box(mast + np.array([0, 0.0, -0.09]), np.array([0.008, 0.045, 0.09]) * t.sail, ACCENT)
  b.box((0, deck + 0.13, -0.05), np.array([0.15, 0.12, 0.22]) * t.steam, WHITE)
  b.box((0, deck + 0.27, -0.05), np.array([0.175, 0.025, 0.25]) * t.steam, SECONDARY)
  funnel = deck + 0.5 + 0.06 * t.mast
  b.limb((0, deck + 0.25, -0.12), (0, funnel, -0.14), 0.075 * t.steam, _funnel())
  b.limb((0, deck + 0.25, 0.1), (0, funnel - 0.06, 0.09), 0.055 * t.steam, _funnel())
  for z in (-0.16, 0.0, 0.1):
    for sign in (1, -1):
      b.quadric((sign * 0.15, deck + 0.14, z), np.array([0.012, 0.045, 0.045]) * t.steam, _PORTHOLE)
  for name, sign in SIDES:
    b.quadric((sign * 0.8 * width, 0.62 * deck, 0.55 * half), (0.05, 0.06, 0.06), SILVER, key=f"{name} porthole")
    b.quadric((sign * 0.84 * width, 0.62 * deck, 0.1 * half), (0.045, 0.05, 0.05), SILVER)
  b.ball((0, deck + 0.03, 0.94 * half), 0.05, SECONDARY, key="bow")
  b.ball((0, deck + 0.03, -0.94 * half), 0.045, SECONDARY, key="stern")
  b.anchor("hat", (0, deck + 0.04, 0.55 * half), (0.15, 0.15, 0.15))
  b.anchor("eyes", (0, 0.68 * deck, 0.92 * half), (0.09, 0.08, 0.09))
  b.anchor("neck", (0, 0.72 * deck, 0), (1.1 * width, 0.05, 1.05 * half))
  b.anchor("back", (0, deck + 0.02, -0.28), (0.24, 0.2, 0.3))


def _funnel() -> Paint:
  return Paint(Slot.ACCENT, (0.1, 0.1, 0.1), Pattern.CAP, (0.55, 0.0, 0.0, 0.0))


def _plane(b: Builder, t: Traits, state: str) -> None:
  flying = state == "flying"
  half, fat = 0.55 + 0.05 * t.length, 0.16 + 0.02 * t.fat
  span = 0.55 + 0.1 * t.span
  with b.frame((0, 0.85 if flying else 0.36, 0), turn(x=-12, z=10) if flying else turn(x=-6)):
    b.quadric((0, 0, 0), (fat, fat, half), _BODY, core=True)
    b.quadric((0, 0.7 * fat, 0.16), (0.1, 0.11, 0.17), GLASS, key="cockpit")
    low = t.choose(single=-0.04, double=-0.08)
    b.quadric((0, low, 0.1), (span, 0.028, 0.15 + 0.02 * t.chord), PRIMARY, key="wing")
    b.quadric((0, 0.3, 0.12), np.array([0.5, 0.026, 0.15]) * t.double, ACCENT)
    for name, sign in SIDES:
      b.limb((sign * 0.32, -0.04, 0.12), (sign * 0.32, 0.3, 0.12), 0.014 * t.double, WOOD)
      b.quadric((sign * 0.16, 0.02, -0.86 * half), (0.17, 0.02, 0.09), PRIMARY, key=f"{name} tail wing")
      b.limb((sign * 0.1, -0.1, 0.22), (sign * 0.15, -0.27, 0.24), 0.018, SILVER)
      b.quadric(
        (sign * 0.16, -0.28, 0.24),
        (0.075, 0.03, 0.075),
        RUBBER,
        rotation=turn(z=90),
        profile=scene.BARREL,
        key=f"{name} wheel",
      )
      for z in (0.0, -0.12):
        b.quadric((sign * 0.96 * fat, 0.03, z - 0.02), (0.02, 0.032, 0.032), _PORTHOLE)
    b.quadric((0, 0.16, -0.9 * half), (0.022, 0.15 + 0.03 * t.tail, 0.1), SECONDARY, rotation=turn(x=-24), key="fin")
    b.quadric((0, 0, half + 0.01), (0.06, 0.06, 0.08), SECONDARY, key="nose")
    for angle in (25, 115):
      b.box(
        (0, 0, half + 0.05),
        (0.02, 0.17 + 0.03 * t.propeller, 0.01),
        Paint((0.2, 0.17, 0.15), (0.2, 0.17, 0.15)),
        rotation=turn(z=angle),
      )
    b.anchor("hat", (0, 0.7 * fat + 0.09, 0.14), (0.13, 0.13, 0.13))
    b.anchor("eyes", (0, 0.06, half - 0.1), (0.09, 0.08, 0.09))
    b.anchor("neck", (0, 0, 0.36), (1.0 * fat, 0.05, 1.0 * fat), turn(x=90))
    b.anchor("back", (0, 0.04, -0.24), (1.05 * fat, fat, 0.3))


def _robot(b: Builder, t: Traits, state: str) -> None:
  sitting, running, jumping, waving = (state == s for s in ("sitting", "running", "jumping", "waving"))
  leg = 0.3 + 0.05 * t.leg
  lift = 0.26 if jumping else 0.0
  hip = 0.09 if sitting else leg + lift
  width, tall, deep = 0.19 + 0.03 * t.width, 0.2 + 0.03 * t.body, 0.14 + 0.02 * t.depth
  metal = Paint(coat=True, gloss=0.5)
  joint, limb_paint = SILVER, Paint(Slot.SECONDARY, Slot.SECONDARY, gloss=0.5)
  waist = np.array([0, hip + tall, 0.0])
  b.box(waist, (width, tall, deep), metal, core=True)
  b.box(
    waist + np.array([0, 0.3 * tall, 0]) + np.array([0, 0, 1.0]) * deep,
    (0.6 * width, 0.34 * tall, 0.012),
    flat(0.16, 0.18, 0.22),
  )
  for k, colour in enumerate(((0.9, 0.2, 0.15), (0.98, 0.8, 0.15), (0.25, 0.75, 0.3))):
    b.quadric(
      waist + np.array([0.07 * (k - 1), 0.06, 0]) + np.array([0, 0, 1.1]) * deep,
      (0.024, 0.024, 0.016),
      flat(*colour, 0.6, 0.5),
    )
  neck = hip + 2 * tall
  for name, sign in SIDES:
    foot = {
      "sitting": np.array([sign * 0.13, 0.06, 0.42]),
      "running": np.array([sign * 0.1, 0.06 + 0.1 * (sign < 0), 0.24 * sign]),
      "jumping": np.array([sign * 0.2, 0.2, -0.06]),
    }.get(state, np.array([sign * 0.11, 0.05, 0.0]))
    b.limb((sign * 0.11, hip + 0.01, 0.02), foot, 0.05, joint)
    b.box(
      foot + np.array([0, 0, 0.04]),
      (0.075, 0.045, 0.11),
      limb_paint,
      rotation=turn(x=-55) if sitting else None,
      key=f"{name} foot",
    )
    shoulder = np.array([sign * (width + 0.04), neck - 0.07, 0.0])
    raised = jumping or (waving and sign > 0)
    swing = 0.2 * -sign if running else 0.06
    hand = shoulder + (np.array([sign * 0.15, 0.3, 0.05]) if raised else np.array([sign * 0.06, -0.3, swing]))
    hand = hand + np.array([0, 0.04 if raised else -0.04, 0]) * t.arm
    b.ball(shoulder, 0.07, limb_paint)
    b.limb(shoulder, hand, 0.045, joint)
    b.ball(hand, 0.07 + 0.01 * t.hand, limb_paint, key=f"{name} hand")
  head_half = np.array([0.17 + 0.025 * t.head, 0.13 + 0.015 * t.head, 0.14])
  b.limb((0, neck - 0.01, 0), (0, neck + 0.06, 0), 0.06, joint)
  with b.frame((0, neck + 0.18, 0), head=True):
    b.box((0, 0, 0), (head_half[0] - 0.2 * t.dome, head_half[1], head_half[2]), metal)
    b.quadric((0, 0.0, 0), np.array([0.2, 0.14, 0.17]) * t.dome, metal, profile=scene.DOME)
    glow = Paint(Slot.EYE, Slot.EYE, gloss=0.6, glow=0.55)
    for name, sign in SIDES:
      b.quadric(
        (sign * 0.075, 0.01, 0.145), (0.046 + 0.006 * t.eyes, 0.046 + 0.006 * t.eyes, 0.03), glow, key=f"{name} eye"
      )
      b.quadric(
        (sign * (head_half[0] + 0.01), 0.0, 0),
        (0.045, 0.03, 0.045),
        limb_paint,
        rotation=turn(z=90),
        profile=scene.CYLINDER,
      )
    b.box((0, -0.075, 0.142), (0.075, 0.014, 0.012), BLACK, key="mouth")
    b.limb((0, 0.12, 0), (0, 0.24 + 0.04 * t.antenna, 0), 0.014, SILVER)
    b.ball((0, 0.25 + 0.04 * t.antenna, 0), 0.036, flat(0.95, 0.15, 0.1, 0.6, 0.4), key="antenna")
    b.anchor("hat", (0, head_half[1] - 0.005, 0), (0.16, 0.16, 0.16))
    b.anchor("eyes", (0, 0.01, 0.165), (0.075, 0.075, 0.075))
  b.anchor("neck", (0, neck + 0.02, 0), (0.14, 0.06, 0.13))
  b.anchor("back", waist + np.array([0, 0.18, -0.05]), (0.22, 0.24, 0.2), turn(x=-90))


RIGS = {
  "car": Rig(
    _car, ("length", "width", "wheel", "height", "nose", "roof", "cabin"), (("boxy", "bubble", "open"),),
    vocabulary.STATES["car"],
  ),
  "truck": Rig(_truck, ("length", "width", "wheel", "cab"), (("van", "tank", "tipper"),), vocabulary.STATES["truck"]),
  "boat": Rig(_boat, ("length", "width", "hull", "mast"), (("sail", "steam"),), vocabulary.STATES["boat"]),
  "plane": Rig(
    _plane, ("length", "fat", "span", "chord", "tail", "propeller"), (("single", "double"),),
    vocabulary.STATES["plane"],
  ),
  "robot": Rig(
    _robot, ("leg", "width", "body", "depth", "arm", "hand", "head", "eyes", "antenna"), (("square", "dome"),),
    vocabulary.STATES["robot"], upright=True,
  ),
}  # fmt: skip
