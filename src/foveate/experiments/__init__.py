"""Experiments: data, hosts, one training loop, comparison, statistics and report."""
