"""Policies after training: sampling from them and evaluating them."""
