"""Versions of the database schema, applied when the service starts."""
