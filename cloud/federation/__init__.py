"""Flower at the centre: a grid over MQTT, the analytic strategy, and the server app that runs a round."""

from common.quiet import silence_flower

silence_flower()  # before any module of this package imports flwr
