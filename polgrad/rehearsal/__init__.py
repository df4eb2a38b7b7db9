"""Rehearsals: a training step compiled for devices that are not there, and what it would take."""
