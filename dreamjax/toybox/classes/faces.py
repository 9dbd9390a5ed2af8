"""Faces: a head and shoulders with enough attributes to distinguish people."""

import numpy as np

from dreamjax.toybox import scene, vocabulary
from dreamjax.toybox.rig import EYE, SIDES, SKIN, Builder, Paint, Rig, Slot, Traits, flat, turn

_HAIR = Paint(gloss=0.2)
_FACE_SKIN = Paint(Slot.SKIN, Slot.SECONDARY, coat=True, gloss=0.12)
_SHIRT = Paint(Slot.ACCENT, Slot.ACCENT, gloss=0.05)
_LIPS = flat(0.72, 0.3, 0.3, 0.25)
_INSIDE = flat(0.35, 0.08, 0.1)
_FRAME = flat(0.1, 0.1, 0.12, 0.6)

_HAIR_STYLES = ("bald", "short", "bob", "long", "curly", "bun", "mohawk", "swept")

# By expression: height of the mouth's corners relative to its centre, half width, and the rise of the brows' inner and
# outer ends.
_EXPRESSIONS = {
  "neutral": (0.0, 0.085, 0.0, 0.0),
  "smiling": (0.045, 0.105, 0.012, 0.006),
  "sad": (-0.05, 0.075, 0.04, -0.03),
  "surprised": (0.0, 0.05, 0.065, 0.06),
}


def _face(b: Builder, t: Traits, state: str) -> None:
  corner, mouth_half, inner, outer = _EXPRESSIONS[state]
  b.quadric((0, 0.16, -0.03), (0.46 + 0.05 * t.shoulders, 0.23, 0.23), _SHIRT)
  b.quadric((0, 0.02, -0.02), (0.42 + 0.05 * t.shoulders, 0.2, 0.22), _SHIRT, profile=scene.BARREL)
  b.limb((0, 0.25, -0.02), (0, 0.55, 0.0), 0.115, SKIN)
  b.quadric((0, 0.37, -0.01), (0.15, 0.03, 0.15), _SHIRT, profile=scene.frustum(1.1, 0.85))
  b.anchor("neck", (0, 0.43, 0), (0.16, 0.06, 0.16))
  b.anchor("back", (0, 0.22, -0.1), (0.36, 0.26, 0.26), turn(x=-75))

  with b.frame((0, 0.52, -0.02), head=True):
    wide, tall = 0.255 + 0.03 * t.face_width, 0.32 + 0.03 * t.face_length
    b.quadric((0, 0.28, 0.0), (wide, tall, 0.29), _FACE_SKIN, core=True, key="face")
    b.quadric((0, 0.1 - 0.02 * t.face_length, 0.045), (0.19 + 0.04 * t.jaw, 0.16, 0.215), _FACE_SKIN, key="chin")
    for name, sign in SIDES:
      b.quadric((sign * wide, 0.26, -0.02), (0.045, 0.075 + 0.012 * t.ears, 0.05), SKIN, key=f"{name} ear")
      x = 0.105 + 0.016 * t.eye_spacing
      eye = 0.058 + 0.01 * t.eye_size
      b.quadric((sign * x, 0.31, 0.25), (eye, 0.82 * eye if state != "surprised" else 1.05 * eye, 0.034), EYE,
                rotation=turn(y=sign * 14), key=f"{name} eye")  # fmt: skip
      thick = 0.019 + 0.008 * t.brow_thickness
      start = (sign * 0.05, 0.395 + inner - 0.02 * t.brow_tilt, 0.282)
      end = (sign * 0.165, 0.4 + outer + 0.02 * t.brow_tilt, 0.245)
      b.limb(start, end, thick, _HAIR, taper=0.7)
    nose = 0.21 - 0.01 * t.nose_length
    b.quadric((0, 0.245, 0.29), (0.026 + 0.006 * t.nose_width, 0.07, 0.035), SKIN, rotation=turn(x=-14))
    b.quadric((0, nose, 0.312 + 0.012 * t.nose_length), (0.042 + 0.012 * t.nose_width, 0.034, 0.044), SKIN, key="nose")
    _mouth(b, t, state, corner, mouth_half)
    _hair(b, t, wide)
    _facial_hair(b, t)
    _glasses(b, t)
    b.anchor("hat", (0, 0.47, -0.02), (0.285, 0.285, 0.285), turn(x=-8))
    b.anchor("eyes", (0, 0.31, 0.3), (0.11, 0.115, 0.11))


def _mouth(b: Builder, t: Traits, state: str, corner: float, half: float) -> None:
  y, z = 0.085, 0.262
  half = half + 0.016 * t.mouth_width
  lip = 0.017 + 0.006 * t.lips
  for sign in (1, -1):
    b.limb((0, y - 0.5 * corner, z), (sign * half, y + 0.5 * corner, z - 0.035), lip, _LIPS, taper=0.7)
  if state == "surprised":
    b.quadric((0, y - 0.015, z - 0.01), (0.052, 0.068, 0.03), _INSIDE, key="mouth")
  else:
    b.quadric((0, y - 0.5 * corner - 0.008, z + 0.002), (0.5 * half, lip + 0.004, 0.016), _LIPS, key="mouth")
  if state == "smiling":
    b.quadric((0, y + 0.004, z + 0.004), (0.5 * half, 0.013, 0.014), flat(0.98, 0.97, 0.94, 0.3))


def _hair(b: Builder, t: Traits, wide: float) -> None:
  def only(*styles):
    return t.choose(**{name: float(name in styles) for name in _HAIR_STYLES})

  cap = only("short", "bob", "long", "bun", "swept")
  b.quadric((0, 0.375, -0.055), np.array([0.285, 0.27, 0.285]) * cap + np.array([0.03, 0, 0]) * t.face_width, _HAIR)
  side, length = only("bob", "long"), only("long")
  for sign in (1, -1):
    at = np.array([sign * (0.24 + 0.02 * t.face_width), 0.24, -0.03]) + np.array([0, -0.2, -0.02]) * length
    b.quadric(at, np.array([0.085, 0.22, 0.17]) * side + np.array([0.0, 0.17, 0.0]) * length, _HAIR)
  b.quadric(np.array([0, 0.2, -0.17]) + np.array([0, -0.17, 0]) * length,
            np.array([0.25, 0.25, 0.14]) * side + np.array([0.0, 0.2, 0.0]) * length, _HAIR)  # fmt: skip
  b.quadric((0, 0.49, 0.16), np.array([0.2, 0.075, 0.13]) * only("bob"), _HAIR, rotation=turn(x=32))  # fringe
  b.quadric((0.07, 0.53, 0.13), np.array([0.21, 0.085, 0.15]) * only("swept"), _HAIR, rotation=turn(z=-18, x=20))
  b.ball((0, 0.66, -0.1), 0.125 * only("bun"), _HAIR)
  b.quadric((0, 0.57, -0.04), np.array([0.05, 0.19, 0.29]) * only("mohawk"), _HAIR)
  curls = only("curly")
  for x, y, z, r in (
    (0.0, 0.56, 0.04, 0.17), (0.17, 0.5, 0.02, 0.15), (-0.17, 0.5, 0.02, 0.15), (0.26, 0.35, -0.06, 0.14),
    (-0.26, 0.35, -0.06, 0.14), (0.0, 0.45, -0.2, 0.22), (0.2, 0.2, -0.14, 0.14), (-0.2, 0.2, -0.14, 0.14),
  ):  # fmt: skip
    b.ball((x, y, z), r * curls, _HAIR)


def _facial_hair(b: Builder, t: Traits) -> None:
  hair = t.beard + t.moustache
  b.quadric((0, 0.02, 0.06), np.array([0.215, 0.155, 0.2]) * t.beard, _HAIR)
  for sign in (1, -1):
    b.quadric((sign * 0.055, 0.135, 0.275), np.array([0.068, 0.024, 0.028]) * hair, _HAIR, rotation=turn(z=-sign * 14))


def _glasses(b: Builder, t: Traits) -> None:
  worn = t.wire + t.shades
  ring = scene.frustum(1.0, 0.8, capped=False)
  for sign in (1, -1):
    at = np.array([sign * (0.108 + 0.014 * t.eye_spacing), 0.305, 0.3])
    b.quadric(at, np.array([0.092, 0.016, 0.092]) * t.wire, _FRAME, rotation=turn(x=90), profile=ring)
    b.quadric(at, np.array([0.096, 0.07, 0.02]) * t.shades, flat(0.06, 0.06, 0.08, 0.95), rotation=turn(y=sign * 8))
    b.limb((sign * 0.19, 0.325, 0.285), (sign * 0.27, 0.31, 0.0), 0.013 * worn, _FRAME)
  b.limb((-0.03, 0.32, 0.305), (0.03, 0.32, 0.305), 0.012 * worn, _FRAME)


RIGS = {
  "face": Rig(
    _face,
    (
      "face_width", "face_length", "jaw", "eye_size", "eye_spacing", "brow_thickness", "brow_tilt", "nose_length",
      "nose_width", "mouth_width", "lips", "ears", "shoulders",
    ),
    (_HAIR_STYLES, ("shaven", "beard", "moustache"), ("bare", "wire", "shades")),
    vocabulary.STATES["face"],
    upright=True,
  )
}  # fmt: skip
