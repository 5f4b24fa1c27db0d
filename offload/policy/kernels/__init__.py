"""The compiled pieces of policies.

As in `offload.runtime.kernels`, signatures are given in full: importing a module compiles, or takes the compiled
code from the cache. `offload.runtime.compile` sees to it that an engine only ever does the latter.
"""

from offload.absent import import_numba

import_numba()
