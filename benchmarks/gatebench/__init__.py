"""The parts of ``benchmarks/kernels.py``: rivals, clock, memory, hosts, targets, page, chart."""
