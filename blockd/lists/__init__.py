"""Other people's lists: what is let in of them, and what they would change."""
