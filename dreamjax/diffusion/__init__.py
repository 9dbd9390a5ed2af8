"""Gaussian diffusion as pure maths on arrays: schedules, forward process, predictions, losses, thresholding, samplers.

The conventions of the whole project, stated here once:

- time t runs from 0, the clean image, to 1, pure noise: x_t = alpha(t) x + sigma(t) eps;
- images are in [-1, 1];
- arrays of images are NHWC: batch, height, width, channels;
- guidance of weight w is u + w (c - u), for c the prediction with the prompt and u the one without: w = 1 is the plain
  conditional prediction, w = 0 the unconditional one;
- inputs of any dtype are computed and returned in float32;
- each image has a key of its own for its noise, so that an image does not depend on the others of its batch.

The package contains no network: samplers take the prediction as a function. It imports no other package of dreamjax.
"""
