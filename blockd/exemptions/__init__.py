"""Exemptions: time-bound records that a device may use an app, who cleared it, and what keeps it safe."""
