"""Hands over to `tests.plugin`, where tests run."""


def pytest_configure(config):
    """Of two workers' three processes one runs no test, and need not wait for torch before it starts the others."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.plugin")
