"""Running the model: loading, the experts module, decode kernels, generation."""

from offload.runtime.imports import import_transformers

import_transformers()
