"""The record of models, versions and builds in SQLite or PostgreSQL."""
