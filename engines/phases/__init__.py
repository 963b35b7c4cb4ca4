"""The phases of a build; `engines.pipeline` puts them in their order."""
