"""Worlds of other packages as pure functions; `polgrad.small` has the tasks of this package.

gymnax_worlds.make    control worlds of gymnax, which it imports only then
"""
