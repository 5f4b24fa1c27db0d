"""Decode kernels: one token through the layers, at the speed of the memory bus.

A decoded token multiplies one vector with every weight it touches, so its time is the time to read those
weights. bfloat16 weights are widened to float32 by a shift and summed in float32, in one plain loop a row: measured
at the machine's raw read bandwidth, about 2.3 times torch's bfloat16 ``linear``. Quantised weights are read as
fast, see `quantised`. Numba compiles the kernels once and keeps the result in its cache folder.
"""

from offload.absent import import_numba

import_numba()
