"""Upstreams as Python sees them: who lives, who comes first, and what needs a stream."""
