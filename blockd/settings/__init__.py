"""The config file: one typed schema a section, every error with file, line and key.

Nothing is imported here: a command that only looks for its daemon has no need of the schema.
"""
