"""The catalogue: which names and networks belong to which app."""

from blockd.apps.catalogue import App, Catalogue, Entry, Extension, load_catalogue

__all__ = ["App", "Catalogue", "Entry", "Extension", "load_catalogue"]
