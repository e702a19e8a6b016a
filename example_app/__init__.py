"""The example app: a small chat whose answers survive a reload. Start it with `python -m example_app`."""
