"""A whole model against the runtimes that people use today, each in a process of its own."""
