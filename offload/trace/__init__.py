"""Routing looked at afterwards: what could have been done with it."""
