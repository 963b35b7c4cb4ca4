"""What runs models: one module a library, behind the contract of `base`."""
