"""A toybox scene: a pytree of fixed-size arrays that `render.render` turns into an image.

Coordinates are right-handed: x to the right, y up, z towards the camera; the ground is the plane y = 0 and a toy is
about one unit tall. Every solid part has one of two shapes, each with a closed-form ray intersection:

  quadric   x^2 + z^2 = a + b y + c y^2  for |y| <= 1, in the part's own frame, closed by flat caps if `capped`;
  ellipsoids, domes, cylinders, cones, cups, barrels and vases are all choices of (a, b, c);
  box       |x|, |y|, |z| <= 1 in the part's own frame.
"""

import enum

from flax import struct
from jaxtyping import Array, Bool, Float, Int

# Profiles (a, b, c, capped) of the quadrics that the toys are made of. y runs from -1 (bottom) to 1 (top).
ELLIPSOID = (1.0, 0.0, -1.0, 0.0)
CYLINDER = (1.0, 0.0, 0.0, 1.0)
DOME = (0.75, -0.5, -0.25, 1.0)  # the upper half of a ball: x^2 + z^2 = 1 - ((y + 1) / 2)^2
BARREL = (1.0, 0.0, -0.5, 1.0)
VASE = (0.45, 0.0, 0.55, 1.0)  # waisted


def frustum(bottom: float, top: float, capped: bool = True) -> tuple[float, float, float, float]:
  """Returns the profile of a truncated cone of radius `bottom` to `top`, both relative to the part's radii."""
  mean, slope = (top + bottom) / 2, (top - bottom) / 2
  return (mean * mean, 2 * mean * slope, slope * slope, float(capped))


CONE = frustum(1.0, 0.0)


class Pattern(enum.IntEnum):
  """How a part's two colours are mixed over its surface; see `surfaces.pattern_mix`."""

  PLAIN = 0
  STRIPES = 1
  SPOTS = 2
  PATCH = 3
  BELLY = 4
  STAR = 5
  FRECKLES = 6
  CHECKER = 7
  WINDOWS = 8
  CAP = 9
  RINGS = 10
  RAINBOW = 11
  BANDS = 12
  PUPIL = 13


class Owner(enum.IntEnum):
  """What a primitive belongs to."""

  BACKGROUND = 0
  SUBJECT = 1
  ACCESSORY = 2
  OTHER = 3


class Ground(enum.IntEnum):
  """Texture of the ground plane; see `surfaces.ground`."""

  PLAIN = 0
  GRASS = 1
  SNOW = 2
  SAND = 3
  COBBLES = 4
  PLANKS = 5
  WATER = 6
  WHEAT = 7
  LEAVES = 8
  ROAD = 9
  FABRIC = 10
  TILES = 11
  STREET = 12
  MILK = 13


@struct.dataclass
class Primitives:
  """`n` solid parts of one shape. A part whose smallest radius is 0 is absent.

  Attributes:
    centre: position.
    axes: rows are the part's own x, y and z axes, orthonormal.
    radii: half extents along the axes.
    profile: (a, b, c, capped) of a quadric; ignored for boxes.
    colour: the two colours, linear RGB.
    pattern: a `Pattern`.
    pattern_params: the pattern's four parameters.
    gloss: 0 matte to 1 mirror-like.
    glow: how much of the colour is emitted, 0 to 1.
    owner: an `Owner`.
  """

  centre: Float[Array, "*b n 3"]
  axes: Float[Array, "*b n 3 3"]
  radii: Float[Array, "*b n 3"]
  profile: Float[Array, "*b n 4"]
  colour: Float[Array, "*b n 2 3"]
  pattern: Int[Array, "*b n"]
  pattern_params: Float[Array, "*b n 4"]
  gloss: Float[Array, "*b n"]
  glow: Float[Array, "*b n"]
  owner: Int[Array, "*b n"]


@struct.dataclass
class Camera:
  """A pinhole camera without roll.

  Attributes:
    position: of the camera.
    target: the point at the centre of the image.
    fov: vertical angle of view in radians.
  """

  position: Float[Array, "*b 3"]
  target: Float[Array, "*b 3"]
  fov: Float[Array, "*b"]


@struct.dataclass
class Environment:
  """Sun, sky and ground. Colours are linear RGB.

  Attributes:
    sun: unit vector towards the sun (or the moon).
    sun_colour: the sun's light.
    ambient: light from all other directions.
    zenith: the sky's colour overhead.
    horizon: the sky's colour at the horizon; also that of the haze.
    clouds: 0 none to 1 overcast.
    stars: 0 none to 1.
    haze: share of haze per unit of distance.
    ground: a `Ground`.
    ground_colours: the three colours of its texture.
    ground_scale: size of the texture's cells.
    mirror: share of light that the ground reflects, 0 to 1.
    seed: shifts the noise of ground and clouds.
    indoors: 1 for a wall in place of the sky.
  """

  sun: Float[Array, "*b 3"]
  sun_colour: Float[Array, "*b 3"]
  ambient: Float[Array, "*b 3"]
  zenith: Float[Array, "*b 3"]
  horizon: Float[Array, "*b 3"]
  clouds: Float[Array, "*b"]
  stars: Float[Array, "*b"]
  haze: Float[Array, "*b"]
  ground: Int[Array, "*b"]
  ground_colours: Float[Array, "*b 3 3"]
  ground_scale: Float[Array, "*b"]
  mirror: Float[Array, "*b"]
  seed: Int[Array, "*b"]
  indoors: Float[Array, "*b"]


@struct.dataclass
class Scene:
  """What `render.render` needs.

  Attributes:
    quadrics: the round parts.
    boxes: the angular parts.
    camera: the view.
    environment: light, sky and ground.
    keypoints: points of the subject, in scene units (centres of named parts).
    keypoint_parts: index of the part on which each lies (boxes are numbered after the quadrics), -1 for no such point.
  """

  quadrics: Primitives
  boxes: Primitives
  camera: Camera
  environment: Environment
  keypoints: Float[Array, "*b k 3"]
  keypoint_parts: Int[Array, "*b k"]


@struct.dataclass
class Frame:
  """A rendered image with its ground truth.

  Attributes:
    rgb: sRGB in [0, 1], averaged over the samples of a pixel.
    depth: distance from the camera along its viewing direction, in scene units, of the nearest surface in the pixel;
      `FAR` for sky.
    mask: share of the pixel's samples in which the subject is nearest, in [0, 1].
    foreground: the same for the subject, what it wears, and the second toy.
    normal: unit surface normal (scene axes) at that surface; towards the camera for sky.
    keypoints: positions in the image, (x, y) in [0, 1] from its upper left corner.
    visible: whether the keypoint is inside the image and occluded by no part but its own.
  """

  rgb: Float[Array, "*b h w 3"]
  depth: Float[Array, "*b h w"]
  mask: Float[Array, "*b h w"]
  foreground: Float[Array, "*b h w"]
  normal: Float[Array, "*b h w 3"]
  keypoints: Float[Array, "*b k 2"]
  visible: Bool[Array, "*b k"]
