"""Configuration: yaml files hold values, the Python files here their types, ranges and hooks."""
