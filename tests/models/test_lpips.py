"""LPIPS: compared with the paper's definition in torch, and with the authors' package where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamjax.models.lpips import LPIPS, from_torch

# Torchvision's `features`: channels of a convolution with its other arguments, or "M" for the pooling.
FEATURES = {
  "alex": [
    (64, {"kernel_size": 11, "stride": 4, "padding": 2}), "M", (192, {"kernel_size": 5, "padding": 2}), "M",
    (384, {}), (256, {}), (256, {}),
  ],
  "vgg": [
    *[(64, {})] * 2, "M", *[(128, {})] * 2, "M", *[(256, {})] * 3, "M", *[(512, {})] * 3, "M", *[(512, {})] * 3,
  ],
}  # fmt: skip
LAYERS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}  # the ReLUs that the authors compare
SIZES = {"alex": (96, 64), "vgg": (48, 33)}


def torch_features(net):
  torch = pytest.importorskip("torch")
  layers, channels = [], 3
  for entry in FEATURES[net]:
    if entry == "M":
      layers.append(torch.nn.MaxPool2d(3 if net == "alex" else 2, 2))
    else:
      layers += [torch.nn.Conv2d(channels, entry[0], **{"kernel_size": 3, "padding": 1, **entry[1]}), torch.nn.ReLU()]
      channels = entry[0]
  return torch.nn.Sequential(*layers)


def torch_distance(net, features, weights, x, y):
  import torch

  shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
  h = [(torch.tensor(p).permute(0, 3, 1, 2) - shift[:, None, None]) / scale[:, None, None] for p in (x, y)]
  total = torch.zeros(len(x))
  for i, layer in enumerate(features):
    h = [layer(a) for a in h]
    if i in LAYERS[net]:
      units = [a / (a.square().sum(1, keepdim=True).sqrt() + 1e-10) for a in h]
      w = weights[LAYERS[net].index(i)]
      total = total + ((units[0] - units[1]).square() * w[:, None, None]).sum(1).mean((1, 2))
  return total.detach().numpy()


@pytest.fixture
def images(request):
  rng = np.random.default_rng(3)
  return [rng.uniform(-1, 1, (2, *SIZES[request.param], 3)).astype(np.float32) for _ in range(2)]


def state_of(features, weights):
  state = {f"features.{name}": x.detach().numpy() for name, x in features.state_dict().items()}
  return state | {f"lin{i}.model.1.weight": np.asarray(w).reshape(1, -1, 1, 1) for i, w in enumerate(weights)}


@pytest.mark.parametrize(("net", "images"), [("alex", "alex"), ("vgg", "vgg")], indirect=["images"])
def test_distances_equal_the_definition(net, images):
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  features = torch_features(net)
  weights = [torch.rand(features[i - 1].out_channels) for i in LAYERS[net]]
  lpips, params = from_torch(state_of(features, weights))
  found = jax.jit(lpips.apply)({"params": params}, *map(jnp.asarray, images))
  expected = torch_distance(net, features, weights, *images)
  assert expected.min() > 1e-3
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("net", "images"), [("alex", "alex"), ("vgg", "vgg")], indirect=["images"])
@pytest.mark.filterwarnings("ignore::UserWarning:torchvision")  # of the authors' deprecated arguments
def test_distances_equal_the_authors_package(net, images):
  lpips = pytest.importorskip("lpips", exc_type=(ImportError, RuntimeError))  # torchvision may not fit torch
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
  ours, params = from_torch({name: x.numpy() for name, x in model.state_dict().items()})
  found = jax.jit(ours.apply)({"params": params}, *map(jnp.asarray, images))
  expected = model(*(torch.tensor(p).permute(0, 3, 1, 2) for p in images)).detach().numpy().reshape(-1)
  assert expected.min() > 1e-3
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def random_params():
  shapes = jax.eval_shape(LPIPS("alex").init, jax.random.key(0), *[jnp.zeros((1, 64, 64, 3))] * 2)["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) ** 2 * 0.05, x.dtype), shapes)


@pytest.mark.parametrize("images", ["alex"], indirect=True)
def test_distances_are_symmetric_and_grow(random_params, images):
  x, y = map(jnp.asarray, images)
  distance = jax.jit(lambda *pair: LPIPS("alex").apply({"params": random_params}, *pair))
  np.testing.assert_allclose(distance(x, x), 0, atol=1e-12)
  np.testing.assert_allclose(distance(x, y), distance(y, x), rtol=1e-5)
  near, far = distance(x, 0.9 * x + 0.1 * y), distance(x, y)
  assert (near < far).all() and (near > 0).all()


def published_names(random_params):
  slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
  state = {}
  for name, x in random_params.items():
    if name.startswith("conv"):
      index = int(name.removeprefix("conv"))
      state[f"net.slice{slices[index]}.{index}.weight"] = np.asarray(x["kernel"]).transpose(3, 2, 0, 1)
      state[f"net.slice{slices[index]}.{index}.bias"] = np.asarray(x["bias"])
    else:
      state[f"lin{name[-1]}.model.1.weight"] = np.asarray(x).reshape(1, -1, 1, 1)
  return state


def test_both_namings_of_the_weights_are_accepted(random_params):
  state = published_names(random_params)
  duplicates = {name.replace("lin", "lins."): x for name, x in state.items() if name.startswith("lin")}
  lpips, params = from_torch(state | duplicates | {"scaling_layer.shift": np.zeros((1, 3, 1, 1))})
  assert lpips == LPIPS("alex")
  for found, expected in zip(jax.tree.leaves(params), jax.tree.leaves(random_params), strict=True):
    np.testing.assert_array_equal(found, expected)


def test_all_problems_of_the_weights_are_listed(random_params):
  state = published_names(random_params)
  state["classifier.1.weight"] = state.pop("net.slice4.8.bias")
  state["lin2.model.1.weight"] = np.zeros((1, 7, 1, 1))
  with pytest.raises(ValueError) as error:
    from_torch(state)
  for part in (
    "net.slice4.8.bias is missing",
    "lin2.model.1.weight has shape (1, 7, 1, 1) instead of (1, 384, 1, 1)",
    "classifier.1.weight is unknown",
  ):
    assert part in str(error.value)
