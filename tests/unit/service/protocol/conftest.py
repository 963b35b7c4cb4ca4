from hypothesis import settings

# The time of an example says more about the machine than about the codec.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
