"""A discrete-event simulation of many workers on one Redis, which drives the very policies that the workers do."""
