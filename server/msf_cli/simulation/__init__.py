"""Discrete-event simulation of many workers on one Redis, driving the same batching policies as real workers."""
