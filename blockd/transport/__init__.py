"""Adapters from Twisted to the hot path: bytes in, bytes out, limits; no policy."""
