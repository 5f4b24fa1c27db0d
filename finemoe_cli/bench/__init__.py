"""``finemoe bench``: what a token costs at a budget, with a policy, on this machine.

``plan`` settles what is measured, ``worker`` measures it in a process of its own (``measure``), ``engines`` is the
other end of that, ``rows`` makes figures of samples and writes them out; ``sweep`` goes through budgets, with the
bound (``bound``) and the forecast beside what was measured.
"""
