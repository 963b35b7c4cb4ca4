"""The calls of both APIs, a module a subject."""
